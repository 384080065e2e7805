"""`headrace stream replay`: score again what was written since some time."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import math
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from headrace.cli.options import DEFAULT_HOME, AllowCode, Home, Json, LogFormatOption, Server

if TYPE_CHECKING:
    from headrace.cli.stream_here import IsDone
    from headrace.control.streams.status import StreamView
    from headrace.core.spec_streams import StreamSpec
    from headrace.streaming.broker import Broker
    from headrace.streaming.replay import Span
    from headrace.streaming.settings import StreamSettings

_IDLE_S: Final = 10.0
_TOLD_AFTER_S: Final = 2.0
_MOST_NAMED: Final = 128


def replay(
    name: Annotated[str, typer.Argument(help="The stream.", show_default=False)],
    since: Annotated[
        str,
        typer.Option(
            "--from",
            metavar="TIME",
            help="What was written since then: 2026-11-27T06:00Z, or -2h (s, m, h or d).",
            show_default=False,
        ),
    ],
    *,
    to: Annotated[
        str,
        typer.Option("--to", metavar="TOPIC", help="Answers go there.", show_default="the sink"),
    ] = "",
    group: Annotated[
        str,
        typer.Option(
            "--group",
            help="Whose offsets tell how far it is; the same one goes on after an end.",
            show_default="NAME-replay-TIME",
        ),
    ] = "",
    move: Annotated[
        bool,
        typer.Option(
            "--move",
            help="Instead: put the stopped stream itself back to that time; it scores again when "
            "it runs.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")
    ] = False,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, max=1024, help="Processes.", show_default="1")
    ] = None,
    allow_code: AllowCode = False,
    file: Annotated[
        Path | None,
        typer.Option(
            "--file",
            "-f",
            help="The spec file that has it.",
            exists=True,
            dir_okay=False,
            show_default="what runs, else headrace.yaml",
        ),
    ] = None,
    json: Json = False,
    log_format: LogFormatOption = None,
    server: Server = None,
    home: Home = DEFAULT_HOME,
) -> None:
    """Score again what was written since a time, up to now; then end.

    It runs here, in a group of its own: the stream itself goes on meanwhile, and its offsets stay.

    For example:

        headrace stream replay fraud --from -2h --to fraud-again

        headrace stream replay fraud --from 2026-11-27T06:00Z --move
    """
    from headrace.cli.output import say, write_json
    from headrace.cli.quantities import moment
    from headrace.cli.stream_find import find_stream, open_broker_of
    from headrace.core import InvalidArgumentError, SystemClock
    from headrace.core.text import iso_text
    from headrace.streaming.replay import span_from

    at_s = moment(since, now=SystemClock().now())
    if move and (to or group):
        msg = "--move sets the stream itself back: leave --to and --group out"
        raise InvalidArgumentError(msg)
    stream = find_stream(name, file=file, server=server, home=home)
    if to and stream.sink is None:
        msg = f"stream '{name}' has no answers: it pushes features; leave --to out"
        raise InvalidArgumentError(msg)
    with closing(open_broker_of(stream.source.broker, home)) as broker:
        span = span_from(broker, stream.source.topics, at_s)
        own = stream.source.group or name
        group = own if move else group or _group(name, at_s)
        if group == own and not move:
            msg = f"'{group}' is the stream's own group; name another, or say --move"
            raise InvalidArgumentError(msg)
        what = (
            f"{span.records:,} records of {', '.join(stream.source.topics)} "
            f"({span.partitions} of {len(span.end)} partitions) since {iso_text(at_s)}"
        )
        does = (
            f"puts group '{group}' back to {iso_text(at_s)}: it scores {span.records:,} records "
            "again, into its sink"
            if move
            else f"scores {what} again, into {to or _goes_to(stream)}, as group '{group}'"
        )
        say(("would do: " if dry_run else "") + f"replay of '{name}' {does}")
        answered: int | None = None
        if move and not dry_run:
            broker.set_committed(group, dict(span.first))
        elif not dry_run and span.records:
            answered = _score(
                stream,
                broker,
                span,
                home=home,
                at_s=at_s,
                to=to,
                group=group,
                workers=workers,
                allow_code=allow_code,
                log_format=str(log_format or "text"),
            )
    if json:
        write_json(
            {
                "group": group,
                "from_s": at_s,
                "records": span.records,
                "answered": answered,
                "moved": move and not dry_run,
                "dry_run": dry_run,
            }
        )


def _goes_to(stream: "StreamSpec") -> str:
    if stream.sink is not None:
        return stream.sink.topic
    assert stream.push is not None, "what has no sink pushes"
    return f"view {stream.push.view}"


def _group(name: str, at_s: float) -> str:
    from headrace.core.text import iso_text

    return f"{name[:_MOST_NAMED]}-replay-{iso_text(at_s).replace(':', '').replace('-', '')}"


def _score(
    stream: "StreamSpec",
    broker: "Broker",
    span: "Span",
    *,
    home: Path,
    at_s: float,
    to: str,
    group: str,
    workers: int | None,
    allow_code: bool,
    log_format: str,
) -> int:
    """Run the stream as another group until it is through; how many it answered."""
    from shutil import rmtree

    import msgspec

    from headrace.cli.output import say
    from headrace.cli.stream_here import Foreground, live_text, resolved, with_workers
    from headrace.core.spec import SystemSpec
    from headrace.streaming.replay import committed
    from headrace.streaming.settings import check_settings
    from headrace.streaming.windows.state_file import state_folder

    spec = SystemSpec.model_construct(version=1, streams=(stream,))
    found = with_workers(resolved(spec, [stream], home, allow_code=allow_code), workers or 1)[0]
    # Another name: brokers that drop what they have seen would drop the answers.
    settings = msgspec.structs.replace(
        found.settings,
        name=group,
        group=group,
        sink=to or found.settings.sink,
        start_s=at_s,
        paused=False,
    )
    check_settings(settings)
    replayed = msgspec.structs.replace(found, name=group, settings=settings)
    views = Foreground(
        streams=[replayed], home=home, log_format=log_format, is_done=_done(broker, span, settings)
    ).run()
    is_through = span.is_done(committed(broker, group, settings.topics))
    for view in views:
        say(live_text(view))
    if is_through:
        rmtree(state_folder(msgspec.structs.replace(settings, home=str(home))), ignore_errors=True)
    else:
        say(f"not all of it is done; the same command with --group {group} goes on")
    return sum(view.answered for view in views)


def _done(broker: "Broker", span: "Span", settings: "StreamSettings") -> "IsDone":
    """Through when the group has passed the end, or when nothing has come for a while.

    The second holds where offsets have gaps at the end, as those of transactions do.
    """
    import asyncio
    import time

    from headrace.streaming.replay import committed

    seen = {"answered": -1.0, "at": time.monotonic(), "looked": 0.0, "reached": math.inf}

    async def is_done(view: "StreamView") -> bool:
        now = time.monotonic()
        total = view.answered + view.dead_letters
        if total != seen["answered"] or view.state != "running":
            seen.update(answered=total, at=now)
        if now - seen["looked"] < 1.0:
            return False
        seen["looked"] = now
        reached = await asyncio.to_thread(committed, broker, settings.group, settings.topics)
        if span.is_done(reached):
            seen["reached"] = min(seen["reached"], now)
        # What it counted is told a moment later.
        is_idle = total > 0 and now - seen["at"] > _IDLE_S
        return now - seen["reached"] > _TOLD_AFTER_S or is_idle

    return is_done
