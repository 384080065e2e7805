"""Reasons of verdicts as text for people."""

from typing import Final

import msgspec

from headrace.core.text import number_text
from headrace.rollout.outcomes import MetricVerdict, Outcome, Verdict

_FIRST: Final = {Outcome.ROLL_BACK: 0, Outcome.WAIT: 1, Outcome.PROMOTE: 2}


class Names(msgspec.Struct, frozen=True):
    """What people call the two arms."""

    baseline: str = "the old version"
    candidate: str = "the new version"


def points(ratio: float, *, signed: bool = True) -> str:
    """A difference of two shares, in percentage points: `+3.2`."""
    sign = "+" if signed and ratio > 0 else ""
    return f"{sign}{number_text(100 * ratio)}"


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
