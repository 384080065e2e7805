"""Who keeps the workers of streams at their number? Looks, plans, acts; a few times a second.

Workers outlive the control plane, and the next one adopts them. Whatever becomes of one, requests
to endpoints are none of its business.
"""

import asyncio
import hashlib
import logging
import math
import signal
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, assert_never

import msgspec

from headrace.autoscale.stream import (
    StreamLook,
    StreamScale,
    StreamScaleState,
    scale_stream,
)
from headrace.control.backoff import CANNOT_LOAD, CRASHED, STABLE_AFTER_S
from headrace.control.desired import DesiredStream
from headrace.control.fetch import fetch
from headrace.control.log_files import last_line
from headrace.control.metrics import Source
from headrace.control.process import Process
from headrace.control.store import Event
from headrace.control.streams.driver import StreamDriver, WorkerRecord, member_of
from headrace.control.streams.memory import StreamMemory, StreamOrders, begin
from headrace.control.streams.plan import Forget, Kill, Phase, Seen, Start, Stop, plan
from headrace.control.streams.status import (
    StreamView,
    WorkerView,
    families,
    lag_of,
    rates,
    state_of,
)
from headrace.core import Clock, HeadraceError, NotFoundError
from headrace.streaming.run import (
    EXIT_CANNOT_JOIN,
    EXIT_CANNOT_LISTEN,
    EXIT_CANNOT_LOAD,
    EXIT_REPLACED,
    EXIT_SETTINGS,
    EXIT_STOPPED_BY_RECORD,
)
from headrace.streaming.settings import StreamSettings
from headrace.streaming.status import State, StreamStatus

_LOG: Final = logging.getLogger("headrace.control")
_EVERY_S: Final = 0.2
_ASK_EVERY_S: Final = 1.0
_ASK_TIMEOUT_S: Final = 2.0
_OK: Final = 200
_JOINED: Final = frozenset({State.RUNNING, State.PAUSED, State.RETRYING})
_SLOWLY: Final = frozenset(
    {EXIT_SETTINGS, EXIT_CANNOT_LOAD, EXIT_CANNOT_LISTEN, EXIT_CANNOT_JOIN, EXIT_REPLACED}
)
"""Ends of a worker that another try will hardly change."""


@dataclass(slots=True, kw_only=True)
class _Worker:
    """A member and its process; None once that ended."""

    record: WorkerRecord
    process: Process | None
    since: float
    phase: Phase = Phase.STARTING
    failures: int = 0
    start_at: float = 0.0
    message: str = ""
    code: int | None = None
    asks_endpoint: bool = False
    status: StreamStatus | None = None
    rate: float = 0.0

    def seen(self) -> Seen:
        """As planning sees it."""
        return Seen(
            index=self.record.index,
            revision=self.record.revision,
            phase=self.phase,
            since=self.since,
            start_at=self.start_at,
        )


@dataclass(slots=True, kw_only=True)
class _Stream:
    """What is remembered of a stream that should run, or has workers left."""

    scale: StreamScaleState
    workers: dict[int, _Worker] = field(default_factory=dict)
    scaling: str = ""
    restarts: int = 0
    told: str = ""


