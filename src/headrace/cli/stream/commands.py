"""`headrace stream`: scoring of the records of a topic, with results in another topic."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from headrace.cli.base.contexts import DEFAULT_HOME
from headrace.cli.base.options import (
    CommandGroup,
    ControlPlaneOptions,
    Home,
    Json,
    LogFormatOption,
    StreamName,
    argument,
    file_option,
    option,
    setting,
)
from headrace.cli.base.output import progress, rows_text, say, show, show_answer, show_document
from headrace.cli.stream import foreground as here
from headrace.cli.stream import topics
from headrace.cli.stream.find import (
    MEMBER_COLUMNS,
    STREAM_COLUMNS,
    ShortForm,
    chosen,
    short_spec,
)
from headrace.core import NotFoundError

app = CommandGroup(
    help="Streams: read records of a log, write answers. up, status, pause, resume, replay, "
    "dlq; send and read for tests.",
)
app.add_typer(topics.app, name="dlq")
app.command()(here.replay)
app.command()(topics.send)
app.command()(topics.read)


@app.command()
def up(
    names: Annotated[
        list[str] | None,
        argument("Only these streams of the file.", metavar="[NAME]...", shown="all"),
    ] = None,
    *,
    file: Annotated[
        Path | None,
        file_option(
            "The spec file; without it, the options below define the stream.", "--file", "-f"
        ),
    ] = None,
    form: ShortForm,
    workers: Annotated[
        int | None,
        option(
            "Worker processes per stream, which share its partitions.",
            min=1,
            max=1024,
            shown="from the file, else 1",
        ),
    ] = None,
    member_prefix: Annotated[
        str,
        setting(
            "Prefix of worker names at the broker, unique per host that shares a stream, such "
            "as the pod name."
        ),
    ] = "",
    log_format: LogFormatOption = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Run streams in the foreground until Ctrl-C: no control plane, no gateway.

    `headrace up` and `headrace apply` run the streams of a spec file in the background.

    For example:

        headrace stream up -f headrace.yaml

        headrace stream up --model m.onnx --broker log:demo --from in --to out
    """
    from headrace.cli.base.spec_file import read_spec
    from headrace.cli.stream.foreground import (
        Foreground,
        live_text,
        make_topics,
        resolved,
        with_workers,
    )

    is_short = form.model or form.endpoint or form.broker or form.sources or form.sink
    if file is not None and is_short:
        msg = "a file defines the stream: omit --model, --endpoint, --broker, --from and --to"
        raise typer.BadParameter(msg, param_hint="--file")
    spec = short_spec(form) if file is None else read_spec(file)
    streams = chosen(spec, list(names or ()), location=str(file or "this command"))
    with progress("checking models"):
        resolved_streams = resolved(spec, streams, home, allow_code=form.allow_code)
    started = with_workers(resolved_streams, workers)
    make_topics(started, home)
    for stream in started:
        say(f"stream '{stream.name}': {stream.way}; stop with Ctrl-C")
    running = Foreground(
        streams=started,
        home=home,
        log_format=str(log_format or "text"),
        member_prefix=member_prefix,
    )
    for view in running.run():
        say(live_text(view))


@app.command()
def status(
    name: Annotated[
        str | None, argument("Only this stream, with its workers.", shown="all")
    ] = None,
    *,
    json: Json = False,
    plane: ControlPlaneOptions,
) -> None:
    """Show state and lag of the streams that a control plane runs.

    For example:

        headrace stream status

        headrace stream status fraud --json
    """
    streams = plane.connect().get("/api/v1/streams")["streams"]
    if name is not None:
        names = ", ".join(stream["name"] for stream in streams) or "none"
        streams = [stream for stream in streams if stream["name"] == name]
        if not streams:
            msg = f"no stream '{name}'; there are: {names}"
            raise NotFoundError(msg)
    empty = "no streams; define them under `streams` in the spec"
    document = streams[0] if name is not None else streams
    show_document(document, streams, STREAM_COLUMNS, json=json, empty=empty)
    if json:
        return
    if name is not None:
        show("", rows_text(streams[0]["members"], MEMBER_COLUMNS))
    for stream in streams:
        for key in ("message", "warning"):
            if stream.get(key):
                say(f"{stream['name']}: {stream[key]}")


@app.command()
def pause(name: StreamName, *, json: Json = False, plane: ControlPlaneOptions) -> None:
    """Pause a stream: it reads no more records and keeps its offsets, also across restarts.

    For example:

        headrace stream pause fraud
    """
    _order(name, "pause", json=json, plane=plane)


@app.command()
def resume(name: StreamName, *, json: Json = False, plane: ControlPlaneOptions) -> None:
    """Resume a paused stream, or one that stopped at a record.

    For example:

        headrace stream resume fraud
    """
    _order(name, "resume", json=json, plane=plane)


def _order(name: str, verb: str, *, json: bool, plane: ControlPlaneOptions) -> None:
    answer = plane.connect().post(f"/api/v1/streams/{quote(name, safe='')}/{verb}")
    line = f"stream '{name}' is {'paused' if verb == 'pause' else 'to go on'}"
    show_answer(answer, line, json=json)
