"""Objectives of endpoints, alert conditions of endpoints and streams, and their readings.

Burn rates follow Google's SRE workbook (https://sre.google/workbook/alerting-on-slos/): an error
budget that is used `factor` times as fast as promised, over a long window so that it matters, and
over a short one so that it is still going on.

A long window may begin before the endpoint did. Its unknown part counts as free of errors, at the
same rate of requests: a new endpoint pages when it has burnt as much of its budget as an
established one, and not at its first failed requests.
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
    """What a stream may do; None where nobody wants to hear of it.

    `dead_letters`: within `LETTERS_WINDOW_S`.
    """

    stream: str
    lag_s: float | None
    dead_letters: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamFacts:
    """What is known of one stream.

    `lag_s`: None while nobody knows it. `dead_letters`: those of the window. `running`: workers
    that take records. `failing`: those that ended several times in a row. `paused`: as ordered.
    """

    lag_s: float | None = None
    dead_letters: int = 0
    running: int = 0
    failing: int = 0
    paused: bool = False


def stream_promises_of(document: Mapping[str, Any]) -> tuple[StreamPromise, ...]:
    """What the streams of a spec document that was checked before may do, in its order."""
    promises = []
    for entry in document.get("streams") or ():
        written = entry.get("alerts") or {}
        alerts = StreamAlertsSpec.model_validate(written)
        workers = entry.get("workers")
        target_s = workers.get("target_lag_s") if isinstance(workers, Mapping) else None
        is_by_target = target_s is not None and "lag_s" not in written
        promises.append(
            StreamPromise(
                stream=entry["name"],
                lag_s=target_s if is_by_target else alerts.lag_s,
                dead_letters=alerts.dead_letters,
            )
        )
    return tuple(promises)


MINUTE_S: Final = 60.0
HOUR_S: Final = 3600.0
DAY_S: Final = 86_400.0
SLOW_BUDGET: Final = 0.01
"""Share of the requests that may be slower than promised: the promise is of the 99th percentile."""
LEAST_ERRORS: Final = 5
"""Fewer failed requests than this wake nobody up, whatever share of few requests they are."""
LEAST_BEYOND: Final = 2
"""So many requests have to lie beyond a quantile before it says anything."""
QUEUES_FILLED_RATIO: Final = 0.8
REFUSED_RATIO: Final = 0.01
REFUSED_WINDOW_S: Final = 5 * MINUTE_S
CRASH_STARTS: Final = 3
CRASH_WINDOW_S: Final = 15 * MINUTE_S
CERTIFICATE_LEFT_S: Final = 14 * DAY_S
LETTERS_WINDOW_S: Final = 5 * MINUTE_S
"""Over which dead letters are counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointObjective:
    """One endpoint's promise; None where it promises nothing.

    `latency_s`: of the 99th percentile. `window_ratio`: length of all windows over the usual ones.
    `queue_size`: requests that may wait in one replica.
    """

    endpoint: str
    latency_s: float | None = None
    availability: float | None = None
    window_ratio: float = 1.0
    queue_size: int = BatchingSpec().max_queue_size

    @property
    def error_budget(self) -> float | None:
        """Share of the requests that may fail; None where nothing is promised."""
        # 1 - 0.999 is 0.0010000000000000009, which nobody wants to read in a rule.
        return None if self.availability is None else round(1.0 - self.availability, 12)


def objectives_of(document: Mapping[str, Any]) -> tuple[EndpointObjective, ...]:
    """The promises in a spec document that was checked before, in its order."""
    entries = document.get("endpoints") or ()
    promised = [(entry, parsed(SloSpec, entry.get("slo") or {})) for entry in entries]
    usual = BatchingSpec().max_queue_size
    return tuple(
        EndpointObjective(
            endpoint=entry["name"],
            latency_s=slo.latency_s,
            availability=slo.availability,
            window_ratio=slo.alert_window_ratio,
            queue_size=(entry.get("batching") or {}).get("max_queue_size", usual),
        )
        for entry, slo in promised
    )


