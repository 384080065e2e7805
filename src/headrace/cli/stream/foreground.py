"""Streams in the foreground: live scoring and replay, with workers as child processes."""

# ruff: noqa: PLC0415  # a command imports what it uses, so that each starts fast

import asyncio
import contextlib
import math
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

from headrace.cli.base.connection import CommandTarget, gateway
from headrace.cli.base.offline import resolver
from headrace.cli.base.options import (
    AllowCode,
    ControlPlaneOptions,
    Json,
    LogFormatOption,
    SpecOrRunning,
    StreamName,
    moment,
    option,
)
from headrace.cli.base.output import say, show_answer
from headrace.cli.stream.find import find_stream, open_broker_of
from headrace.control.base.log_files import LogFiles, LogFollower, render_line
from headrace.control.model.desired import DesiredStream
from headrace.control.streams.driver import StreamDriver, embedded_log
from headrace.control.streams.status import StreamView
from headrace.core import FailedPreconditionError, InvalidArgumentError, SystemClock
from headrace.core.text import iso_text
from headrace.streaming.broker import committed, span_from
from headrace.streaming.settings import WorkerSettings

if TYPE_CHECKING:
    from headrace.control.streams.supervisor import StreamSupervisor
    from headrace.core.spec.parse import SystemSpec
    from headrace.core.spec.streams import StreamSpec
    from headrace.streaming.broker import Broker, OffsetRange

_EVERY_S: Final = 0.2
_SHOW_EVERY: Final = 5
_CLEAR: Final = "\r\x1b[2K"
IsDone = Callable[[StreamView], Awaitable[bool]]
"""Predicate of whether a finite stream has ended."""


def resolved(
    spec: "SystemSpec", streams: "Sequence[StreamSpec]", home: Path, *, allow_code: bool
) -> tuple[DesiredStream, ...]:
    """Return the streams with their models pinned, as a control plane on `home` would.

    Raises:
        SpecError: A model is missing, or cannot be served.
    """
    only = spec.model_copy(update={"streams": tuple(streams)})
    with resolver(only, home, allow_code=allow_code) as pins:
        return pins.resolve_streams()


def with_workers(streams: Sequence[DesiredStream], count: int | None) -> list[DesiredStream]:
    """Return the streams with this number of workers; None for the number in the spec."""
    if count is None:
        return list(streams)
    return [
        msgspec.structs.replace(stream, min_workers=count, max_workers=count) for stream in streams
    ]


def make_topics(streams: Sequence[DesiredStream], home: Path) -> None:
    """Create missing topics of embedded logs, which no broker creates.

    Raises:
        HeadraceError: The log cannot be used.
    """
    for stream in streams:
        if embedded_log(stream.settings.broker, home) is None:
            continue
        with contextlib.closing(open_broker_of(stream.settings.broker, home)) as broker:
            for topic in stream.settings.topics:
                broker.create_topic(topic, partitions=stream.max_workers)


def gateway_of(home: Path) -> Callable[[WorkerSettings], WorkerSettings]:
    """Return a function that adds the gateway of the system on `home` to workers that need it."""
    from headrace.control.desired.resolve_streams import through_gateway

    def prepare(settings: WorkerSettings) -> WorkerSettings:
        if settings.endpoint is None:
            return settings

        address = gateway(CommandTarget(home=home))
        return through_gateway(settings, url=address.url, ca_file=address.ca_file or "")

    return prepare


