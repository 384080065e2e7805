"""Supervisor of stream workers, which observes, plans and acts a few times per second.

Workers outlive the control plane, and the next one adopts them. Failures of workers do not affect
requests to endpoints.
"""

import asyncio
import logging
import math
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

import msgspec

from headrace.autoscale.stream import StreamScaleState
from headrace.control.base.faults import LOOP, Faults, write_events
from headrace.control.base.log_files import last_line
from headrace.control.model.desired import DesiredStream
from headrace.control.model.observed import CRASHED
from headrace.control.model.records import Event
from headrace.control.streams.driver import StreamDriver, member_of
from headrace.control.streams.plan import (
    LOAD_TIMEOUT_S,
    SILENT_TIMEOUT_S,
    STALLED_TIMEOUT_S,
    Forget,
    Kill,
    Replace,
    StartWorker,
    Stop,
    WorkerPhase,
    WorkerTimeouts,
    plan,
)
from headrace.control.streams.reports import (
    WorkerPoller,
    count_of,
    event_of,
    expired_before,
    expired_event,
    facts_of,
    is_scaled,
    metrics_of,
    replaced_event,
    rescale,
    send_command,
    track_team,
    view_of,
)
from headrace.control.streams.status import StreamView, families
from headrace.control.streams.workers import StreamPoint, StreamWorker, Team, note_end, revision_of
from headrace.core import Clock, NotFoundError
from headrace.core.state_file import StateFile
from headrace.monitor.slo import StreamFacts
from headrace.observe.metrics import Family, MetricSource
from headrace.streaming.settings import EXIT_STALLED, StreamStatus, WorkerSettings, WorkerState

_LOG: Final = logging.getLogger("headrace.control")
_INTERVAL_S: Final = 0.2
_POLL_EVERY_S: Final = 1.0
_POLL_INTERVAL_S: Final = 0.05
_DRAIN_S: Final = 30.0
"""Drain time in seconds of a worker whose stream was removed."""


class StreamOrders(msgspec.Struct, frozen=True, kw_only=True):
    """State of one stream, besides the spec, that survives a restart of the control plane."""

    paused: bool | None = None
    """Pause command; None follows the spec. It is valid while the spec's value is `spec_paused`."""
    spec_paused: bool = False
    workers: int | None = None
    """Number of workers last computed from the lag; None if unknown."""
    groups: tuple[str, ...] = ()
    """Consumer groups that have window states on this machine."""


_FORGETFUL: Final = StateFile(None, dict[str, StreamOrders], "the orders of streams")