class AlertSeverity(StrEnum):
    """Who has to hear of it, and when."""

    PAGE = "page"
    """Somebody, now: callers notice."""
    TICKET = "ticket"
    """Somebody, in the next days: callers will notice if nobody does anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BurnWindows:
    """A budget is used up `factor` times too fast, over both windows."""

    long_s: float
    short_s: float
    factor: float


FAST: Final = BurnWindows(long_s=HOUR_S, short_s=5 * MINUTE_S, factor=14.4)
"""2 % of a month's budget in an hour."""
MEDIUM: Final = BurnWindows(long_s=6 * HOUR_S, short_s=30 * MINUTE_S, factor=6.0)
"""5 % of it in six hours."""
SLOW: Final = BurnWindows(long_s=3 * DAY_S, short_s=6 * HOUR_S, factor=1.0)
"""10 % of it in three days."""
SLOW_ONE_DAY: Final = BurnWindows(long_s=DAY_S, short_s=2 * HOUR_S, factor=3.0)
"""10 % of it in one day: in the place of `SLOW` where no more than a day is remembered."""


@dataclass(frozen=True, slots=True)
class ErrorBurn:
    """The budget of failed requests is used up too fast."""

    windows: BurnWindows


@dataclass(frozen=True, slots=True)
class LatencyBurn:
    """The budget of slow requests is used up too fast.

    More than `x` of the requests are slower than promised exactly where the quantile `1 - x` is.
    """

    windows: BurnWindows

    @property
    def quantile(self) -> float:
        """The one that has to be within the promise."""
        return round(1.0 - SLOW_BUDGET * self.windows.factor, 6)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyOver:
    """A quantile is above what was promised."""

    quantile: float
    window_s: float = 5 * MINUTE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorsOver:
    """A share of the requests fails where nothing was promised; else the budget says it."""

    ratio: float
    window_s: float = 5 * MINUTE_S


class Fact(StrEnum):
    """A condition without windows of requests: it follows from what is known now."""

    QUEUES_FILLED = "queues_filled"
    """`QUEUES_FILLED_RATIO` of what all queues of an endpoint hold is taken."""
    REFUSED = "refused"
    """Replicas refuse requests, because their queues are full or too long; Prometheus only."""
    NO_REPLICA = "no_replica"
    """Nobody answers for an endpoint that should have somebody."""
    REPLICAS_CRASH = "replicas_crash"
    """A replica ends again and again."""
    DRIFTED = "drifted"
    """What an endpoint gets is no longer what it was made for, and not by chance."""
    ROWS_DIFFER = "rows_differ"
    """Answers of an endpoint depend on other callers' rows."""
    GATEWAY_DOWN = "gateway_down"
    """Envoy does not serve."""
    NOT_SCRAPED = "not_scraped"
    """Prometheus gets no metrics; only it can notice."""
    CERTIFICATE_ENDS = "certificate_ends"
    """A certificate expires soon."""
    JOBS_LATE = "jobs_late"
    """Scheduled jobs for whose moments no run has succeeded in time."""
    JOBS_FAILED = "jobs_failed"
    """Jobs whose newest run failed, with all its tries."""
    STREAM_LAGS = "stream_lags"
    """A stream is further behind than it may be; one that is paused may be anywhere."""
    STREAM_DOWN = "stream_down"
    """No worker takes records, though nobody paused the stream."""
    WORKERS_FAIL = "workers_fail"
    """A worker of a stream ends again and again."""
    DEAD_LETTERS = "dead_letters"
    """Records come to a stream for which there is no answer."""


SYSTEM_FACTS: Final = frozenset(
    {Fact.GATEWAY_DOWN, Fact.NOT_SCRAPED, Fact.CERTIFICATE_ENDS, Fact.JOBS_LATE, Fact.JOBS_FAILED}
)
STREAM_FACTS: Final = frozenset(
    {Fact.STREAM_LAGS, Fact.STREAM_DOWN, Fact.WORKERS_FAIL, Fact.DEAD_LETTERS}
)
Condition = ErrorBurn | LatencyBurn | LatencyOver | ErrorsOver | Fact


@dataclass(frozen=True, slots=True, kw_only=True)
class ConditionReading:
    """What was read, what it is held against, whether it is bad, and more of it for people."""

    value: float
    threshold: float
    is_bad: bool
    detail: str = ""


class CountWindow(Protocol):
    """What was counted between two times."""

    @property
    def requests(self) -> int:
        """All of them."""

    @property
    def errors(self) -> int:
        """Those that failed by our fault."""

    @property
    def known_ratio(self) -> float:
        """Share of the window since the endpoint was first counted, 0 to 1."""

    def quantile(self, q: float, /) -> float | None:
        """Latency in seconds; None if there were no requests."""