@dataclass(slots=True, kw_only=True)
class Foreground:
    """Streams that run in child processes of this process until a signal, their end or an error."""

    streams: Sequence[DesiredStream]
    """Streams to run."""
    home: Path
    """Directory of the home."""
    log_format: str = "text"
    """Format of the workers' log lines on standard error."""
    is_done: IsDone | None = None
    """Whether a stream has ended; None for streams without end."""
    member_prefix: str = ""
    """Prefix of worker names, as of `StreamDriver`."""
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _hurry: bool = False

    def run(self) -> list[StreamView]:
        """Run until the end; return the final state of the streams.

        Raises:
            FailedPreconditionError: A worker ended for a reason that another try will not change.
        """
        return asyncio.run(self._run())

    async def _run(self) -> list[StreamView]:
        with tempfile.TemporaryDirectory(
            prefix="headrace-stream-", ignore_cleanup_errors=True
        ) as folder:
            return await self._run_in(Path(folder))

    async def _run_in(self, folder: Path) -> list[StreamView]:
        from headrace.control.streams.supervisor import StreamSupervisor

        logs = folder / "logs"
        logs.mkdir()
        supervisor = StreamSupervisor(
            driver=StreamDriver(
                run=folder / "run",
                sockets=folder,
                home=self.home.absolute(),
                log_of=lambda name: logs / f"{name}.log",
                attached=True,
                log_format=self.log_format,
                member_prefix=self.member_prefix,
            ),
            desired_streams=lambda: self.streams,
            prepare=gateway_of(self.home),
            emit=_no_listener,
            clock=SystemClock(),
        )
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        screen = _Screen(LogFollower(LogFiles(directory=logs)), self.log_format)
        failures: list[str] = []
        try:
            failures = await self._watch(supervisor, screen)
        finally:
            await supervisor.ask()
            views = list(supervisor.views())
            drain_s = max(stream.settings.drain_timeout_s for stream in self.streams)
            ending = asyncio.create_task(supervisor.stop(drain_s))
            while not ending.done():
                if self._hurry:
                    supervisor.kill()
                await asyncio.wait({ending}, timeout=_EVERY_S)
                screen.show([])
            await ending
            screen.show([])
        if failures:
            raise FailedPreconditionError("; ".join(failures))
        return views

    async def _watch(self, supervisor: "StreamSupervisor", screen: "_Screen") -> list[str]:
        """Wait for the end; return the reasons of a failure."""
        while not self._stop.is_set():
            await supervisor.step()
            views = supervisor.views()
            screen.show(views)
            failures = supervisor.dead_ends()
            if failures:
                return failures
            if self.is_done is not None and all([await self.is_done(view) for view in views]):
                return []
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), _EVERY_S)
        return []

    def _on_signal(self) -> None:
        """Stop gracefully at the first signal, immediately at the second."""
        if self._stop.is_set():
            self._hurry = True
        else:
            self._stop.set()


async def _no_listener(_: object) -> None:
    """Ignore events: output on the terminal replaces them."""


class _Screen:
    """Output on standard error: workers' logs, and on a terminal a live status line."""

    def __init__(self, follower: LogFollower, log_format: str) -> None:
        self._follower = follower
        self._log_format = log_format
        self._is_terminal = sys.stderr.isatty()
        self._turn = 0

    def show(self, views: Sequence[StreamView]) -> None:
        """Print new lines and the current status."""
        lines = [
            render_line(entry, log_format=self._log_format) for entry in self._follower.read_new()
        ]
        self._turn += 1
        if not self._is_terminal:
            for line in lines:
                say(line)
            return
        if lines:
            sys.stderr.write(_CLEAR + "\n".join(lines) + "\n")
        if views and (lines or self._turn % _SHOW_EVERY == 1):
            sys.stderr.write(_CLEAR + "   ".join(map(live_text, views)))
        elif not views:
            sys.stderr.write(_CLEAR)
        sys.stderr.flush()


def live_text(view: StreamView) -> str:
    """Return the state of a stream as a short text."""
    lag = "lag ?" if view.lag_records is None else f"lag {view.lag_records:,}"
    age = "" if not view.lag_s else f" ({view.lag_s:.1f} s)"
    dead_letters = f", {view.dead_letters:,} dead letters" if view.dead_letters else ""
    return (
        f"{view.name}: {view.state}, {view.rate:,.0f} records/s, {lag}{age}, "
        f"{view.answered:,} answered{dead_letters}"
    )


_IDLE_S: Final = 10.0
_REPORT_AFTER_S: Final = 2.0
_MAX_NAMED: Final = 128


