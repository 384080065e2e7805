"""Runs streams in the foreground: workers as child processes, no control plane, no gateway."""

import asyncio
import contextlib
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from headrace.cli.output import say
from headrace.cli.stream_find import open_broker_of
from headrace.control.desired import DesiredStream
from headrace.control.log_files import LogFiles, LogFollower, render_line
from headrace.control.stream_settings import through_gateway
from headrace.control.streams.confining import embedded_log
from headrace.control.streams.driver import StreamDriver
from headrace.control.streams.status import StreamView
from headrace.control.streams.supervisor import StreamSupervisor
from headrace.core import FailedPreconditionError, SystemClock
from headrace.core.spec import SystemSpec
from headrace.core.spec_streams import StreamSpec
from headrace.streaming.settings import StreamSettings

_EVERY_S: Final = 0.2
_SHOW_EVERY: Final = 5
_CLEAR: Final = "\r\x1b[2K"

IsDone = Callable[[StreamView], Awaitable[bool]]
"""Whether a stream that has an end has come there."""


def resolved(
    spec: SystemSpec, streams: Sequence[StreamSpec], home: Path, *, allow_code: bool
) -> tuple[DesiredStream, ...]:
    """The streams with their models pinned, as a control plane on `home` would.

    Raises:
        SpecError: A model is missing, or cannot be served.
    """
    from headrace.control.resolve import Resolver  # noqa: PLC0415  # as above
    from headrace.control.sandboxed import SandboxedInspector  # noqa: PLC0415  # costly
    from headrace.registry import Registry  # noqa: PLC0415  # as above

    with contextlib.closing(SandboxedInspector.of_home(home)) as inspect:
        resolver = Resolver(
            registry=Registry(home, inspect),
            inspect=inspect,
            spec=spec.model_copy(update={"streams": tuple(streams)}),
            max_body_bytes=spec.gateway.max_body_bytes,
            allow_code=allow_code,
        )
        return resolver.resolve_streams()


def with_workers(streams: Sequence[DesiredStream], count: int | None) -> list[DesiredStream]:
    """The streams with so many workers each; None for what they say."""
    if count is None:
        return list(streams)
    return [
        msgspec.structs.replace(stream, min_workers=count, max_workers=count) for stream in streams
    ]


def make_topics(streams: Sequence[DesiredStream], home: Path) -> None:
    """Make what streams read from embedded logs, where it is not there: nobody else will.

    Raises:
        HeadraceError: The log cannot be used.
    """
    for stream in streams:
        if embedded_log(stream.settings.broker, home) is None:
            continue
        with contextlib.closing(open_broker_of(stream.settings.broker, home)) as broker:
            for topic in stream.settings.topics:
                broker.create_topic(topic, partitions=stream.max_workers)


def gateway_of(home: Path) -> Callable[[StreamSettings], StreamSettings]:
    """Tells workers where the gateway of what runs on `home` is, if they need it."""

    def prepare(settings: StreamSettings) -> StreamSettings:
        if settings.endpoint is None:
            return settings
        from headrace.cli.connection import Target  # noqa: PLC0415  # few streams need it
        from headrace.cli.running import gateway  # noqa: PLC0415  # as above

        found = gateway(Target(home=home))
        return through_gateway(settings, url=found.url, ca_file=found.ca_file or "")

    return prepare


@dataclass(slots=True, kw_only=True)
class Foreground:
    """Streams in this process's children, until a signal, an end, or a mistake.

    `is_done`: None for streams that go on. `log_format`: of what workers say, on standard error.
    `member_prefix`: as `StreamDriver` has it.
    """

    streams: Sequence[DesiredStream]
    home: Path
    log_format: str = "text"
    is_done: IsDone | None = None
    member_prefix: str = ""
    _stop: asyncio.Event = field(default_factory=asyncio.Event)
    _hurry: bool = False

    def run(self) -> list[StreamView]:
        """Run until it is over; how the streams were at the end.

        Raises:
            FailedPreconditionError: A worker ended for a reason that another try will not change.
        """
        return asyncio.run(self._run())

    async def _run(self) -> list[StreamView]:
        folder = Path(tempfile.mkdtemp(prefix="headrace-stream-"))
        try:
            return await self._run_in(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _run_in(self, folder: Path) -> list[StreamView]:
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
            wanted=lambda: self.streams,
            prepare=gateway_of(self.home),
            emit=_nobody,
            clock=SystemClock(),
        )
        self._hear(asyncio.get_running_loop())
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

    async def _watch(self, supervisor: StreamSupervisor, screen: "_Screen") -> list[str]:
        """Until it is over; why, if it went wrong."""
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

    def _hear(self, loop: asyncio.AbstractEventLoop) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told)

    def _told(self) -> None:
        """The first signal ends it in order, the second at once."""
        if self._stop.is_set():
            self._hurry = True
        else:
            self._stop.set()


async def _nobody(_: object) -> None:
    """Nobody reads events: whoever runs this sees it."""


class _Screen:
    """What a person sees on standard error: workers' logs, and on a terminal a line that lives."""

    def __init__(self, follower: LogFollower, log_format: str) -> None:
        self._follower = follower
        self._log_format = log_format
        self._is_terminal = sys.stderr.isatty()
        self._turn = 0

    def show(self, views: Sequence[StreamView]) -> None:
        """New lines, and how it is now."""
        lines = [render_line(one, log_format=self._log_format) for one in self._follower.read_new()]
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
    """How a stream is, in a few words."""
    lag = "lag ?" if view.lag_records is None else f"lag {view.lag_records:,}"
    age = "" if not view.lag_s else f" ({view.lag_s:.1f} s)"
    letters = f", {view.dead_letters:,} dead letters" if view.dead_letters else ""
    return (
        f"{view.name}: {view.state}, {view.rate:,.0f} records/s, {lag}{age}, "
        f"{view.answered:,} answered{letters}"
    )
