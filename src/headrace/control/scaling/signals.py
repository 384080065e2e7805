"""Load of an arm from replicas' counters, and its share of the endpoint's load."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import msgspec

from headrace.autoscale import IntervalCounts, Meter, ReplicaUsage, ScalerState, Signals
from headrace.autoscale.state import mean_in_flight
from headrace.control.desired.target import BASELINE, TargetState, in_force, is_current
from headrace.control.model.desired import DesiredArm, DesiredEndpoint
from headrace.control.model.records import RolloutRecord
from headrace.core.spec.scale import AutoscaleSpec
from headrace.monitor import RequestWindow
from headrace.serving.telemetry.report import ReplicaReport

STALE_S: Final = 5.0
"""Seconds without change after which a report is stale."""
_USAGE_S: Final = 600.0
_FEWEST_STREAMS: Final = 20
"""Minimum number of streams for the p99 of the time to the first token."""


@dataclass(slots=True)
class _LastReport:
    """Newest report of one replica, its monotonic time, and its difference from the last one."""

    report: ReplicaReport
    received_at: float
    arrivals: float | None = None
    cores: float = 0.0
    unseen: float = 0.0
    """Mean number of requests that began and ended since the report before; only for a language
    model, which does not count them."""


@dataclass(slots=True)
class _Usage:
    """Summed resource use of an arm's replicas; halved periodically, so that old data fades."""

    seconds: float = 0.0
    answered: float = 0.0
    cpu_s: float = 0.0
    run_s: float = 0.0
    busy_s: float = 0.0
    """Seconds for which a replica's busiest part was busy."""

    def add(self, delta: "_Delta") -> None:
        part = 0.5 if self.seconds > _USAGE_S else 1.0
        self.seconds = self.seconds * part + delta.seconds
        self.answered = self.answered * part + delta.answered
        self.cpu_s = self.cpu_s * part + delta.cpu_s
        self.run_s = self.run_s * part + delta.all_runs_s
        self.busy_s = self.busy_s * part + delta.busy_s


@dataclass(slots=True)
class ArmMeter:
    """Computes signals from the reports of one arm's ready replicas."""

    _meter: Meter = field(default_factory=Meter.new)
    _last_reports: dict[str, _LastReport] = field(default_factory=dict)
    _usage: _Usage = field(default_factory=_Usage)

    def signals(
        self,
        ready: Sequence[str],
        reports: Mapping[str, ReplicaReport | None],
        settings: AutoscaleSpec,
        *,
        now: float,
        monotonic: float,
        starting: int,
        held: int,
        at_gateway: int | None = None,
    ) -> Signals:
        """Return the current signals.

        Args:
            ready: Names of the ready replicas.
            reports: Newest report of each replica; None or absent if it never reported.
            now: Seconds since 1970; `monotonic` is the same time on the monotonic clock.
            at_gateway: Requests in flight at the gateway, including those that a replica has not
                read from its socket yet. None if the gateway does not report them.
        """
        self._last_reports = {
            name: last for name, last in self._last_reports.items() if name in ready
        }
        deltas = [self._take(name, reports.get(name), monotonic) for name in ready]
        fresh = [delta for delta in deltas if delta is not None]
        recent = [
            last for last in self._last_reports.values() if monotonic - last.received_at <= STALE_S
        ]
        rated = [last.arrivals for last in recent if last.arrivals is not None]
        loops = sum(delta.loop_s for delta in fresh)
        slots = sum(delta.slot_s for delta in fresh)
        runs = max((last.report.max_concurrent_runs for last in recent), default=1)
        return self._meter.signals(
            self._counts(fresh, sum(rated)) if rated else None,
            settings,
            now=now,
            ready=len(ready),
            starting=starting,
            in_flight=_in_flight(recent, at_gateway),
            # If the event loop is the bottleneck, a replica processes one request at a time.
            concurrency=max(runs, 1) if slots >= loops else 1,
            held=held,
            is_partial=len(rated) < len(ready),
        )

    @property
    def cores(self) -> float:
        """The cores that its replicas use together now."""
        return sum(last.cores for last in self._last_reports.values())

    @property
    def cores_per_busy_copy(self) -> float:
        """The cores that a replica uses while its busiest part is busy; 0 if unknown."""
        usage = self._usage
        return usage.cpu_s / usage.busy_s if usage.busy_s > 1.0 else 0.0

    @property
    def memory_bytes(self) -> int:
        """The peak memory in bytes of the largest replica; 0 if unknown."""
        peaks = [
            max(s.report.peak_rss_bytes, s.report.rss_bytes) for s in self._last_reports.values()
        ]
        return max(peaks, default=0)

    def observed(self) -> ReplicaUsage:
        """Return the usage from which a recommendation is computed."""
        reports = [last.report for last in self._last_reports.values()]
        usage = self._usage
        return ReplicaUsage(
            seconds=usage.seconds,
            replicas=1,  # the sums are over replica seconds
            answered=int(usage.answered),
            cpu_s=usage.cpu_s,
            busy_s=usage.run_s,
            rss_bytes=max((report.rss_bytes for report in reports), default=0),
            peak_rss_bytes=self.memory_bytes,
            intra_op_threads=max((r.intra_op_threads for r in reports), default=0),
            max_concurrent_runs=max((r.max_concurrent_runs for r in reports), default=0),
        )

    def _take(self, name: str, report: ReplicaReport | None, monotonic: float) -> "_Delta | None":
        """Return the change since the last report of this replica; None without a new report."""
        last = self._last_reports.get(name)
        if report is None or (last is not None and last.report.at == report.at):
            return None
        self._last_reports[name] = after = _LastReport(report, monotonic)
        if last is None:
            return None
        delta = _Delta.between(last.report, report)
        after.arrivals = delta.arrived / delta.seconds
        after.cores = delta.cpu_s / delta.seconds
        if not (report.answered or last.report.in_flight or report.in_flight):
            after.unseen = delta.run_s / delta.seconds
        self._usage.add(delta)
        return delta

    @staticmethod
    def _counts(fresh: "Sequence[_Delta]", arrivals: float) -> IntervalCounts:
        columns = zip(*(delta.latencies for delta in fresh), strict=False)
        return IntervalCounts(
            seconds=1.0,
            arrived=arrivals,
            answered=sum(delta.answered for delta in fresh),
            busy_s=sum(delta.busy_s for delta in fresh),
            run_s=sum(delta.run_s for delta in fresh),
            wait_s=sum(delta.wait_s for delta in fresh),
            latencies=tuple(sum(column) for column in columns),
            bounds_s=fresh[0].bounds_s if fresh else (),
            latency_s=sum(delta.latency_s for delta in fresh),
        )