def replay(
    name: StreamName,
    since: Annotated[
        str,
        option(
            "Start time of the replay: 2026-11-27T06:00Z, or -2h (s, m, h or d).",
            "--from",
            metavar="TIME",
        ),
    ],
    *,
    to: Annotated[str, option("Topic for answers.", metavar="TOPIC", shown="the sink")] = "",
    group: Annotated[
        str,
        option(
            "Consumer group of the replay; repeat it to continue an interrupted replay.",
            shown="NAME-replay-TIME",
        ),
    ] = "",
    move: Annotated[
        bool,
        option(
            "Reset the offsets of the stopped stream itself to that time; it scores the records "
            "again when it runs.",
            "--move",
        ),
    ] = False,
    dry_run: Annotated[
        bool, option("Show what the replay would do without doing it.", "--dry-run")
    ] = False,
    workers: Annotated[int | None, option("Processes.", min=1, max=1024, shown="1")] = None,
    allow_code: AllowCode = False,
    file: SpecOrRunning = None,
    json: Json = False,
    log_format: LogFormatOption = None,
    plane: ControlPlaneOptions,
) -> None:
    """Score records written since a given time again, up to now, and exit.

    Runs in this process with a separate consumer group: the stream continues, and its offsets do
    not change.

    For example:

        headrace stream replay fraud --from -2h --to fraud-again

        headrace stream replay fraud --from 2026-11-27T06:00Z --move
    """
    at_s = moment(since, now=SystemClock().now())
    if move and (to or group):
        msg = "--move resets the stream itself: omit --to and --group"
        raise InvalidArgumentError(msg)
    stream = find_stream(name, file=file, plane=plane)
    if to and stream.sink is None:
        msg = f"stream '{name}' pushes features and has no answer topic: omit --to"
        raise InvalidArgumentError(msg)
    with closing(open_broker_of(stream.source.broker, plane.home)) as broker:
        span = span_from(broker, stream.source.topics, at_s)
        own = stream.source.group or name
        usual = f"{name[:_MAX_NAMED]}-replay-{iso_text(at_s).replace(':', '').replace('-', '')}"
        group = own if move else group or usual
        if group == own and not move:
            msg = f"'{group}' is the stream's own consumer group; pass another one, or --move"
            raise InvalidArgumentError(msg)
        description = (
            f"{span.records:,} records of {', '.join(stream.source.topics)} "
            f"({span.partitions} of {len(span.end)} partitions) since {iso_text(at_s)}"
        )
        if stream.sink is not None:
            into = to or stream.sink.topic
        else:
            into = f"view {stream.push.view}" if stream.push is not None else ""
        does = (
            f"resets group '{group}' to {iso_text(at_s)}: it scores {span.records:,} records "
            "again and writes to its sink"
            if move
            else f"scores {description} again and writes to {into}, as group '{group}'"
        )
        say(("dry run: " if dry_run else "") + f"replay of '{name}' {does}")
        answered: int | None = None
        if move and not dry_run:
            broker.set_committed(group, dict(span.first))
        elif not dry_run and span.records:
            answered = _score(
                stream,
                broker,
                span,
                home=plane.home,
                at_s=at_s,
                to=to,
                group=group,
                workers=workers,
                allow_code=allow_code,
                log_format=str(log_format or "text"),
            )
    answer = {
        "group": group,
        "from_s": at_s,
        "records": span.records,
        "answered": answered,
        "moved": move and not dry_run,
        "dry_run": dry_run,
    }
    show_answer(answer, json=json)


def _score(
    stream: "StreamSpec",
    broker: "Broker",
    span: "OffsetRange",
    *,
    home: Path,
    at_s: float,
    to: str,
    group: str,
    workers: int | None,
    allow_code: bool,
    log_format: str,
) -> int:
    """Run the stream as another group up to the end; return the number of responses."""
    from headrace.core.spec.parse import SystemSpec
    from headrace.streaming.settings import check_settings
    from headrace.streaming.windows.state_file import state_folder

    spec = SystemSpec.model_construct(version=1, streams=(stream,))
    resolved_stream = with_workers(
        resolved(spec, [stream], home, allow_code=allow_code), workers or 1
    )[0]
    # Another name: brokers that deduplicate records would drop the results.
    settings = msgspec.structs.replace(
        resolved_stream.settings,
        name=group,
        group=group,
        sink=to or resolved_stream.settings.sink,
        start_s=at_s,
        paused=False,
    )
    check_settings(settings)
    replayed = msgspec.structs.replace(resolved_stream, name=group, settings=settings)
    views = Foreground(
        streams=[replayed], home=home, log_format=log_format, is_done=_done(broker, span, settings)
    ).run()
    is_through = span.is_done(committed(broker, group, settings.topics))
    for view in views:
        say(live_text(view))
    if is_through:
        rmtree(state_folder(msgspec.structs.replace(settings, home=str(home))), ignore_errors=True)
    else:
        say(f"incomplete; continue with the same command and --group {group}")
    return sum(view.answered for view in views)


def _done(broker: "Broker", span: "OffsetRange", settings: "WorkerSettings") -> "IsDone":
    """Return a predicate: the group has passed the end, or no record came for a while.

    The second condition applies if offsets have gaps at the end, as those of transactions do.
    """
    progress = {"answered": -1.0, "at": time.monotonic(), "looked": 0.0, "reached": math.inf}

    async def is_done(view: "StreamView") -> bool:
        now = time.monotonic()
        total = view.answered + view.dead_letters
        if total != progress["answered"] or view.state != "running":
            progress.update(answered=total, at=now)
        if now - progress["looked"] < 1.0:
            return False
        progress["looked"] = now
        reached = await asyncio.to_thread(committed, broker, settings.group, settings.topics)
        if span.is_done(reached):
            progress["reached"] = min(progress["reached"], now)
        # Counts are reported a moment later.
        is_idle = total > 0 and now - progress["at"] > _IDLE_S
        return now - progress["reached"] > _REPORT_AFTER_S or is_idle

    return is_done
