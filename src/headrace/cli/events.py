"""What happened: `headrace events`, `history`, `undo`, `feedback`, `payloads` and `logs`."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from headrace.cli.options import (
    ControlPlane,
    Json,
    LogFormat,
    LogFormatOption,
)
from headrace.cli.output import (
    clock_text,
    progress,
    say,
    show,
    table,
    write,
    write_json,
)
from headrace.control import read_control_file
from headrace.core import DeadlineExceededError, UnavailableError, span
from headrace.core.text import bytes_text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from headrace.cli.management import Management

_RETRY_S = 2.0


def events(
    endpoint: Annotated[
        str, typer.Argument(help="Only of this endpoint.", show_default="all")
    ] = "",
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="The newest so many.")
    ] = 50,
    json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per line, and nothing else.")
    ] = False,
    plane: ControlPlane,
) -> None:
    """Print what happened to endpoints: changes, rollouts, scaling, replicas, with reasons.

    For example:

        headrace events fraud --follow
    """
    api = plane.connect()
    found = api.get("/api/v1/events", endpoint=endpoint, limit=limit)["events"]
    for event in found:
        write(event_line(event, json=json))
    if not follow:
        if not found:
            say("no events yet")
        return
    last = found[-1]["id"] if found else 0
    for event in follow_events(api, endpoint, last):
        write(event_line(event, json=json))


def follow_events(
    api: "Management", endpoint: str, last_id: int, *, retry_s: float = _RETRY_S
) -> "Iterator[dict[str, Any]]":
    """Events after `last_id` as they come; goes on after a control plane that was away."""
    import json

    told = ""
    while True:
        try:
            stream = api.events("/api/v1/watch", last_id=str(last_id), endpoint=endpoint)
            for event in stream:
                told = ""
                yield json.loads(event.data)
                last_id = int(event.id)
        except (UnavailableError, DeadlineExceededError) as error:
            if not told:
                say(told := str(error))
        time.sleep(retry_s)


def event_line(event: dict[str, Any], *, json: bool) -> str:
    """One event in one line."""
    if json:
        import json as codec

        return codec.dumps(event, separators=(",", ":"))

    by = f" (by {event['actor']})" if event["actor"] else ""
    message = event["message"].partition("\n")[0]
    where = f"{event['endpoint']:<16} " if event["endpoint"] else ""
    return (
        f"{clock_text(event['at'])}  {where}{event['kind']:<8} {event['reason']:<12} {message}{by}"
    )


def feedback(
    request_id: Annotated[str, typer.Argument(help="The answer's x-request-id.")],
    reward: Annotated[
        float | None,
        typer.Argument(help="What it earned; more is better.", show_default="with --label, none"),
    ] = None,
    *,
    label: Annotated[
        str | None, typer.Option(help="What it should have been: a class or a number.")
    ] = None,
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """Tell what an answer earned, for a rollout that reward decides, or what was right.

    The first one of a request counts. One that comes before its request is known waits for it.
    `headrace drift ENDPOINT` shows how right answers were (spec: `drift: {labels: true}`).

    For example:

        headrace feedback 5b0c6a1f-0d43-4a7e-9a7e-1f0d5b0c6a1f 1.0

        headrace feedback 5b0c6a1f-0d43-4a7e-9a7e-1f0d5b0c6a1f --label cat
    """
    if (reward is None) == (label is None):
        raise typer.BadParameter("give a reward, or a label with --label", param_hint="REWARD")
    said = {"reward": reward} if label is None else {"label": label}
    body = {"request_id": request_id, **said}
    answer = plane.connect().post("/api/v1/feedback", body)
    if json:
        write_json(answer)
        return
    told = {
        "taken": "counted",
        "duplicate": "there was one already, which counts",
        "waiting": "kept until the request is known",
        "unfit": "not counted: the answer is a number, and the label is none",
    }
    outcome = answer["results"][0]["outcome"]
    say(f"{request_id}: {told.get(outcome, outcome)}")


_LONGEST: Final = 120
_Endpoint = Annotated[str, typer.Argument(help="The endpoint's name.", show_default=False)]


def history(
    endpoint: _Endpoint,
    *,
    limit: Annotated[
        int, typer.Option("--limit", "-n", min=1, max=1000, help="The newest so many.")
    ] = 100,
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """List what an endpoint has been: when, what was served, who changed it and why.

    Beside its generations stand the ends of its rollouts: what was decided, by whom or by what.

    For example:

        headrace history fraud
    """
    path = f"/api/v1/endpoints/{endpoint}/history"
    document = plane.connect().get(path, limit=limit)
    if json:
        write_json(document)
        return
    show(table(history_rows(document)[:limit], "", "generation", "since", "versions", "by", "why"))


def history_rows(document: dict[str, Any]) -> list[Sequence[str]]:
    """Generations and ends of rollouts in one list, the newest first, a row each."""
    rows = [
        (
            entry["at"],
            "*" if entry["current"] else "",
            str(entry["generation"]),
            versions_text(entry),
            entry["actor"],
            entry["reason"],
        )
        for entry in document["generations"]
    ]
    rows += [
        (
            end["at"],
            "",
            end["id"],
            f"{end['from_version']} to {end['to_version']}",
            end["decided_by"],
            end_text(end),
        )
        for end in document["rollouts"]
    ]
    rows.sort(key=lambda row: row[0], reverse=True)
    return [(mark, number, clock_text(at), *rest) for at, mark, number, *rest in rows]


def end_text(end: dict[str, Any]) -> str:
    """How a rollout ended, after how long and why, in a line."""
    text = f"{end['phase'].replace('_', ' ')} after {span(end['duration_s'])}: {end['why']}"
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def versions_text(entry: dict[str, Any]) -> str:
    """What a generation served, in a few words."""
    if entry["spec"] is None and not entry["versions"]:
        return "removed"
    versions = entry["versions"]
    if len(versions) == 1:
        return str(versions[0]["model"])
    return ", ".join(f"{one['model']} {one['weight']}%" for one in versions)


def undo(
    endpoint: _Endpoint,
    *,
    to: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="A generation of `headrace history`.",
            show_default="the one before the newest",
        ),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Return when it is ready.")] = False,
    wait_s: Annotated[float, typer.Option(min=0.1, help="Seconds that --wait waits.")] = 120.0,
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """Make an endpoint what it was in a former generation, at once and without a rollout.

    The models of that generation are pinned, so the same versions are served again. It is a new
    generation itself: `undo` twice is where you were.

    For example:

        headrace undo fraud

        headrace undo fraud --to 3 --wait
    """
    from headrace.cli.spec import tell_applied

    api = plane.connect()
    body = {} if to is None else {"generation": to}
    with progress("waiting until it is ready" if wait else "going back"):
        answer = api.post(
            f"/api/v1/endpoints/{endpoint}/undo",
            body,
            timeout_s=wait_s + 30,
            wait_s=wait_s if wait else None,
        )
    tell_applied(answer, json=json)


_SHAPE: Final = ".shape"
_LONGEST_CELL: Final = 40
_NO: Final = "-"


def payloads(
    endpoint: Annotated[str, typer.Argument(help="Whose.")],
    *,
    rows: Annotated[
        int,
        typer.Option(
            "--rows", "-n", min=0, max=1000, help="Show the newest so many requests, not the files."
        ),
    ] = 0,
    request: Annotated[
        str, typer.Option(help="Show the request of this id.", show_default="any")
    ] = "",
    json: Json = False,
    plane: ControlPlane,
) -> None:
    """Show the files of an endpoint's payload log, or the requests and answers in them.

    For example:

        headrace payloads fraud

        headrace payloads fraud --rows 20
    """
    api = plane.connect()
    path = f"/api/v1/endpoints/{endpoint}/payloads"
    if not rows and not request:
        found = api.get(path)
        if json:
            write_json(found)
            return
        _show_files(found)
        return
    kept = api.get(f"{path}/rows", limit=rows or 1, request_id=request)["rows"]
    if json:
        write_json(kept)
    elif not kept:
        say(f"nothing was kept of '{endpoint}'")
    else:
        show(table(*cells(kept)))


def _show_files(found: Mapping[str, Any]) -> None:
    state = "on" if found["on"] else "off"
    say(f"payload log is {state}: {found['written']} written, {found['dropped']} dropped")
    if found["files"]:
        lines = [
            (
                file["begin"],
                f"v{file['version']}",
                bytes_text(file["bytes"]),
                "open" if file["open"] else "closed",
                file["path"],
            )
            for file in found["files"]
        ]
        show(table(lines, "begin", "version", "size", "state", "file"))


def cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[list[str]], *tuple[str, ...]]:
    """Lines of a table, and the names of its columns: of all that some row has."""
    names = dict.fromkeys(
        name for row in rows for name in row if not name.endswith(_SHAPE) and name != "trace_id"
    )
    lines = [[_cell(row.get(name)) for name in names] for row in rows]
    return lines, *names


def _cell(value: object) -> str:
    if value is None or value == "":
        return _NO
    if isinstance(value, float):
        return f"{value:.4g}"
    text = f"[{', '.join(map(_cell, value))}]" if isinstance(value, list) else str(value)
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"


HEADER: Final = (
    f"{'time':<12}  {'code':<17} {'endpoint':<16} {'version':<8} {'took':>9} {'replica':>9}  "
    f"{'caller':<16} {'trace':<32}  request"
)
_OK: Final = "OK"


def request_line(text: str) -> str:
    """`text`, a JSON line of the gateway's, in columns; as it is if it is something else."""
    try:
        entry = json.loads(text)
    except ValueError:
        return _one_line(text)
    if not isinstance(entry, Mapping):
        return _one_line(text)
    endpoint, version = _who_answered(entry)
    took_ms, replica_us = entry.get("duration_ms"), entry.get("replica_us")
    line = (
        f"{str(entry.get('time'))[11:23]:<12}  {_outcome(entry):<17} {endpoint:<16} {version:<8} "
        f"{_ms(took_ms):>9} {_ms(replica_us, 1000):>9}  {_text(entry, 'caller'):<16} "
        f"{trace_of(entry) or _NO:<32}  {_text(entry, 'method')} {_text(entry, 'path')}"
    )
    return _one_line(line)