Windows = Callable[[float], CountWindow]
"""The window of so many seconds that ends now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointFacts:
    """What is known of one endpoint without a window; None where it is not known or not asked.

    `replicas_ready`: None also where none are wanted, or where somebody else runs them.
    `crashing`: replicas that ended several times in a row. `drifted`: features that did.
    `rows_differ`: the largest difference of a row alone from the row in a batch, and what it was;
    0 if checks found none.
    """

    replicas_ready: int | None = None
    in_flight: int | None = None
    crashing: int = 0
    drifted: int | None = None
    rows_differ: float | None = None
    rows_detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemFacts:
    """What is known of the whole system.

    `certificate_left_s`: of the one that ends first. `jobs_late`, `jobs_failed`: how many; None
    without a look.
    """

    gateway_ready: bool | None = None
    certificate_left_s: float | None = None
    jobs_late: int | None = None
    jobs_failed: int | None = None


def read_endpoint(
    condition: Condition, objective: EndpointObjective, windows: Windows, facts: EndpointFacts
) -> ConditionReading | None:
    """What one condition says about one endpoint; None if nothing can be said.

    Windows are asked for shortest first, as the long ones cost most and are seldom needed.
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
    """What one condition says about the whole system; None if nothing can be said."""
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
    condition: Condition, promise: StreamPromise, facts: StreamFacts | None
) -> ConditionReading | None:
    """What one condition says about one stream; None if nothing can be said, or nobody asks."""
    if facts is None:
        return None
    lag_s = 0.0 if facts.lag_s is None and facts.paused else facts.lag_s
    match condition:
        case Fact.STREAM_LAGS if promise.lag_s is not None and lag_s is not None:
            is_bad = lag_s > promise.lag_s and not facts.paused
            return ConditionReading(value=lag_s, threshold=promise.lag_s, is_bad=is_bad)
        case Fact.STREAM_DOWN:
            is_down = facts.running < 1 and not facts.paused
            return ConditionReading(value=facts.running, threshold=1, is_bad=is_down)
        case Fact.WORKERS_FAIL:
            return _bad_from(facts.failing)
        case Fact.DEAD_LETTERS if promise.dead_letters is not None:
            allowed, count = promise.dead_letters, facts.dead_letters
            return ConditionReading(value=count, threshold=allowed, is_bad=count > allowed)
        case _:
            return None


def _bad_from(value: float | None, threshold: float = 1) -> ConditionReading | None:
    """A value that is bad from `threshold` on; None if it is not known."""
    if value is None:
        return None
    return ConditionReading(value=value, threshold=threshold, is_bad=value >= threshold)


def windows_of(condition: Condition) -> tuple[float, ...]:
    """The windows that a condition looks at, at their usual length; none for what needs none."""
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
    short = _errors_over(windows(burn.short_s * objective.window_ratio), allowed, least=1)
    if short is None or not short.is_bad:
        return short
    window = windows(burn.long_s * objective.window_ratio)
    long = _errors_over(window, allowed)
    if long is None or not long.is_bad or long.value * window.known_ratio > allowed:
        return long
    return None


def _errors_over(
    window: CountWindow, allowed: float, *, least: int = LEAST_ERRORS
) -> ConditionReading | None:
    if window.requests <= 0:
        return None
    ratio = window.errors / window.requests
    is_bad = ratio > allowed and window.errors >= least
    return ConditionReading(value=ratio, threshold=allowed, is_bad=is_bad)


def _latency_burn(
    burn: BurnWindows, q: float, objective: EndpointObjective, windows: Windows
) -> ConditionReading | None:
    promised, scale = objective.latency_s, objective.window_ratio
    short = _latency_over(q, windows(burn.short_s * scale), promised)
    if short is None or not short.is_bad:
        return short
    window = windows(burn.long_s * scale)
    long = _latency_over(q, window, promised)
    if long is None or not long.is_bad or window.known_ratio >= 1:
        return long
    # So many of the known requests have to be slow for the slow ones to be 1 - q of the window's.
    slow_ratio = (1.0 - q) / max(window.known_ratio, 1.0 - q)
    known_reading = _latency_over(1.0 - slow_ratio, window, promised) if slow_ratio < 1 else None
    return long if known_reading is not None and known_reading.is_bad else None


def _latency_over(q: float, window: CountWindow, promised: float | None) -> ConditionReading | None:
    value = None if promised is None else window.quantile(q)
    if promised is None or value is None:
        return None
    is_known = window.requests >= least_requests(q)
    return ConditionReading(value=value, threshold=promised, is_bad=is_known and value > promised)


def least_requests(q: float) -> int:
    """How many requests a window needs before its quantile says anything."""
    return round(LEAST_BEYOND / (1.0 - q))
