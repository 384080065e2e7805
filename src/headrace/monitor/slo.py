"""Objectives of endpoints, alert conditions of endpoints and streams, and their readings.

Burn rates follow Google's SRE workbook (https://sre.google/workbook/alerting-on-slos/): an error
budget that is used `factor` times as fast as allowed, over a long window so that it matters, and
over a short one so that it is still ongoing.

A long window may begin before the endpoint existed. Its unknown part counts as error-free, at the
same request rate: a new endpoint pages when it has used as much of its budget as an established
one, and not at its first failed requests.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, Protocol

from headrace.core.settings import BatchingSpec
from headrace.core.spec.base import parsed
from headrace.core.spec.rollout import SloSpec
from headrace.core.spec.streams import StreamAlertsSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPromise:
    """The limits of a stream; None disables an alert."""

    stream: str
    lag_s: float | None

    dead_letters: int | None
    """Limit within `LETTERS_WINDOW_S`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """The current facts of one stream."""

    lag_s: float | None = None
    """Lag in seconds; None while unknown."""

    dead_letters: int = 0
    """Number of dead letters in the window."""

    running: int = 0
    """Workers that process records."""

    failing: int = 0
    """Workers that ended several times in a row."""

    paused: bool = False
    """Whether the stream was paused by command."""


def stream_promises_of(document: Mapping[str, Any]) -> tuple[StreamPromise, ...]:
    """Return the limits of the streams in a valid spec document, in its order."""
    objectives = []
    for entry in document.get("streams") or ():
        written = entry.get("alerts") or {}
        alerts = StreamAlertsSpec.model_validate(written)
        workers = entry.get("workers")
        target_s = workers.get("target_lag_s") if isinstance(workers, Mapping) else None
        is_by_target = target_s is not None and "lag_s" not in written
        objectives.append(
            StreamPromise(
                stream=entry["name"],
                lag_s=target_s if is_by_target else alerts.lag_s,
                dead_letters=alerts.dead_letters,
            )
        )
    return tuple(objectives)


MINUTE_S: Final = 60.0
HOUR_S: Final = 3600.0
DAY_S: Final = 86_400.0
SLOW_BUDGET: Final = 0.01
"""Share of the requests that may exceed the latency objective, which is of the 99th percentile."""
MIN_ERRORS: Final = 5
"""Minimum number of failed requests for a page, whatever their share."""
MIN_BEYOND: Final = 2
"""Minimum number of requests beyond a quantile."""
QUEUES_FILLED_RATIO: Final = 0.8
REFUSED_RATIO: Final = 0.01
REFUSED_WINDOW_S: Final = 5 * MINUTE_S
CRASH_STARTS: Final = 3
CRASH_WINDOW_S: Final = 15 * MINUTE_S
CERTIFICATE_LEFT_S: Final = 14 * DAY_S
LETTERS_WINDOW_S: Final = 5 * MINUTE_S
"""Window in which dead letters are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointObjective:
    """Objective of one endpoint; None for no objective."""

    endpoint: str
    latency_s: float | None = None
    """Objective of the 99th percentile."""

    availability: float | None = None

    window_ratio: float = 1.0
    """Length of all windows relative to the default."""

    queue_size: int = BatchingSpec().max_queue_size
    """Maximum number of waiting requests in one replica."""

    @property
    def error_budget(self) -> float | None:
        """Return the share of the requests that may fail; None without an objective."""
        # 1 - 0.999 is 0.0010000000000000009, which is unreadable in a rule.
        return None if self.availability is None else round(1.0 - self.availability, 12)


def objectives_of(document: Mapping[str, Any]) -> tuple[EndpointObjective, ...]:
    """Return the objectives in a valid spec document, in its order."""
    entries = document.get("endpoints") or ()
    declared = [(entry, parsed(SloSpec, entry.get("slo") or {})) for entry in entries]
    usual = BatchingSpec().max_queue_size
    return tuple(
        EndpointObjective(
            endpoint=entry["name"],
            latency_s=slo.latency_s,
            availability=slo.availability,
            window_ratio=slo.alert_window_ratio,
            queue_size=(entry.get("batching") or {}).get("max_queue_size", usual),
        )
        for entry, slo in declared
    )


class AlertSeverity(StrEnum):
    """Urgency of an alert."""

    PAGE = "page"
    """Page immediately: callers are affected."""
    TICKET = "ticket"
    """Handle within days: callers will be affected otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BurnWindows:
    """Windows of a burn rate: the budget is used `factor` times too fast over both windows."""

    long_s: float
    short_s: float
    factor: float