def is_about(text: str, endpoint: str) -> bool:
    """Whether a JSON line is of a request to `endpoint`; of any if that is empty."""
    if not endpoint:
        return True
    try:
        entry = json.loads(text)
    except ValueError:
        return False
    return isinstance(entry, Mapping) and _who_answered(entry)[0] == endpoint


def trace_of(entry: Mapping[str, Any]) -> str:
    """The trace that a request belongs to; empty if nobody said."""
    if found := entry.get("trace_id"):
        return str(found)
    parts = str(entry.get("traceparent") or "").split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else ""  # noqa: PLR2004  # W3C's form


def _who_answered(entry: Mapping[str, Any]) -> tuple[str, str]:
    """Endpoint and version, of the cluster if one was reached."""
    endpoint, _, key = str(entry.get("cluster") or "").partition("~")
    if key:
        return endpoint, f"v{key}"
    return _text(entry, "endpoint"), _NO


def _outcome(entry: Mapping[str, Any]) -> str:
    """HTTP's status, gRPC's where it says more; why it ended early, if it did."""
    code, grpc = str(entry.get("code") or "left"), entry.get("grpc_status")
    flags = entry.get("flags")
    word = f"{code} {grpc}" if grpc and grpc != _OK and code == "200" else code
    return f"{word} {flags}" if flags and flags != _NO else word