@dataclass(slots=True, kw_only=True)
class StreamSupervisor:
    """Runs the streams that are wanted.

    `wanted`: the streams as they should be. `prepare`: what workers are told besides, such as where
    the gateway is. `emit`: takes what happened.
    """

    driver: StreamDriver
    wanted: Callable[[], Sequence[DesiredStream]]
    prepare: Callable[[StreamSettings], StreamSettings]
    emit: Callable[[Sequence[Event]], Awaitable[None]]
    clock: Clock
    memory: StreamMemory
    _streams: dict[str, _Stream] = field(default_factory=dict)
    _orders: dict[str, StreamOrders] = field(default_factory=dict)
    _asked_at: float = -math.inf
    _is_ending: bool = False

    def load(self) -> None:
        """Remember orders, and adopt the workers that run; before `run`. Blocking."""
        self._orders = self.memory.read()
        now = self.clock.monotonic()
        for record, process in self.driver.adopt():
            phase = Phase.ENDED if process is None else Phase.STARTING
            if record.was_ready and process is not None:
                phase = Phase.READY
            worker = _Worker(record=record, process=process, since=now, phase=phase)
            self._stream(record.stream, 1).workers[record.index] = worker
            self._stream(record.stream, 1).restarts += record.restarts
            if process is not None:
                _LOG.info("adopted stream worker", extra={"worker": record.member})

    async def run(self) -> None:
        """Keep everything as it should be until cancelled; workers go on then."""
        while True:
            try:
                await self.step()
            except Exception:  # noqa: BLE001  # a supervisor's edge: endpoints are served on
                _LOG.exception("looking after streams failed")
            await asyncio.sleep(_EVERY_S)

    async def step(self) -> None:
        """Look once, and do what is due."""
        self._collect()
        if self.clock.monotonic() - self._asked_at >= _ASK_EVERY_S:
            self._asked_at = self.clock.monotonic()
            await self.ask()
            self._rescale()
            await self._announce()
        wanted = {stream.name: stream for stream in self.wanted()}
        for name in dict.fromkeys([*wanted, *self._streams]):
            self._act(name, wanted.get(name))

    async def stop(self, drain_s: float) -> int:
        """Let all workers finish and end, those that do not by SIGKILL; how many there were.

        `run` has to be over.
        """
        running = [w for stream in self._streams.values() for w in stream.workers.values()]
        running = [worker for worker in running if worker.process is not None]
        for worker in running:
            assert worker.process is not None, "just chosen"
            worker.process.send(signal.SIGTERM)
        deadline = self.clock.monotonic() + drain_s
        while any(w.process is not None and w.process.is_running() for w in running):
            if self.clock.monotonic() >= deadline:
                for worker in running:
                    if worker.process is not None:
                        worker.process.send(signal.SIGKILL)
                deadline = math.inf
            await asyncio.sleep(0.05)
        for stream in self._streams.values():
            for worker in stream.workers.values():
                if worker.process is not None:
                    worker.process.close()
                self.driver.forget(worker.record)
        self._streams.clear()
        return len(running)

    def kill(self) -> None:
        """End all workers now, while `stop` waits for them."""
        for stream in self._streams.values():
            for worker in stream.workers.values():
                if worker.process is not None:
                    worker.process.send(signal.SIGKILL)

    def views(self) -> tuple[StreamView, ...]:
        """How each stream is."""
        return tuple(self._view(stream) for stream in self.wanted())

    def view(self, name: str) -> StreamView:
        """How one stream is.

        Raises:
            NotFoundError: There is none of this name.
        """
        return self._view(self._find(name))

    async def pause(self, name: str, *, paused: bool) -> StreamView:
        """Let a stream take no more records, or take them again; holds over restarts.

        Raises:
            NotFoundError: There is none of this name.
        """
        stream = self._find(name)
        before = self._orders.get(name, StreamOrders())
        self._orders[name] = msgspec.structs.replace(
            before, paused=paused, spec_paused=stream.settings.paused
        )
        self._keep_orders()
        for worker in self._stream(name, stream.min_workers).workers.values():
            if not paused and worker.phase is Phase.ENDED:
                worker.start_at = 0.0  # whoever says so has seen to what it stopped before
            await self._tell(worker, "pause" if paused else "resume")
        await self.ask()
        return self._view(stream)

    def dead_ends(self) -> list[str]:
        """Why workers ended that will hardly do better the next time."""
        return [
            f"stream '{worker.record.stream}': {worker.message}"
            for stream in self._streams.values()
            for worker in stream.workers.values()
            if worker.phase is Phase.ENDED and worker.code in {*_SLOWLY, EXIT_STOPPED_BY_RECORD}
        ]

    async def metrics(self) -> list[Source]:
        """What each worker counts, and its name."""
        workers = [w for s in self._streams.values() for w in s.workers.values() if _runs(w)]
        texts = await asyncio.gather(*(self._text(worker) for worker in workers))
        return [
            Source(text=text, labels={"worker": worker.record.member})
            for worker, text in zip(workers, texts, strict=True)
        ]

    def exposition(self) -> str:
        """What is counted here."""
        return families(self.views())

    def pids(self) -> dict[str, int]:
        """Processes by name."""
        return {
            f"stream-{worker.record.member}": worker.process.pid
            for stream in self._streams.values()
            for worker in stream.workers.values()
            if worker.process is not None
        }

    def _find(self, name: str) -> DesiredStream:
        found = next((stream for stream in self.wanted() if stream.name == name), None)
        if found is None:
            known = ", ".join(stream.name for stream in self.wanted())
            raise NotFoundError(
                f"there is no stream '{name}'" + (f"; there are: {known}" if known else "")
            )
        return found

    def _stream(self, name: str, least: int) -> _Stream:
        if name not in self._streams:
            self._streams[name] = _Stream(scale=begin(self._orders.get(name), least=least))
        return self._streams[name]

    def _is_paused(self, stream: DesiredStream) -> bool:
        orders = self._orders.get(stream.name)
        if orders is None or orders.paused is None or orders.spec_paused != stream.settings.paused:
            return stream.settings.paused
        return orders.paused

    def _keep_orders(self) -> None:
        try:
            self.memory.write(self._orders)
        except OSError as error:
            _LOG.error("cannot keep what was ordered of streams", extra={"error": str(error)})

    # What became of processes.

    def _collect(self) -> None:
        """Let go of processes that ended, and decide when they start again."""
        now = self.clock.monotonic()
        for stream in self._streams.values():
            for worker in stream.workers.values():
                if worker.process is None:
                    continue
                lives, code = worker.process.poll()
                if not lives:
                    self._note_end(stream, worker, code, now)

    def _note_end(self, stream: _Stream, worker: _Worker, code: int | None, now: float) -> None:
        assert worker.process is not None, "it ran until now"
        worker.process.close()
        worker.process = None
        self.driver.clean(worker.record)
        was, worker.phase, worker.status, worker.rate = worker.phase, Phase.ENDED, None, 0.0
        if was is Phase.STOPPING:
            worker.failures, worker.start_at, worker.message = 0, 0.0, ""
            return
        if was is Phase.READY and now - worker.since >= STABLE_AFTER_S:
            worker.failures = 0
        worker.failures += 1
        worker.code = code
        stream.restarts += 1
        said = last_line(self.driver.log_of(f"stream-{worker.record.member}"))
        worker.message = _why(code, said)
        # An endpoint that cannot be asked yet is soon there; a model stays as it is.
        is_soon = code == EXIT_CANNOT_LOAD and worker.asks_endpoint
        policy = CANNOT_LOAD if code in _SLOWLY and not is_soon else CRASHED
        delay_s = policy.delay_s(worker.failures)
        worker.start_at = math.inf if code == EXIT_STOPPED_BY_RECORD else now + delay_s
        extra = {"worker": worker.record.member, "why": worker.message}
        _LOG.warning("stream worker ended", extra=extra)

    # What workers say.

    async def ask(self) -> None:
        """Hear from all workers how they are."""
        workers = [w for s in self._streams.values() for w in s.workers.values() if _runs(w)]
        before = {w.record.member: w.status for w in workers if w.status is not None}
        answers = await asyncio.gather(*(self._status(worker) for worker in workers))
        now = {
            worker.record.member: status
            for worker, status in zip(workers, answers, strict=True)
            if status is not None
        }
        found = rates(before, now)
        for worker, status in zip(workers, answers, strict=True):
            if status is None or worker.phase is Phase.ENDED:
                continue
            worker.status, worker.rate = status, found[worker.record.member]
            if worker.phase is Phase.STARTING and status.state in _JOINED:
                worker.phase = Phase.READY
                worker.since, worker.message = self.clock.monotonic(), ""
                worker.record = msgspec.structs.replace(worker.record, was_ready=True)
                self.driver.note(worker.record)
            await self._agree(worker, status)

    async def _agree(self, worker: _Worker, status: StreamStatus) -> None:
        """Pause or resume a worker that is not as it should be."""
        stream = next((s for s in self.wanted() if s.name == worker.record.stream), None)
        if stream is None or worker.phase is not Phase.READY:
            return
        paused = self._is_paused(stream)
        if status.state is State.PAUSED and not paused:
            await self._tell(worker, "resume")
        elif status.state is State.RUNNING and paused:
            await self._tell(worker, "pause")

    async def _status(self, worker: _Worker) -> StreamStatus | None:
        body = await self._fetch(worker, "/internal/status")
        if body is None:
            return None
        try:
            return msgspec.json.decode(body, type=StreamStatus)
        except msgspec.DecodeError:
            return None

    async def _text(self, worker: _Worker) -> str:
        body = await self._fetch(worker, "/metrics")
        return "" if body is None else body.decode("utf-8", "replace")

    async def _tell(self, worker: _Worker, verb: str) -> None:
        if _runs(worker):
            await self._fetch(worker, f"/internal/{verb}", method="POST")

    async def _fetch(self, worker: _Worker, path: str, method: str = "GET") -> bytes | None:
        address = self.driver.address_of(worker.record)
        try:
            answer = await fetch(address, path, timeout_s=_ASK_TIMEOUT_S, method=method)
        except HeadraceError:
            return None  # it starts, or hangs; its process says more
        return answer.body if answer.status == _OK else None

    # What is to be done.

    def _rescale(self) -> None:
        for wanted in self.wanted():
            if wanted.min_workers >= wanted.max_workers:
                continue
            stream = self._stream(wanted.name, wanted.min_workers)
            statuses = [w.status for w in stream.workers.values() if w.status is not None]
            lag = lag_of(statuses)
            is_whole = len(statuses) >= stream.scale.workers and not self._is_paused(wanted)
            look = StreamLook(
                now=self.clock.monotonic(),
                lag_records=lag.records if is_whole else None,
                lag_s=lag.seconds if is_whole else None,
                rate=sum(worker.rate for worker in stream.workers.values()),
                partitions=lag.partitions,
            )
            scale = StreamScale(
                min_workers=wanted.min_workers,
                max_workers=wanted.max_workers,
                target_lag_s=wanted.target_lag_s,
            )
            before = stream.scale.workers
            wish, stream.scale = scale_stream(scale, look, stream.scale)
            stream.scaling = f"{wish.reason}: {wish.message}" if wish.message else wish.reason
            if stream.scale.workers != before:
                extra = {"stream": wanted.name, "workers": wish.count, "why": wish.message}
                _LOG.info("stream scaled", extra=extra)
                orders = self._orders.get(wanted.name, StreamOrders())
                self._orders[wanted.name] = msgspec.structs.replace(orders, workers=wish.count)
                self._keep_orders()

    def _act(self, name: str, wanted: DesiredStream | None) -> None:
        stream = self._stream(name, 0 if wanted is None else wanted.min_workers)
        told = None if wanted is None else self.prepare(wanted.settings)
        actions = plan(
            [worker.seen() for worker in stream.workers.values()],
            revision="" if told is None else revision_of(told),
            count=0 if wanted is None else self._count(wanted, stream),
            drain_timeout_s=_DEFAULT_DRAIN_S if told is None else told.drain_timeout_s,
            now=self.clock.monotonic(),
        )
        for action in actions:
            match action:
                case Start(index):
                    assert wanted is not None, "nothing is started that is not wanted"
                    assert told is not None, "as above"
                    paused = self._is_paused(wanted)
                    self._start(stream, wanted, msgspec.structs.replace(told, paused=paused), index)
                case Stop(index):
                    self._send(stream.workers[index], signal.SIGTERM)
                case Kill(index):
                    self._send(stream.workers[index], signal.SIGKILL)
                case Forget(index):
                    self.driver.forget(stream.workers.pop(index).record)
                case other:
                    assert_never(other)
        if wanted is None and not stream.workers:
            del self._streams[name]
            if self._orders.pop(name, None) is not None:
                self._keep_orders()

    def _count(self, wanted: DesiredStream, stream: _Stream) -> int:
        if wanted.min_workers >= wanted.max_workers:
            return wanted.min_workers
        return min(max(stream.scale.workers, wanted.min_workers), wanted.max_workers)

    def _start(
        self, stream: _Stream, wanted: DesiredStream, told: StreamSettings, index: int
    ) -> None:
        former, now = stream.workers.get(index), self.clock.monotonic()
        revision = revision_of(told)
        failures = 0 if former is None or former.record.revision != revision else former.failures
        restarts = 0 if former is None else former.record.restarts + bool(former.failures)
        try:
            record, process = self.driver.start(
                wanted.name, index, told, revision=revision, restarts=restarts
            )
        except OSError as error:
            why = error.strerror or str(error)
            _LOG.error(
                "cannot start a stream worker",
                extra={"worker": member_of(wanted.name, index), "error": why},
            )
            if former is not None:
                former.failures += 1
                former.start_at = now + CRASHED.delay_s(former.failures)
                former.message = f"cannot start a process: {why}"
            return
        message = "" if former is None else former.message
        stream.workers[index] = _Worker(
            record=record,
            process=process,
            since=now,
            failures=failures,
            message=message,
            asks_endpoint=told.endpoint is not None,
        )

    def _send(self, worker: _Worker, signum: signal.Signals) -> None:
        if worker.process is not None:
            worker.process.send(signum)
        if worker.phase is not Phase.STOPPING:
            worker.phase, worker.since = Phase.STOPPING, self.clock.monotonic()

    # What is told.

    async def _announce(self) -> None:
        """An event whenever the state of a stream is another, but for what passes in a moment."""
        events = []
        for view in self.views():
            stream = self._streams.get(view.name)
            if stream is None or view.state in {"starting", stream.told}:
                continue
            before, stream.told = stream.told, view.state
            events.append(_event(view, before, at=self.clock.now()))
        if events:
            try:
                await self.emit(events)
            except HeadraceError as error:
                _LOG.error("cannot write an event", extra={"error": str(error)})

    def _view(self, wanted: DesiredStream) -> StreamView:
        stream = self._stream(wanted.name, wanted.min_workers)
        revision = revision_of(self.prepare(wanted.settings))
        members = tuple(
            _worker_view(worker, revision) for _, worker in sorted(stream.workers.items())
        )
        statuses = [w.status for w in stream.workers.values() if w.status is not None]
        lag, count = lag_of(statuses), self._count(wanted, stream)
        paused = self._is_paused(wanted)
        return StreamView(
            name=wanted.name,
            state=state_of(members, wanted=count, paused=paused) if members else "starting",
            model=wanted.model,
            topics=tuple(wanted.settings.topics),
            sink=wanted.settings.sink,
            group=wanted.settings.group,
            ready=sum(worker.phase is Phase.READY for worker in stream.workers.values()),
            workers=count,
            min_workers=wanted.min_workers,
            max_workers=wanted.max_workers,
            lag_records=lag.records,
            lag_s=lag.seconds,
            rate=sum(worker.rate for worker in stream.workers.values()),
            answered=sum(status.answered for status in statuses),
            dead_letters=sum(status.dead_letters for status in statuses),
            retries=sum(status.retries for status in statuses),
            restarts=stream.restarts,
            message=next((member.message for member in members if member.message), ""),
            scaling=stream.scaling,
            members=members,
        )


