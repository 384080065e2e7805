"""Load result: outcome of each request, statistics with intervals, and verdicts on objectives."""

import re
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from headrace.core import InvalidArgumentError
from headrace.load.intervals import (
    ConfidenceInterval,
    Floats,
    quantile_interval,
    wilson_interval,
)
from headrace.load.plan import LoadPlan

PENDING: Final = -1
"""Unfinished: not sent yet, or waiting for a connection or a response."""
SUCCEEDED: Final = 0
"""Code of success; each kind of failure has a higher code."""
LEFT_OUT: Final = -2
"""Abandoned because the run was interrupted."""
NOT_SENT: Final = -3
"""Not sent, because the generator was too late."""


@dataclass(slots=True)
class RunRecord:
    """Record of a run by request number; times in seconds from the start."""

    intended: "array[float]"
    """Intended send time."""
    handled: "array[float]" = field(init=False)
    """Time at which the generator handled it; 0 for never."""
    done: "array[float]" = field(init=False)
    """Time at which it ended; 0 for not yet."""
    code: "array[int]" = field(init=False)
    """Outcome: one of the codes above, or the code of a kind of failure."""
    kinds: list[str] = field(default_factory=lambda: ["ok"])
    """Kinds of failure by code; the first stands for success."""
    _codes: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        size = len(self.intended)
        self.handled = array("d", bytes(8 * size))
        self.done = array("d", bytes(8 * size))
        self.code = array("h", [PENDING]) * size

    @classmethod
    def from_intended(cls, intended: Floats) -> "RunRecord":
        """Create the record of a run that has not begun."""
        return cls(array("d", intended.tobytes()))

    def code_of(self, kind: str) -> int:
        """Return the code of a kind of failure, adding it if it is new."""
        code = self._codes.get(kind)
        if code is None:
            code = self._codes[kind] = len(self.kinds)
            self.kinds.append(kind)
        return code

    def sample(self) -> "RunSample":
        """Return the record as arrays."""
        return RunSample(
            intended=np.array(self.intended),
            handled=np.array(self.handled),
            done=np.array(self.done),
            code=np.array(self.code),
            kinds=tuple(self.kinds),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSample:
    """Finished run, or a part of it, as arrays; see `RunRecord`."""

    intended: Floats
    handled: Floats
    done: Floats
    code: NDArray[np.int16]
    kinds: Sequence[str]

    def __len__(self) -> int:
        return len(self.intended)

    def where(self, mask: NDArray[np.bool_]) -> "RunSample":
        """Return only the requests under `mask`."""
        return RunSample(
            intended=self.intended[mask],
            handled=self.handled[mask],
            done=self.done[mask],
            code=self.code[mask],
            kinds=self.kinds,
        )

    @property
    def succeeded(self) -> NDArray[np.bool_]:
        """Mask of successful requests."""
        return np.equal(self.code, SUCCEEDED)

    @property
    def over(self) -> NDArray[np.bool_]:
        """Mask of requests that ended, in success or failure."""
        return np.greater_equal(self.code, SUCCEEDED)

    @property
    def latency_s(self) -> Floats:
        """Latencies from the intended send time; infinite for failed requests."""
        return np.where(self.succeeded, self.done - self.intended, np.inf)

    @property
    def latency_from_sent_s(self) -> Floats:
        """Latencies without the send lag: from the time that the generator handled the request."""
        return np.where(self.succeeded, self.done - self.handled, np.inf)

    @property
    def lag_s(self) -> Floats:
        """Send delay of each request that was sent, in seconds."""
        taken = self.handled > 0
        return np.maximum(self.handled[taken] - self.intended[taken], 0.0)


_FORM: Final = "write p99=20ms, p99.9=0.2s or error=0.1%, separated by commas"
_LATENCY: Final = re.compile(r"p(?P<percent>\d{1,2}(?:\.\d{1,4})?)")
_NUMBER: Final = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>us|µs|ms|s|%|)")
_SECONDS: Final = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
ERROR: Final = "error"