def _ms(value: object, per_ms: int = 1) -> str:
    return f"{value / per_ms:.1f} ms" if isinstance(value, int | float) else _NO


def _text(entry: Mapping[str, Any], name: str) -> str:
    return str(entry.get(name) or _NO)


def _one_line(text: str) -> str:
    """What a caller sent may hold escapes: they stay on their line, off the terminal."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def logs(
    source: Annotated[
        str | None,
        typer.Argument(
            help="Only this process, by its name in `headrace status --json`.",
            show_default="all of them",
        ),
    ] = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until Ctrl-C.")] = False,
    tail: Annotated[int, typer.Option("--tail", "-n", min=0, help="How many lines.")] = 100,
    requests: Annotated[
        bool, typer.Option("--requests", help="Requests instead, as the gateway logged them.")
    ] = False,
    endpoint: Annotated[
        str,
        typer.Option(
            "--endpoint", "-e", help="With --requests: only of this one.", show_default="all"
        ),
    ] = "",
    log_format: LogFormatOption = None,
    plane: ControlPlane,
) -> None:
    """Print the newest log lines of all processes, also of those that have ended.

    For example:

        headrace logs -f

        headrace logs gateway --tail 20

        headrace logs --requests -e fraud -f
    """
    wanted = str(log_format or LogFormat.TEXT)
    if requests:
        if source is not None:
            raise typer.BadParameter("--requests are the gateway's: leave the process out")
        _requests(plane, endpoint, wanted, follow=follow, tail=tail)
        return
    lines: Iterable[str]
    target = plane.target()
    if follow or target.is_remote or read_control_file(plane.home) is not None:
        lines = target.management().lines(
            "/api/v1/logs", follow=int(follow), tail=tail, source=source, format=wanted
        )
    else:
        from headrace.cli.offline import log_lines

        lines = log_lines(plane.home, tail=tail, source=source or "", log_format=wanted)
        say(f"nothing runs on {plane.home}; this is what was logged before")
    for line in lines:
        write(line)


def _requests(plane: ControlPlane, endpoint: str, wanted: str, *, follow: bool, tail: int) -> None:
    """Print the request log, in columns or as it is."""
    api = plane.target().management()
    if follow and endpoint:
        api.get(f"/api/v1/endpoints/{endpoint}")  # nobody waits for what will not come
    lines = api.lines("/api/v1/logs", follow=int(follow), tail=tail, source="access", format="json")
    found = (line for line in lines if is_about(line, endpoint))
    first = next(found, None)
    if first is None:
        if endpoint:
            api.get(f"/api/v1/endpoints/{endpoint}")  # says so if there is no such endpoint
        say("no request was logged")
        return
    as_json = wanted == "json"
    if not as_json:
        say(HEADER)
    for line in itertools.chain([first], found):
        write(line if as_json else request_line(line))
