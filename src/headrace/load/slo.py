"""What does a service promise, and does a run prove that it keeps the promise? Pure."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from headrace.core import InvalidArgumentError
from headrace.load.intervals import Interval

_FORM: Final = "write p99=20ms, p99.9=0.2s or error=0.1%, several by a comma"
_LATENCY: Final = re.compile(r"p(?P<percent>\d{1,2}(?:\.\d{1,4})?)")
_NUMBER: Final = re.compile(r"(?P<number>\d+(?:\.\d*)?|\.\d+)\s*(?P<unit>us|µs|ms|s|%|)")
_SECONDS: Final = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
ERROR: Final = "error"


class Verdict(StrEnum):
    """What a run says about an objective."""

    MET = "met"
    MISSED = "missed"
    UNKNOWN = "not_enough_evidence"


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A bound: seconds for a quantile of latency, 0 to 1 for the ratio of errors.

    Attributes:
        name: As it was written: `p99`, or `error`.
        limit: At most this.
        quantile: 0.99; None for errors.
    """

    name: str
    limit: float
    quantile: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """An objective and what came of it; `reason` says why there is no verdict."""

    objective: Objective
    verdict: Verdict
    measured: Interval | None
    reason: str = ""


def parse_objectives(text: str) -> list[Objective]:
    """The objectives in `p50=5ms,p99=20ms,error=0.1%`.

    Raises:
        InvalidArgumentError: One is written otherwise.
    """
    return [_objective(part.strip()) for part in text.split(",") if part.strip()]


def _objective(text: str) -> Objective:
    name, separator, value = text.replace("<=", "=").replace("<", "=").partition("=")
    name = name.strip().lower()
    found = _NUMBER.fullmatch(value.strip())
    if not separator or found is None:
        msg = f"'{text}' is no objective: {_FORM}"
        raise InvalidArgumentError(msg)
    number, unit = float(found["number"]), found["unit"]
    if name in {ERROR, "errors"}:
        return _error_objective(text, number, unit)
    latency = _LATENCY.fullmatch(name)
    if latency is None or not 0 < float(latency["percent"]) < 100:  # noqa: PLR2004  # percent
        msg = f"'{text}' names no quantile and not 'error': {_FORM}"
        raise InvalidArgumentError(msg)
    if unit not in _SECONDS or number <= 0:
        msg = f"'{text}': a latency needs a unit, us, ms or s, and is above 0"
        raise InvalidArgumentError(msg)
    quantile = float(latency["percent"]) / 100
    return Objective(name=name, limit=number * _SECONDS[unit], quantile=quantile)


def _error_objective(text: str, number: float, unit: str) -> Objective:
    limit = number / 100 if unit == "%" else number
    if unit not in {"%", ""} or not 0 <= limit < 1:
        msg = f"'{text}': errors are a percentage, as in error=0.1%, or a ratio below 1"
        raise InvalidArgumentError(msg)
    return Objective(name=ERROR, limit=limit)


def judge(
    objective: Objective,
    measured: Interval | None,
    *,
    slower: Interval | None = None,
    shortfall: str = "",
) -> Judgement:
    """What an interval says about a bound.

    A latency is met if the interval of its quantile lies within the limit. It is missed if too many
    requests were slower than the limit: that is certain also where latency grows all the time and
    its quantile has no interval. A limit of no errors at all is met by a run without one: no
    interval could prove it.

    Args:
        slower: Of a latency, the share of requests beyond the limit with the generator's lag taken
            off: a server that misses only with that has not missed.
        shortfall: Why less was sent than planned; then nothing is met.
    """

    def judged(verdict: Verdict, reason: str = "") -> Judgement:
        return Judgement(objective=objective, verdict=verdict, measured=measured, reason=reason)

    if measured is None:
        return judged(Verdict.UNKNOWN, "no request was measured")
    exceeds = measured.low is not None and measured.low > objective.limit
    if objective.quantile is None or slower is None:
        is_missed = exceeds
    else:
        is_missed = slower.low is not None and slower.low > 1 - objective.quantile
    if is_missed:
        return judged(Verdict.MISSED)
    if exceeds:
        return judged(Verdict.UNKNOWN, "only with the generator's own lag is it missed")
    is_below = measured.high is not None and measured.high <= objective.limit
    if is_below or measured.value == objective.limit == 0:
        return judged(Verdict.UNKNOWN, shortfall) if shortfall else judged(Verdict.MET)
    if measured.needed:
        return judged(Verdict.UNKNOWN, f"it takes about {rounded_up(measured.needed):,} requests")
    return judged(Verdict.UNKNOWN, "the limit lies within the interval: measure longer")


def rounded_up(count: int) -> int:
    """`count` rounded up to two digits."""
    step: int = 10 ** max(len(str(count)) - 2, 0)
    return -(-count // step) * step