class ObjectiveVerdict(StrEnum):
    """Verdict on an objective."""

    MET = "met"
    MISSED = "missed"
    UNKNOWN = "not_enough_evidence"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadObjective:
    """Objective: a bound in seconds for a latency quantile, or in 0 to 1 for the error ratio."""

    name: str
    """As written by the user: `p99` or `error`."""
    limit: float
    """Upper bound."""
    quantile: float | None = None
    """Quantile such as 0.99; None for the error ratio."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """Verdict on an objective; `reason` explains why it is unknown."""

    objective: LoadObjective
    verdict: ObjectiveVerdict
    measured: ConfidenceInterval | None
    reason: str = ""


def parse_objectives(text: str) -> list[LoadObjective]:
    """Parse objectives such as `p50=5ms,p99=20ms,error=0.1%`.

    Raises:
        InvalidArgumentError: An objective has another form.
    """
    return [_objective(part.strip()) for part in text.split(",") if part.strip()]


def _objective(text: str) -> LoadObjective:
    name, separator, value = text.replace("<=", "=").replace("<", "=").partition("=")
    name = name.strip().lower()
    match = _NUMBER.fullmatch(value.strip())
    if not separator or match is None:
        msg = f"'{text}' is not an objective: {_FORM}"
        raise InvalidArgumentError(msg)
    number, unit = float(match["number"]), match["unit"]
    if name in {ERROR, "errors"}:
        return _error_objective(text, number, unit)
    latency = _LATENCY.fullmatch(name)
    if latency is None or not 0 < float(latency["percent"]) < 100:  # noqa: PLR2004  # percent
        msg = f"'{text}' names neither a quantile nor 'error': {_FORM}"
        raise InvalidArgumentError(msg)
    if unit not in _SECONDS or number <= 0:
        msg = f"'{text}': a latency needs a unit, us, ms or s, and is above 0"
        raise InvalidArgumentError(msg)
    quantile = float(latency["percent"]) / 100
    return LoadObjective(name=name, limit=number * _SECONDS[unit], quantile=quantile)


def _error_objective(text: str, number: float, unit: str) -> LoadObjective:
    limit = number / 100 if unit == "%" else number
    if unit not in {"%", ""} or not 0 <= limit < 1:
        msg = f"'{text}': errors are a percentage, as in error=0.1%, or a ratio below 1"
        raise InvalidArgumentError(msg)
    return LoadObjective(name=ERROR, limit=limit)


def judge(
    objective: LoadObjective,
    measured: ConfidenceInterval | None,
    *,
    slower: ConfidenceInterval | None = None,
    shortfall: str = "",
) -> Judgement:
    """Return the verdict of an interval on a bound.

    A latency objective is met if the interval of its quantile lies within the limit. It is missed
    if too many requests were slower than the limit, which is certain even where latency grows
    throughout and its quantile has no interval. A limit of no errors is met by a run without
    errors: no interval could prove it.

    Args:
        slower: For a latency, the share of requests beyond the limit without the generator's lag: a
            server that only misses because of the lag has not missed.
        shortfall: Why less was sent than planned; then no objective is met.
    """

    def judged(verdict: ObjectiveVerdict, reason: str = "") -> Judgement:
        return Judgement(objective=objective, verdict=verdict, measured=measured, reason=reason)

    if measured is None:
        return judged(ObjectiveVerdict.UNKNOWN, "no request was measured")
    exceeds = measured.low is not None and measured.low > objective.limit
    if objective.quantile is None or slower is None:
        is_missed = exceeds
    else:
        is_missed = slower.low is not None and slower.low > 1 - objective.quantile
    if is_missed:
        return judged(ObjectiveVerdict.MISSED)
    if exceeds:
        return judged(
            ObjectiveVerdict.UNKNOWN, "missed only because of the generator's own send lag"
        )
    is_below = measured.high is not None and measured.high <= objective.limit
    if is_below or measured.value == objective.limit == 0:
        return (
            judged(ObjectiveVerdict.UNKNOWN, shortfall)
            if shortfall
            else judged(ObjectiveVerdict.MET)
        )
    if measured.needed:
        return judged(
            ObjectiveVerdict.UNKNOWN, f"needs about {rounded_up(measured.needed):,} requests"
        )
    return judged(ObjectiveVerdict.UNKNOWN, "the limit lies within the interval: measure longer")


def rounded_up(count: int) -> int:
    """Return `count` rounded up to two significant digits."""
    step: int = 10 ** max(len(str(count)) - 2, 0)
    return -(-count // step) * step


QUANTILES: Final = (0.5, 0.9, 0.95, 0.99, 0.999)
_OWN_SHARE: Final = 0.2
"""Share of the send lag in a latency above which the generator counts as the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SendLag:
    """Send lag of the generator, in seconds."""

    p50_s: float
    p99_s: float
    max_s: float
    share_p50: float
    """Share of the lag in the latency quantile, 0 to 1."""
    share_p99: float
    """See `share_p50`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadResult:
    """Statistics of a run without its warm-up."""

    plan: LoadPlan
    """Executed plan."""
    seconds: float
    """Measured duration; shorter than planned if the run was interrupted."""
    requests: int
    """Requests that were due in that time and finished."""
    achieved_per_s: float
    """Successful responses per second."""
    latency_s: Mapping[float, ConfidenceInterval | None]
    """Latency of successful requests from the intended send time, by quantile."""
    latency_of_all_s: Mapping[float, ConfidenceInterval | None]
    """Latency by quantile, with failed requests counted as slower than all others."""
    error_ratio: ConfidenceInterval | None
    """Share of failed requests; None without requests."""
    errors: Mapping[str, int]
    """Failed requests by kind, most frequent first."""
    lag: SendLag | None
    """Send lag; None if nothing was sent."""
    not_sent: int
    """Requests that the generator was too late to send."""
    left_out: int
    """Requests in flight when the run was interrupted."""
    connections: int
    """Opened connections."""
    waited: int
    """Requests that waited for a connection at the connection limit."""
    interrupted: bool
    """Whether the run was interrupted."""
    limited_by: str
    """Why the generator may have been the bottleneck; empty if the server was."""
    judgements: Sequence[Judgement]
    """Verdict on each objective."""
    sample: RunSample
    """Measured requests in order of their intended send times."""

    @property
    def failed(self) -> int:
        """Number of failed requests."""
        return sum(self.errors.values())

    @property
    def verdict(self) -> ObjectiveVerdict | None:
        """Worst verdict of all objectives; None without objectives."""
        verdicts = {judgement.verdict for judgement in self.judgements}
        worst_first = (ObjectiveVerdict.MISSED, ObjectiveVerdict.UNKNOWN, ObjectiveVerdict.MET)
        return next((verdict for verdict in worst_first if verdict in verdicts), None)


def summarize(
    sample: RunSample,
    plan: LoadPlan,
    *,
    objectives: Sequence[LoadObjective] = (),
    stopped_at_s: float | None = None,
    connections: int = 0,
    waited: int = 0,
) -> LoadResult:
    """Return the statistics of a run.

    Args:
        sample: All requests, including the warm-up; times in seconds from the start.
        stopped_at_s: Time of the interruption; None if there was none.
    """
    end_s = plan.total_s if stopped_at_s is None else min(stopped_at_s, plan.total_s)
    seconds = max(end_s - plan.warm_up_s, 0.0)
    due = sample.where((sample.intended >= plan.warm_up_s) & (sample.intended < end_s))
    measured = due.where(due.over)
    in_time = (sample.done >= plan.warm_up_s) & (sample.done < end_s)
    succeeded = int(np.count_nonzero(sample.succeeded & in_time))
    latency_s = measured.latency_s
    lag = _lag(measured)
    not_sent = int(np.count_nonzero(due.code == NOT_SENT))
    shortfall = limited_by = ""
    if not_sent:
        shortfall = limited_by = (
            f"the generator could not keep up: {not_sent:,} of {len(due):,} requests were not "
            "sent; lower the rate, or spread it over several generators"
        )
    elif lag is not None:
        share, which = max((lag.share_p50, "p50"), (lag.share_p99, "p99"))
        if share > _OWN_SHARE:
            limited_by = (
                f"the generator was late: {share:.0%} of the {which} is its own send lag; run "
                "it on a free core or another machine"
            )
    error_ratio = wilson_interval(~measured.succeeded)
    counts = np.bincount(measured.code, minlength=len(measured.kinds))
    count_by_kind = {kind: int(count) for kind, count in zip(measured.kinds, counts, strict=True)}
    failed = {kind: count for kind, count in list(count_by_kind.items())[1:] if count}
    return LoadResult(
        plan=plan,
        seconds=seconds,
        requests=len(measured),
        achieved_per_s=succeeded / seconds if seconds else 0.0,
        latency_s={q: quantile_interval(latency_s[np.isfinite(latency_s)], q) for q in QUANTILES},
        latency_of_all_s={q: quantile_interval(latency_s, q) for q in QUANTILES},
        error_ratio=error_ratio,
        errors=dict(sorted(failed.items(), key=lambda item: -item[1])),
        lag=lag,
        not_sent=not_sent,
        left_out=int(np.count_nonzero(due.code == LEFT_OUT)),
        connections=connections,
        waited=waited,
        interrupted=stopped_at_s is not None,
        limited_by=limited_by,
        judgements=[
            judge(objective, error_ratio, shortfall=shortfall)
            if objective.quantile is None
            else judge(
                objective,
                quantile_interval(latency_s, objective.quantile),
                slower=wilson_interval(measured.latency_from_sent_s > objective.limit),
                shortfall=shortfall,
            )
            for objective in objectives
        ],
        sample=measured,
    )


def _lag(sample: RunSample) -> SendLag | None:
    lag_s = sample.lag_s
    if not len(lag_s):
        return None
    valid = sample.where(sample.succeeded)
    from_intended, from_sent = valid.latency_s, valid.latency_from_sent_s
    return SendLag(
        p50_s=float(np.quantile(lag_s, 0.5)),
        p99_s=float(np.quantile(lag_s, 0.99)),
        max_s=float(lag_s.max()),
        share_p50=_share(from_intended, from_sent, 0.5),
        share_p99=_share(from_intended, from_sent, 0.99),
    )


def _share(from_intended: Floats, from_sent: Floats, quantile: float) -> float:
    if not len(from_intended):
        return 0.0
    whole = float(np.quantile(from_intended, quantile))
    own = whole - float(np.quantile(from_sent, quantile))
    return min(max(own / whole, 0.0), 1.0) if whole > 0 else 0.0