FAST: Final = BurnWindows(long_s=HOUR_S, short_s=5 * MINUTE_S, factor=14.4)
"""2 % of a month's budget in an hour."""
MEDIUM: Final = BurnWindows(long_s=6 * HOUR_S, short_s=30 * MINUTE_S, factor=6.0)
"""5 % of a month's budget in six hours."""
SLOW: Final = BurnWindows(long_s=3 * DAY_S, short_s=6 * HOUR_S, factor=1.0)
"""10 % of a month's budget in three days."""
SLOW_ONE_DAY: Final = BurnWindows(long_s=DAY_S, short_s=2 * HOUR_S, factor=3.0)
"""10 % of a month's budget in one day: replaces `SLOW` where only one day of history is
available."""


@dataclass(frozen=True, slots=True)
class ErrorBurn:
    """Condition: the budget of failed requests is used too fast."""

    windows: BurnWindows


@dataclass(frozen=True, slots=True)
class LatencyBurn:
    """Condition: the budget of slow requests is used too fast.

    More than `x` of the requests exceed the objective exactly if the quantile `1 - x` does.
    """

    windows: BurnWindows

    @property
    def quantile(self) -> float:
        """Return the quantile that must be within the objective."""
        return round(1.0 - SLOW_BUDGET * self.windows.factor, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyOver:
    """Condition: a quantile exceeds the objective."""

    quantile: float
    window_s: float = 5 * MINUTE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorsOver:
    """Condition: the error ratio exceeds a fixed limit; for endpoints without an objective."""

    ratio: float
    window_s: float = 5 * MINUTE_S


class Fact(StrEnum):
    """A condition without request windows, from the current state."""

    QUEUES_FILLED = "queues_filled"
    """`QUEUES_FILLED_RATIO` of an endpoint's total queue capacity is used."""
    REFUSED = "refused"
    """Replicas refuse requests, because their queues are full or too long; Prometheus only."""
    NO_REPLICA = "no_replica"
    """An endpoint that should have ready replicas has none."""
    REPLICAS_CRASH = "replicas_crash"
    """A replica crashes repeatedly."""
    DRIFTED = "drifted"
    """The inputs of an endpoint have drifted significantly."""
    ROWS_DIFFER = "rows_differ"
    """Predictions of an endpoint depend on other callers' rows."""
    GATEWAY_DOWN = "gateway_down"
    """Envoy does not serve requests."""
    NOT_SCRAPED = "not_scraped"
    """Prometheus gets no metrics; only Prometheus can detect this."""
    CERTIFICATE_ENDS = "certificate_ends"
    """A certificate expires soon."""
    JOBS_LATE = "jobs_late"
    """Scheduled jobs without a successful run in time."""
    JOBS_FAILED = "jobs_failed"
    """Jobs whose newest run failed, with all retries."""
    STREAM_LAGS = "stream_lags"
    """A stream exceeds its lag limit; paused streams are exempt."""
    STREAM_DOWN = "stream_down"
    """No worker processes records, and the stream is not paused."""
    WORKERS_FAIL = "workers_fail"
    """A worker of a stream crashes repeatedly."""
    DEAD_LETTERS = "dead_letters"
    """Records of a stream cannot be scored."""


SYSTEM_FACTS: Final = frozenset(
    {Fact.GATEWAY_DOWN, Fact.NOT_SCRAPED, Fact.CERTIFICATE_ENDS, Fact.JOBS_LATE, Fact.JOBS_FAILED}
)
STREAM_FACTS: Final = frozenset(
    {Fact.STREAM_LAGS, Fact.STREAM_DOWN, Fact.WORKERS_FAIL, Fact.DEAD_LETTERS}
)
Condition = ErrorBurn | LatencyBurn | LatencyOver | ErrorsOver | Fact


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionReading:
    """A value, its threshold, whether it is bad, and details."""

    value: float
    threshold: float
    is_bad: bool
    detail: str = ""


class CountWindow(Protocol):
    """Counts between two times."""

    @property
    def requests(self) -> int:
        """Return all requests."""

    @property
    def errors(self) -> int:
        """Return the requests that failed on the server side."""

    @property
    def known_ratio(self) -> float:
        """Return the share of the window since the endpoint's first count, 0 to 1."""

    def quantile(self, q: float, /) -> float | None:
        """Return the latency in seconds; None without requests."""


Windows = Callable[[float], CountWindow]
"""Function that returns the window of this many seconds that ends now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointFacts:
    """The current state of one endpoint; None for unknown."""

    replicas_ready: int | None = None
    """Number of ready replicas; also None if no replicas are desired, or for an upstream."""

    in_flight: int | None = None

    crashing: int = 0
    """Replicas that ended several times in a row."""

    drifted: int | None = None
    """Number of drifted features."""

    rows_differ: float | None = None
    """Largest difference between a row's prediction alone and in a batch; 0 without differences."""

    rows_detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemFacts:
    """The current state of the system; None for unknown."""

    gateway_ready: bool | None = None

    certificate_left_s: float | None = None
    """Remaining time of the certificate that expires first."""

    jobs_late: int | None = None

    jobs_failed: int | None = None


def read_endpoint(
    condition: Condition, objective: EndpointObjective, windows: Windows, facts: EndpointFacts
) -> ConditionReading | None:
    """Evaluate one condition for one endpoint; None if unknown.

    Windows are requested shortest first, as long ones cost most and are rarely needed.
    """
    scale = objective.window_ratio
    match condition:
        case ErrorBurn(windows=burn):
            return _error_burn(burn, objective, windows)
        case LatencyBurn(windows=burn):
            return _latency_burn(burn, condition.quantile, objective, windows)
        case LatencyOver():
            return _latency_over(
                condition.quantile, windows(condition.window_s * scale), objective.latency_s
            )
        case ErrorsOver():
            if objective.error_budget is not None:
                return None
            return _errors_over(windows(condition.window_s * scale), condition.ratio)
        case Fact():
            return _read_fact(condition, objective, facts)


def _read_fact(
    fact: Fact, objective: EndpointObjective, facts: EndpointFacts
) -> ConditionReading | None:
    match fact:
        case Fact.QUEUES_FILLED if facts.in_flight is not None and facts.replicas_ready:
            filled = facts.in_flight / (facts.replicas_ready * objective.queue_size)
            return _bad_from(filled, QUEUES_FILLED_RATIO)
        case Fact.NO_REPLICA if facts.replicas_ready is not None:
            ready = facts.replicas_ready
            return ConditionReading(value=ready, threshold=1, is_bad=ready < 1)
        case Fact.REPLICAS_CRASH:
            return _bad_from(facts.crashing)
        case Fact.DRIFTED:
            return _bad_from(facts.drifted)
        case Fact.ROWS_DIFFER if facts.rows_differ is not None:
            ratio, detail = facts.rows_differ, facts.rows_detail
            return ConditionReading(value=ratio, threshold=0, is_bad=ratio > 0, detail=detail)
        case _:
            return None


def read_system(condition: Condition, facts: SystemFacts) -> ConditionReading | None:
    """Evaluate one condition for the system; None if unknown."""
    match condition:
        case Fact.GATEWAY_DOWN if facts.gateway_ready is not None:
            is_up = facts.gateway_ready
            return ConditionReading(value=float(is_up), threshold=1.0, is_bad=not is_up)
        case Fact.CERTIFICATE_ENDS if facts.certificate_left_s is not None:
            left = facts.certificate_left_s
            is_bad = left < CERTIFICATE_LEFT_S
            return ConditionReading(value=left, threshold=CERTIFICATE_LEFT_S, is_bad=is_bad)
        case Fact.JOBS_LATE:
            return _bad_from(facts.jobs_late)
        case Fact.JOBS_FAILED:
            return _bad_from(facts.jobs_failed)
        case _:
            return None


def read_stream(
    condition: Condition, objective: StreamPromise, facts: StreamFacts | None
) -> ConditionReading | None:
    """Evaluate one condition for one stream; None if unknown or disabled."""
    if facts is None:
        return None
    lag_s = 0.0 if facts.lag_s is None and facts.paused else facts.lag_s
    match condition:
        case Fact.STREAM_LAGS if objective.lag_s is not None and lag_s is not None:
            is_bad = lag_s > objective.lag_s and not facts.paused
            return ConditionReading(value=lag_s, threshold=objective.lag_s, is_bad=is_bad)
        case Fact.STREAM_DOWN:
            is_down = facts.running < 1 and not facts.paused
            return ConditionReading(value=facts.running, threshold=1, is_bad=is_down)
        case Fact.WORKERS_FAIL:
            return _bad_from(facts.failing)
        case Fact.DEAD_LETTERS if objective.dead_letters is not None:
            allowed, count = objective.dead_letters, facts.dead_letters
            return ConditionReading(value=count, threshold=allowed, is_bad=count > allowed)
        case _:
            return None


def _bad_from(value: float | None, threshold: float = 1) -> ConditionReading | None:
    """Return a reading that is bad from `threshold` on; None if unknown."""
    if value is None:
        return None
    return ConditionReading(value=value, threshold=threshold, is_bad=value >= threshold)


def windows_of(condition: Condition) -> tuple[float, ...]:
    """Return the windows of a condition at default length; empty if it needs no windows."""
    match condition:
        case ErrorBurn(windows=burn) | LatencyBurn(windows=burn):
            return (burn.short_s, burn.long_s)
        case LatencyOver() | ErrorsOver():
            return (condition.window_s,)
        case _:
            return ()


def _error_burn(
    burn: BurnWindows, objective: EndpointObjective, windows: Windows
) -> ConditionReading | None:
    budget = objective.error_budget
    if budget is None:
        return None
    allowed = burn.factor * budget
    short = _errors_over(windows(burn.short_s * objective.window_ratio), allowed, minimum=1)
    if short is None or not short.is_bad:
        return short
    window = windows(burn.long_s * objective.window_ratio)
    long = _errors_over(window, allowed)
    if long is None or not long.is_bad or long.value * window.known_ratio > allowed:
        return long
    return None


def _errors_over(
    window: CountWindow, allowed: float, *, minimum: int = MIN_ERRORS
) -> ConditionReading | None:
    if window.requests <= 0:
        return None
    ratio = window.errors / window.requests
    is_bad = ratio > allowed and window.errors >= minimum
    return ConditionReading(value=ratio, threshold=allowed, is_bad=is_bad)


def _latency_burn(
    burn: BurnWindows, q: float, objective: EndpointObjective, windows: Windows
) -> ConditionReading | None:
    limit_s, scale = objective.latency_s, objective.window_ratio
    short = _latency_over(q, windows(burn.short_s * scale), limit_s)
    if short is None or not short.is_bad:
        return short
    window = windows(burn.long_s * scale)
    long = _latency_over(q, window, limit_s)
    if long is None or not long.is_bad or window.known_ratio >= 1:
        return long
    # Share of known requests that must be slow so that 1 - q of the window's requests are slow.
    slow_ratio = (1.0 - q) / max(window.known_ratio, 1.0 - q)
    known_reading = _latency_over(1.0 - slow_ratio, window, limit_s) if slow_ratio < 1 else None
    return long if known_reading is not None and known_reading.is_bad else None


def _latency_over(q: float, window: CountWindow, limit_s: float | None) -> ConditionReading | None:
    value = None if limit_s is None else window.quantile(q)
    if limit_s is None or value is None:
        return None
    is_known = window.requests >= least_requests(q)
    return ConditionReading(value=value, threshold=limit_s, is_bad=is_known and value > limit_s)


def least_requests(q: float) -> int:
    """Return the minimum number of requests in a window for a meaningful quantile."""
    return round(MIN_BEYOND / (1.0 - q))