@dataclass(slots=True, kw_only=True)
class StreamSupervisor:
    """Runs the desired streams.

    `wanted`: the desired streams.
    """

    driver: StreamDriver
    desired_streams: Callable[[], Sequence[DesiredStream]]
    prepare: Callable[[WorkerSettings], WorkerSettings]
    """Adds settings to those of a worker, such as the gateway's address."""
    emit: Callable[[Sequence[Event]], Awaitable[None]]
    """Records events."""
    clock: Clock
    memory: StateFile[dict[str, StreamOrders]] = _FORGETFUL
    faults: Faults = field(default_factory=Faults)
    silent_timeout_s: float = SILENT_TIMEOUT_S
    """Longest silence in seconds of a worker that has joined; it is replaced after it."""
    load_timeout_s: float = LOAD_TIMEOUT_S
    """Longest silence in seconds of a worker that has not joined yet."""
    _teams: dict[str, Team] = field(default_factory=dict)
    _overrides: dict[str, StreamOrders] = field(default_factory=dict)
    _events: list[Event] = field(default_factory=list)
    _asked_at: float = -math.inf
    _poller: WorkerPoller = field(init=False)

    def __post_init__(self) -> None:
        self._poller = WorkerPoller(self.driver, self.clock)

    def load(self) -> None:
        """Load commands, and adopt running workers; call it before `run`. Blocking."""
        self._overrides = self.memory.load() or {}
        now = self.clock.monotonic()
        for record, process in self.driver.adopt():
            phase = WorkerPhase.ENDED if process is None else WorkerPhase.STARTING
            if record.was_ready and process is not None:
                phase = WorkerPhase.READY
            worker = StreamWorker(record=record, process=process, since=now, phase=phase)
            self._team(record.stream, 1).workers[record.index] = worker
            self._team(record.stream, 1).restarts += record.restarts
            if process is not None:
                _LOG.info("adopted stream worker", extra={"worker": record.name})

    async def run(self) -> None:
        """Supervise workers until cancelled; workers keep running then."""
        while True:
            with self.faults.contain(LOOP, "streams"):
                await self.step()
            await asyncio.sleep(_INTERVAL_S)

    async def step(self) -> None:
        """Poll once, and execute due actions."""
        self._collect()
        if self.clock.monotonic() - self._asked_at >= _POLL_EVERY_S:
            self._asked_at = self.clock.monotonic()
            await self.ask()
            self._rescale()
            await self._announce()
        desired = {stream.name: stream for stream in self.desired_streams()}
        names = dict.fromkeys([*desired, *self._teams, *self._overrides])
        for name in names:
            with self.faults.contain("stream", name):
                self._act(name, desired.get(name))
        for kind in ("stream", "stream processes", "stream scale", "stream view"):
            self.faults.keep_only(kind, names)

    async def stop(self, drain_s: float) -> int:
        """Drain all workers, kill those that do not exit in time, and return their number.

        `run` must have ended.
        """
        running = [worker for team in self._teams.values() for worker in team.running()]
        for worker in running:
            worker.send(signal.SIGTERM)
        deadline = self.clock.monotonic() + drain_s
        while any(worker.process is not None and worker.process.is_running() for worker in running):
            if self.clock.monotonic() >= deadline:
                self.kill()
            await asyncio.sleep(_POLL_INTERVAL_S)
        for worker in self._workers():
            if worker.process is not None:
                worker.process.close()
            self.driver.forget(worker.record)
        self._teams.clear()
        return len(running)

    def kill(self) -> None:
        """Kill all workers while `stop` waits for them."""
        for worker in self._workers():
            worker.send(signal.SIGKILL)

    def views(self) -> tuple[StreamView, ...]:
        """Return the views of all streams."""
        views = []
        for stream in self.desired_streams():
            with self.faults.contain("stream view", stream.name):
                views.append(self._view(stream))
        return tuple(views)

    def view(self, name: str) -> StreamView:
        """Return the view of one stream.

        Raises:
            NotFoundError: There is no stream of this name.
        """
        return self._view(self._find(name))

    async def pause(self, name: str, *, paused: bool) -> StreamView:
        """Pause or resume a stream; the command survives restarts.

        Raises:
            NotFoundError: There is no stream of this name.
        """
        stream = self._find(name)
        before = self._overrides.get(name, StreamOrders())
        self._overrides[name] = msgspec.structs.replace(
            before, paused=paused, spec_paused=stream.settings.paused
        )
        self.memory.try_save(self._overrides)
        for worker in self._team(name, stream.min_workers).workers.values():
            if not paused and worker.phase is WorkerPhase.ENDED:
                worker.start_at = 0.0  # the user has fixed the cause of the stop
            if worker.process is not None:
                address = self.driver.address_of(worker.record)
                await send_command(address, "pause" if paused else "resume")
        await self.ask()
        return self._view(stream)

    def facts(self) -> dict[str, StreamFacts]:
        """Return the facts for alerts of each polled stream."""
        if self._asked_at == -math.inf:
            return {}
        now = self.clock.now()
        return {
            view.name: facts_of(view, self._teams[view.name].track, now=now)
            for view in self.views()
        }

    def history(self, name: str, *, seconds: float, maximum: int) -> list[StreamPoint]:
        """Return a stream's history of the last `seconds`, in about `most` steps at most.

        Raises:
            NotFoundError: There is no stream of this name.
        """
        team = self._team(name, self._find(name).min_workers)
        return team.track.points(seconds, now=self.clock.now(), maximum=maximum)

    def dead_ends(self) -> list[str]:
        """Return why workers ended whose restart will probably fail too."""
        return [
            f"stream '{worker.record.stream}': {worker.message}"
            for worker in self._workers()
            if worker.is_dead_end
        ]

    async def metrics(self) -> list[MetricSource]:
        """Return the metrics of each worker, with its name."""
        workers = [worker for worker in self._workers() if worker.process is not None]
        addresses = [self.driver.address_of(worker.record) for worker in workers]
        texts = await asyncio.gather(*map(metrics_of, addresses))
        return [
            MetricSource(text=text, labels={"worker": worker.record.name})
            for worker, text in zip(workers, texts, strict=True)
        ]

    def families(self) -> list[Family]:
        """Return the supervisor's own metrics."""
        return families(self.views())

    def pids(self) -> dict[str, int]:
        """Return the pids by worker name."""
        return {
            f"stream-{worker.record.name}": worker.process.pid
            for worker in self._workers()
            if worker.process is not None
        }

    def _workers(self) -> Iterator[StreamWorker]:
        return (worker for team in self._teams.values() for worker in team.workers.values())

    def _find(self, name: str) -> DesiredStream:
        desired = next((stream for stream in self.desired_streams() if stream.name == name), None)
        if desired is None:
            names = ", ".join(stream.name for stream in self.desired_streams())
            raise NotFoundError(
                f"unknown stream '{name}'" + (f"; there are: {names}" if names else "")
            )
        return desired

    def _team(self, name: str, minimum: int) -> Team:
        if name not in self._teams:
            override = self._overrides.get(name, StreamOrders())
            workers = minimum if override.workers is None else max(override.workers, minimum)
            self._teams[name] = Team(scale=StreamScaleState(workers=workers))
        return self._teams[name]

    def _is_paused(self, stream: DesiredStream) -> bool:
        override = self._overrides.get(stream.name)
        if (
            override is None
            or override.paused is None
            or override.spec_paused != stream.settings.paused
        ):
            return stream.settings.paused
        return override.paused

    # Ended processes.

    def _collect(self) -> None:
        """Release ended processes, and decide when they restart."""
        now = self.clock.monotonic()
        for name, team in self._teams.items():
            with self.faults.contain("stream processes", name):
                for worker in list(team.running()):
                    assert worker.process is not None, "it runs"
                    lives, code = worker.process.is_running(), worker.process.exit_status
                    if lives:
                        continue
                    worker.process.close()
                    worker.process = None
                    self.driver.clean(worker.record)
                    member = worker.record.name
                    line = last_line(self.driver.log_of(f"stream-{member}"))
                    was_killed = bool(worker.killed_for)
                    if note_end(worker, code, last_line=line, now=now):
                        team.restarts += 1
                        team.stalls += was_killed or code == EXIT_STALLED
                        if code == EXIT_STALLED:
                            event = replaced_event(worker, line, timestamp=self.clock.now())
                            self._events.append(event)
                        extra = {"worker": member, "why": worker.message}
                        _LOG.warning("stream worker ended", extra=extra)

    # Reports of workers.

    async def ask(self) -> None:
        """Poll the status of all workers."""
        workers = [worker for worker in self._workers() if worker.process is not None]
        before = {worker.record.name: expired_before(worker) for worker in workers}
        for worker, status in await self._poller.poll(workers):
            expired = status.expired - before[worker.record.name]
            if expired > 0:
                self._events.append(expired_event(worker, expired, timestamp=self.clock.now()))
            await self._agree(worker, status)
        for team in self._teams.values():
            track_team(team, now=self.clock.now())

    async def _agree(self, worker: StreamWorker, status: StreamStatus) -> None:
        """Pause or resume a worker whose state differs from the desired one."""
        stream = next((s for s in self.desired_streams() if s.name == worker.record.stream), None)
        if stream is None or worker.phase is not WorkerPhase.READY:
            return
        paused, address = self._is_paused(stream), self.driver.address_of(worker.record)
        if status.state is WorkerState.PAUSED and not paused:
            await send_command(address, "resume")
        elif status.state in {WorkerState.RUNNING, WorkerState.RETRYING} and paused:
            await send_command(address, "pause")

    def _rescale(self) -> None:
        for stream in filter(is_scaled, self.desired_streams()):
            with self.faults.contain("stream scale", stream.name):
                team, now = self._team(stream.name, stream.min_workers), self.clock.monotonic()
                if not rescale(team, stream, paused=self._is_paused(stream), now=now):
                    continue
                count = team.scale.workers
                extra = {"stream": stream.name, "workers": count, "why": team.scaling}
                _LOG.info("stream scaled", extra=extra)
                override = self._overrides.get(stream.name, StreamOrders())
                self._overrides[stream.name] = msgspec.structs.replace(override, workers=count)
                self.memory.try_save(self._overrides)

    # Actions.

    def _act(self, name: str, desired: DesiredStream | None) -> None:
        stream = self._team(name, 0 if desired is None else desired.min_workers)
        settings = None if desired is None else self.prepare(desired.settings)
        actions = plan(
            [worker.observed() for worker in stream.workers.values()],
            revision="" if settings is None else revision_of(settings),
            count=0 if desired is None else count_of(desired, stream),
            timeouts=WorkerTimeouts(
                drain_timeout_s=_DRAIN_S if settings is None else settings.drain_timeout_s,
                silent_timeout_s=self.silent_timeout_s,
                load_timeout_s=self.load_timeout_s,
                still_timeout_s=STALLED_TIMEOUT_S
                + (0.0 if settings is None else settings.handover_s),
            ),
            now=self.clock.monotonic(),
        )
        for action in actions:
            match action:
                case StartWorker(index):
                    assert desired is not None, "nothing is started that is not wanted"
                    assert settings is not None, "as above"
                    paused = self._is_paused(desired)
                    self._start(
                        stream, desired, msgspec.structs.replace(settings, paused=paused), index
                    )
                case Stop(index):
                    self._send(stream.workers[index], signal.SIGTERM)
                case Kill(index):
                    self._send(stream.workers[index], signal.SIGKILL)
                case Replace(index, why):
                    self._replace(stream.workers[index], why)
                case Forget(index):
                    self.driver.forget(stream.workers.pop(index).record)
                case other:
                    assert_never(other)
        if desired is None and not stream.workers:
            self._forget(name)

    def _forget(self, name: str) -> None:
        """Remove the commands and window states of a removed stream."""
        del self._teams[name]
        override = self._overrides.pop(name, None)
        if override is None:
            return
        for group in override.groups:
            self.driver.forget_state(name, group)
        self.memory.try_save(self._overrides)

    def _start(
        self, stream: Team, desired: DesiredStream, settings: WorkerSettings, index: int
    ) -> None:
        previous, now = stream.workers.get(index), self.clock.monotonic()
        if now < stream.hold_until:
            return
        self._note_state(desired)
        revision = revision_of(settings)
        failures = (
            0 if previous is None or previous.record.revision != revision else previous.failures
        )
        restarts = 0 if previous is None else previous.record.restarts + bool(previous.failures)
        try:
            record, process = self.driver.start(
                desired.name, index, settings, revision=revision, restarts=restarts
            )
        except OSError as error:
            reason = error.strerror or str(error)
            _LOG.error(
                "cannot start a stream worker",
                extra={"worker": member_of(desired.name, index), "error": reason},
            )
            stream.start_failures += 1
            stream.start_error = reason
            stream.hold_until = now + CRASHED.delay_s(stream.start_failures)
            return
        stream.start_failures, stream.start_error = 0, ""
        message = "" if previous is None else previous.message
        stream.workers[index] = StreamWorker(
            record=record,
            process=process,
            since=now,
            failures=failures,
            message=message,
            asks_endpoint=settings.endpoint is not None,
        )

    def _note_state(self, desired: DesiredStream) -> None:
        """Record the group of new window states, which are removed with the stream."""
        name, group = desired.name, desired.settings.group
        override = self._overrides.get(name, StreamOrders())
        if desired.settings.windows is not None and group not in override.groups:
            groups = (*override.groups, group)
            self._overrides[name] = msgspec.structs.replace(override, groups=groups)
            self.memory.try_save(self._overrides)

    def _send(self, worker: StreamWorker, signum: signal.Signals) -> None:
        worker.send(signum)
        if worker.phase is not WorkerPhase.STOPPING:
            worker.phase, worker.since = WorkerPhase.STOPPING, self.clock.monotonic()

    def _replace(self, worker: StreamWorker, reason: str) -> None:
        """Kill a worker that hangs; `_collect` detects its end."""
        worker.killed_for = f"{reason}, and was stopped"
        extra = {"worker": worker.record.name, "why": reason}
        _LOG.warning("stream worker hangs; stopping it", extra=extra)
        self._events.append(replaced_event(worker, worker.killed_for, timestamp=self.clock.now()))
        worker.send(signal.SIGKILL)

    # Events.

    async def _announce(self) -> None:
        """Emit an event when the state of a stream changes, except for brief changes."""
        events, self._events = self._events, []
        for view in self.views():
            stream = self._teams.get(view.name)
            if stream is None or view.state in {"starting", stream.announced_state}:
                continue
            before, stream.announced_state = stream.announced_state, view.state
            events.append(event_of(view, before=before, timestamp=self.clock.now()))
        if events:
            await write_events(self.emit, events)

    def _view(self, desired: DesiredStream) -> StreamView:
        return view_of(
            desired,
            self._team(desired.name, desired.min_workers),
            revision=revision_of(self.prepare(desired.settings)),
            paused=self._is_paused(desired),
            now=self.clock.monotonic(),
        )