def with_first_tokens(signals: Signals, state: ScalerState, streams: RequestWindow) -> Signals:
    """Return a language model's signals with its streams' rate and p99 to the first token.

    The p99 is None unless the ready replicas have more than one request each in the panic window:
    on more replicas, a prompt that has a replica for itself is not read any sooner.

    Args:
        streams: Streams that ended since the last scale-up; `latency` is the time to the first
            token.
    """
    count, in_flight = sum(streams.latency.values()), mean_in_flight(state.panic)
    is_shared = in_flight is not None and in_flight.value > signals.ready
    return msgspec.structs.replace(
        signals,
        arrivals=count / streams.duration_s,
        p99_s=streams.quantile(0.99) if is_shared and count >= _FEWEST_STREAMS else None,
    )


def _in_flight(recent: Sequence[_LastReport], at_gateway: int | None) -> float | None:
    if not recent:
        return None if at_gateway is None else float(at_gateway)
    return max(sum(last.report.in_flight + last.unseen for last in recent), float(at_gateway or 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Delta:
    """Activity of one replica between two reports."""

    seconds: float
    arrived: int
    answered: int
    wait_s: float
    run_s: float
    """Run seconds summed over the answered requests."""
    all_runs_s: float
    """Run seconds that count each batch once."""
    slot_s: float
    """`all_runs_s` divided by the number of parallel runs."""
    loop_s: float
    """Busy seconds of its event loop."""
    cpu_s: float
    latencies: tuple[int, ...]
    bounds_s: tuple[float, ...]
    latency_s: float

    @property
    def busy_s(self) -> float:
        """The busy seconds of its busiest part."""
        return max(self.slot_s, self.loop_s)

    @classmethod
    def between(cls, before: ReplicaReport, after: ReplicaReport) -> "_Delta":
        """Return the change between two reports; a restarted process counts from 0."""
        is_reset = after.cpu_s < before.cpu_s or after.answered < before.answered
        old = _nothing(after) if is_reset or after.bounds_s != before.bounds_s else before
        runs_s = max(after.busy_s - old.busy_s, 0.0)
        return cls(
            seconds=max(after.at - before.at, 1e-3),
            arrived=max(after.received - old.received, 0),
            answered=after.answered - old.answered,
            wait_s=max(after.queue_wait_s - old.queue_wait_s, 0.0),
            run_s=max(after.run_s - old.run_s, 0.0),
            all_runs_s=runs_s,
            slot_s=runs_s / max(after.max_concurrent_runs, 1),
            loop_s=max(after.loop_s - old.loop_s, 0.0),
            cpu_s=max(after.cpu_s - old.cpu_s, 0.0),
            latencies=tuple(
                max(now - before, 0)
                for now, before in zip(after.request, old.request, strict=False)
            ),
            bounds_s=tuple(after.bounds_s),
            latency_s=max(after.request_s - old.request_s, 0.0),
        )


def _nothing(like: ReplicaReport) -> ReplicaReport:
    """Return an initial report of the same replica, with all counters 0."""
    return ReplicaReport(
        replica=like.replica,
        model=like.model,
        version=like.version,
        at=like.at,
        ready=False,
        bounds_s=like.bounds_s,
        queue_wait=[0] * len(like.queue_wait),
        request=[0] * len(like.request),
    )


_FULL: Final = 100
_EPSILON: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class ScaledArm:
    """An arm that this autoscaler scales."""

    endpoint: DesiredEndpoint
    arm: DesiredArm
    share: float
    is_moving: bool
    """Whether its endpoint has a running rollout."""
    settings: AutoscaleSpec

    @property
    def key(self) -> tuple[str, str]:
        """Endpoint and arm."""
        return self.endpoint.name, self.arm.key

    @property
    def minimum(self) -> int:
        """Its minimum replicas while its endpoint is not scaled to zero."""
        return max(part_of(self.settings.min_replicas, self.share), 1)

    def settings_for(self, floor: int) -> AutoscaleSpec:
        """Return the endpoint's settings for this arm, with at least `floor` replicas."""
        settings = self.settings
        minimum = max(part_of(settings.min_replicas, self.share), floor)
        if settings.min_replicas or self.is_moving:
            minimum = max(minimum, 1)
        schedule = tuple(
            msgspec.structs.replace(
                hint, min_replicas=max(part_of(hint.min_replicas, self.share), 1)
            )
            for hint in settings.schedule
        )
        return msgspec.structs.replace(
            settings, min_replicas=min(minimum, settings.max_replicas), schedule=schedule
        )


def scaled_arms(target_state: TargetState) -> list[list[ScaledArm]]:
    """Return all arms that this autoscaler scales, grouped by endpoint."""
    groups = []
    for desired in target_state.desired.endpoints:
        rollout = target_state.rollouts.get(desired.name)
        if rollout is not None and not is_current(rollout, desired):
            rollout = None
        endpoint = in_force(desired, rollout)
        if endpoint.autoscale is None:
            continue
        shares = shares_of(endpoint, rollout)
        arms = [
            ScaledArm(
                endpoint=endpoint,
                arm=arm,
                share=shares[arm.key],
                is_moving=_is_moving(rollout),
                settings=endpoint.autoscale,
            )
            for arm in endpoint.arms
            if arm.revision.upstream is None and not arm.revision.pool
        ]
        if arms:
            groups.append(arms)
    return groups


def shares_of(endpoint: DesiredEndpoint, rollout: RolloutRecord | None) -> dict[str, float]:
    """Return each arm's share (0 to 1) of the load, by its key.

    It is the arm's weight. During a rollout the new version has its step's share before its weight
    is set; the old one keeps its full share, so that a rollback is immediate.
    """
    shares = {arm.key: arm.weight / _FULL for arm in endpoint.arms}
    if rollout is None or not _is_moving(rollout):
        return shares
    candidate = rollout.target.arms[0].key
    before = {arm.key: arm.weight / _FULL for arm in rollout.source.arms}
    for arm in endpoint.arms:
        is_new = arm.key == candidate or arm.role == BASELINE
        scale = rollout.state.traffic.candidate_scale
        shares[arm.key] = max(shares[arm.key], scale if is_new else before.get(arm.key, 0.0))
    return shares


def part_of(count: float, share: float) -> int:
    """Return the whole number of replicas that carry `share` of the load of `count` replicas."""
    return math.ceil(count * share - _EPSILON)


def _is_moving(rollout: RolloutRecord | None) -> bool:
    return rollout is not None and not rollout.state.phase.is_over