_DEFAULT_DRAIN_S: Final = 30.0


def revision_of(settings: StreamSettings) -> str:
    """The digest of everything that a running worker depends on; whether it is paused is not."""
    same = msgspec.structs.replace(settings, paused=False)
    return hashlib.sha256(msgspec.json.encode(same, order="deterministic")).hexdigest()[:16]


def _runs(worker: _Worker) -> bool:
    return worker.process is not None


def _why(code: int | None, said: str) -> str:
    if code is not None and code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return said or f"ended with status {code}"


def _worker_view(worker: _Worker, revision: str) -> WorkerView:
    status = worker.status
    state = str(worker.phase) if status is None else str(status.state)
    if worker.phase is Phase.ENDED:
        state = "waiting"
    elif worker.phase is Phase.STOPPING:
        state = str(worker.phase)
    elif status is None:
        state = "starting"  # adopted, and not asked yet
    places = [] if status is None else status.places
    lags = [place.lag_records for place in places if place.lag_records is not None]
    return WorkerView(
        member=worker.record.member,
        state=state,
        pid=None if worker.process is None else worker.process.pid,
        restarts=worker.record.restarts,
        partitions=tuple(f"{place.topic}/{place.partition}" for place in places),
        lag_records=sum(lags) if lags else None,
        rate=worker.rate,
        answered=0 if status is None else status.answered,
        dead_letters=0 if status is None else status.dead_letters,
        message=worker.message if status is None else status.trouble or worker.message,
        outdated=worker.record.revision != revision,
    )


def _event(view: StreamView, before: str, *, at: float) -> Event:
    reason, text = _TOLD[view.state]
    message = f"stream '{view.name}' {text}"
    if view.message and view.state not in {"running", "paused"}:
        message = f"{message}: {view.message}"
    data = {"stream": view.name, "before": before, "workers": view.workers, "ready": view.ready}
    return Event(at=at, endpoint="", kind="stream", reason=reason, message=message, data=data)


_TOLD: Final = {
    "running": ("StreamRunning", "runs"),
    "paused": ("StreamPaused", "is paused"),
    "retrying": ("StreamRetrying", "waits for what it needs"),
    "degraded": ("StreamDegraded", "has lost workers"),
    "failed": ("StreamFailed", "does not run"),
}
