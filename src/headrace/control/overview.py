"""How is each endpoint at a glance: what it got in the last minute, and whether that is well?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from headrace.control.desired import DesiredEndpoint
from headrace.control.status import EndpointStatus
from headrace.monitor import History, Window

SPAN_S: Final = 60.0
_STALE_S: Final = 40.0
_WARNING_RATIO: Final = 0.01
_FAILING_RATIO: Final = 0.05
_READY: Final = "ready"


class State(StrEnum):
    """How an endpoint is, the worst last."""

    IDLE = "idle"
    """Nobody asked for it."""
    OK = "ok"
    WARNING = "warning"
    """Not all of it is ready, a hundredth of the requests failed, or p99 is above its SLO."""
    FAILING = "failing"
    """It cannot become ready by itself, or a twentieth of the requests failed."""


class SortKey(StrEnum):
    """By what endpoints are sorted; names from A to Z, all else from the most to the least."""

    NAME = "name"
    STATE = "state"
    REQUESTS = "requests_per_s"
    ERRORS = "error_ratio"
    P50 = "p50_s"
    P95 = "p95_s"
    P99 = "p99_s"


@dataclass(frozen=True, slots=True, kw_only=True)
class OverviewRow:
    """One endpoint.

    Rates and latencies are of the last minute, as the gateway saw all requests; latencies are null
    if there was none. `versions`: those that are wanted. `rollout`: the phase of the one that is
    under way, or null.
    """

    name: str
    ready: bool
    state: State
    versions: tuple[str, ...]
    replicas_ready: int
    replicas_desired: int
    requests_per_s: float
    error_ratio: float
    p50_s: float | None
    p95_s: float | None
    p99_s: float | None
    rollout: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Overview:
    """One page of all endpoints that were asked for; `total` counts those of all pages.

    `at`: until when requests were counted, in seconds since 1970; null if nothing was counted yet.
    """

    total: int
    page: int
    size: int
    at: float | None
    endpoints: Sequence[OverviewRow]


def last_minute(history: History, endpoint: str, now: float) -> Window:
    """What an endpoint got in the last minute that was counted; less if that began later."""
    until = counted_until(history, now)
    began_at = until - SPAN_S if history.began_at is None else history.began_at
    seconds = min(SPAN_S, max(until - began_at, 1.0))
    return history.window(endpoint, until=until, seconds=seconds)


def counted_until(history: History, now: float) -> float:
    """Until when requests are known: a moment before `now`, unless nobody looks any more."""
    looked_at = history.looked_at
    return now if looked_at is None or now - looked_at > _STALE_S else min(looked_at, now)


def row(
    endpoint: DesiredEndpoint, status: EndpointStatus, window: Window, *, rollout: str | None
) -> OverviewRow:
    """An endpoint at a glance. `rollout`: the phase of one that is under way."""
    wanted = [one for one in status.revisions if one.desired_replicas or one.desired_weight]
    ready = sum(replica.state == _READY for revision in wanted for replica in revision.replicas)
    p50, p95, p99 = (window.quantile(q) for q in (0.5, 0.95, 0.99))
    return OverviewRow(
        name=status.name,
        ready=status.ready,
        state=state_of(status, window, slo_latency_s=endpoint.slo_latency_s),
        versions=tuple(dict.fromkeys(revision.version for revision in wanted)),
        replicas_ready=ready,
        replicas_desired=sum(revision.desired_replicas for revision in wanted),
        requests_per_s=window.requests_per_s,
        error_ratio=window.error_ratio,
        p50_s=p50,
        p95_s=p95,
        p99_s=p99,
        rollout=rollout,
    )


def state_of(status: EndpointStatus, window: Window, *, slo_latency_s: float | None) -> State:
    """How an endpoint is."""
    if status.failed or window.error_ratio >= _FAILING_RATIO:
        return State.FAILING
    p99 = window.quantile(0.99)
    is_slow = p99 is not None and slo_latency_s is not None and p99 > slo_latency_s
    if not status.ready or window.error_ratio >= _WARNING_RATIO or is_slow:
        return State.WARNING
    return State.OK if window.requests else State.IDLE


_RANKS: Final[Mapping[State, int]] = {state: rank for rank, state in enumerate(State)}


def sort_rows(rows: Sequence[OverviewRow], key: SortKey, *, reverse: bool) -> list[OverviewRow]:
    """`rows` in order; those without a value come last either way."""
    by_name = sorted(rows, key=lambda one: one.name)
    if key is SortKey.NAME:
        return by_name[::-1] if reverse else by_name
    known = [(value, one) for one in by_name if (value := _value(one, key)) is not None]
    known.sort(key=lambda pair: pair[0], reverse=not reverse)
    return [one for _, one in known] + [one for one in by_name if _value(one, key) is None]


def _value(one: OverviewRow, key: SortKey) -> float | None:
    match key:
        case SortKey.STATE:
            return _RANKS[one.state]
        case SortKey.REQUESTS:
            return one.requests_per_s
        case SortKey.ERRORS:
            return one.error_ratio
        case SortKey.P50:
            return one.p50_s
        case SortKey.P95:
            return one.p95_s
        case _:
            return one.p99_s
