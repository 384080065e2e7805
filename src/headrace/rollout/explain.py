"""How does one say a number to somebody who was woken up? Units, digits and signs for people."""

from typing import Final

import msgspec

from headrace.rollout.outcomes import MetricVerdict, Outcome, Verdict

_FIRST: Final = {Outcome.ROLL_BACK: 0, Outcome.WAIT: 1, Outcome.PROMOTE: 2}


class Names(msgspec.Struct, frozen=True):
    """What people call the two arms."""

    baseline: str = "the old version"
    candidate: str = "the new version"


def percent(ratio: float) -> str:
    """`5.1 %`, `0.12 %`."""
    return f"{_digits(100 * ratio)} %"


def points(ratio: float, *, signed: bool = True) -> str:
    """A difference of two shares, in percentage points: `+3.2`."""
    return _digits(100 * ratio, sign="+" if signed else "")


def seconds(value: float | None) -> str:
    """`62 ms`, `1.2 s`."""
    if value is None:
        return "unknown"
    return f"{value:.3g} s" if value >= 1.0 else f"{1000 * value:.3g} ms"


def count(number: float) -> str:
    """`18,110`."""
    return f"{number:,.0f}"


def confidence(level: float) -> str:
    """`98.8 % confidence at any time`."""
    return f"{100 * (1 - level):.3g} % confidence at any time"


def ending(outcome: Outcome) -> str:
    """What follows for one metric, as the end of its sentence."""
    match outcome:
        case Outcome.ROLL_BACK:
            return "worse than tolerated"
        case Outcome.PROMOTE:
            return "within what is tolerated"
        case Outcome.WAIT:
            return "not enough evidence yet"


def explanation(verdict: Verdict, left_out: dict[str, str]) -> str:
    """One line for each metric, the deciding one first; then what is not judged, and why."""
    if not verdict.metrics:
        lines = ["no metric judges this rollout: there is nothing to promote or roll back on"]
    else:
        ordered = sorted(verdict.metrics, key=lambda metric: _FIRST[metric.outcome])
        lines = [metric.reason for metric in ordered]
    return "\n".join([*lines, *(f"{name}: not judged, {why}" for name, why in left_out.items())])


def waiting(metric: str, why: str, *, alpha: float) -> MetricVerdict:
    """A metric that has nothing to say yet."""
    return MetricVerdict(
        metric=metric, outcome=Outcome.WAIT, reason=f"{metric}: {why}", alpha=alpha
    )


def _digits(value: float, *, sign: str = "") -> str:
    size = abs(value)
    if size == 0.0:
        return "0"
    places = 1 if size >= 0.95 else 2 if size >= 0.0095 else 4  # noqa: PLR2004  # as many digits as matter
    return f"{value:{sign}.{places}f}"
