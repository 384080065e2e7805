"""Status of a stream, from what its workers report."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.observe.metrics import Family, Labels, counter, gauge
from headrace.streaming.settings import PartitionStatus, StreamStatus, WorkerState

STALLED_AFTER_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerView:
    """One member."""

    member: str
    state: str
    """The state that it reports, else `starting`, `stopping`, `waiting` (for its restart) or
    `silent` (it has not answered for a while, or waits for its broker's client).
    """
    pid: int | None = None
    restarts: int = 0
    partitions: tuple[str, ...] = ()
    lag_records: int | None = None
    rate: float = 0.0
    """Records answered per second."""
    answered: int = 0
    dead_letters: int = 0
    message: str = ""
    outdated: bool = False
    """Whether it still runs an earlier revision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamView:
    """One stream.

    Counts are since its workers started; lag is None if unknown.
    """

    name: str
    state: str
    """`running`, `paused`, `starting`, `retrying` (the endpoint or the broker is unavailable),
    `stalled` (for 30 s no worker has had a partition, although they run or wait for a missing
    topic), `degraded` (some workers do not run), or `failed` (none runs).
    """
    model: str
    topics: tuple[str, ...]
    sink: str
    """Output topic; empty if it only writes features."""
    group: str
    ready: int
    workers: int
    min_workers: int
    max_workers: int
    lag_records: int | None
    lag_s: float | None
    """Age in seconds of the oldest waiting record."""
    rate: float
    answered: int
    dead_letters: int
    retries: int
    restarts: int
    message: str
    """Reason why it is not running."""
    scaling: str
    members: tuple[WorkerView, ...]
    stalls: int = 0
    """Workers that ended because they hung."""
    running: int = 0
    """Workers that consume records."""
    failing: int = 0
    """Workers that ended several times in a row."""
    paused: bool = False
    """Whether it is paused by the spec or a command."""
    stuck: bool = False
    """Whether it cannot run without a change."""
    warning: str = ""
    """Problem of its answers although it runs: rows that depend on each other."""

    @property
    def is_well(self) -> bool:
        """Whether it runs, or is paused as requested."""
        return self.state in {"running", "paused"}

    @property
    def problem(self) -> str:
        """Reason why `is_well` is false; empty if it is true."""
        if self.is_well:
            return ""
        reason = f": {self.message}" if self.message else ""
        return f"{self.state}, {self.ready} of {self.workers} workers ready{reason}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lagging:
    """Lag of a stream over all partitions of its workers."""

    records: int | None
    seconds: float | None
    partitions: int | None
    """Number of partitions; None if members share one."""


def lag_of(statuses: Iterable[StreamStatus]) -> Lagging:
    """Return the lag of all members; a shared partition counts once."""
    partitions: dict[tuple[str, int], PartitionStatus] = {}
    count = 0
    for status in statuses:
        for partition in status.partitions:
            count += 1
            key = partition.topic, partition.partition
            before = partitions.get(key)
            if before is None or (partition.lag_records or 0) >= (before.lag_records or 0):
                partitions[key] = partition
    records = [
        partition.lag_records
        for partition in partitions.values()
        if partition.lag_records is not None
    ]
    seconds = [partition.lag_s for partition in partitions.values() if partition.lag_s is not None]
    return Lagging(
        records=sum(records) if records else None,
        seconds=max(seconds) if seconds else None,
        partitions=len(partitions) if partitions and count == len(partitions) else None,
    )


def state_of(workers: Sequence[WorkerView], *, count: int, paused: bool) -> str:
    """Return the stream's state in one word."""
    states = [worker.state for worker in workers]
    at_work = sum(state in _AT_WORK for state in states)
    if paused and all(state in {*_AT_WORK, "starting"} for state in states):
        return "paused"
    if at_work >= count and not any(worker.outdated for worker in workers):
        return "retrying" if any(state in _AWAY for state in states) else "running"
    failing = [worker for worker in workers if worker.state in _FAILING and worker.message]
    if failing:
        return "degraded" if at_work else "failed"
    return "starting"


def is_stalled(status: StreamStatus) -> bool:
    """Whether a worker has had no partition for longer than a rebalance takes."""
    waits = status.state is WorkerState.RUNNING or status.lacks_topic
    return waits and status.unassigned_s >= STALLED_AFTER_S


_FAILING = frozenset({"waiting", "silent"})
_AWAY = frozenset({WorkerState.RETRYING.value, WorkerState.RECONNECTING.value})
_AT_WORK = frozenset({WorkerState.RUNNING.value, WorkerState.PAUSED.value, *_AWAY})


def rates(before: Mapping[str, StreamStatus], now: Mapping[str, StreamStatus]) -> dict[str, float]:
    """Return the records answered per second by member, between two statuses; 0 after a restart."""
    by_member = {}
    for member, status in now.items():
        earlier = before.get(member)
        passed_s = 0.0 if earlier is None else status.lag_measured_at - earlier.lag_measured_at
        answered = 0 if earlier is None else status.answered - earlier.answered
        by_member[member] = answered / passed_s if passed_s > 0 and answered >= 0 else 0.0
    return by_member


def families(views: Iterable[StreamView]) -> list[Family]:
    """Return the control plane's metrics of streams; workers export their own metrics."""
    labelled: list[tuple[Labels, StreamView]] = [((("stream", v.name),), v) for v in views]
    gauges = [
        gauge(f"headrace_stream_{name}", text, [(labels, of(view)) for labels, view in labelled])
        for name, text, of in _GAUGES
    ]
    restarts = [(labels, view.restarts) for labels, view in labelled]
    stalls = [(labels, view.stalls) for labels, view in labelled]
    return [
        *gauges,
        counter("headrace_stream_worker_restarts_total", "Starts after a crash.", restarts),
        counter("headrace_stream_worker_stalls_total", "Workers that ended as they hung.", stalls),
    ]


_GAUGES: tuple[tuple[str, str, Callable[[StreamView], float]], ...] = (
    ("workers", "Workers that a stream should have.", lambda view: view.workers),
    ("workers_ready", "Workers that are members of its group.", lambda view: view.ready),
    ("workers_running", "Workers that process records.", lambda view: view.running),
    ("workers_failing", "Workers that ended several times in a row.", lambda view: view.failing),
    ("paused", "1 while it is paused as ordered.", lambda view: view.paused),
    ("up", "1 while it runs, or is paused as it should be.", lambda view: view.is_well),
)
