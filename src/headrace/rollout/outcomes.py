"""Verdicts of metrics and of a rollout, and their reasons as text."""

from enum import StrEnum
from typing import Final

import msgspec

from headrace.core.text import number_text


class Outcome(StrEnum):
    """The three ways a verdict can turn out."""

    PROMOTE = "promote"
    ROLL_BACK = "roll_back"
    WAIT = "wait"
    """Not enough evidence yet."""


class MetricVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """One metric: both arms' numbers, the effect with its interval, and what follows.

    `effect` is how the candidate differs in `unit` (`ratio difference`, `times`, `reward`), and
    `low` and `high` its bounds, each of which holds at all times at once with probability 1 -
    `alpha` at least; None where there is nothing to tell it from.
    `margin` bounds what is tolerated, in the same unit. `samples`: baseline's, candidate's.
    """

    metric: str
    outcome: Outcome
    reason: str
    unit: str = ""
    baseline: float | None = None
    candidate: float | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    margin: float | None = None
    alpha: float = 0.0
    samples: tuple[int, int] = (0, 0)


class RolloutVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """All metrics together: one that says `roll_back` decides; all must say `promote`.

    `at`: seconds since 1970 of the last reading. `explanation`: for people, one line per metric.
    """

    outcome: Outcome
    at: float
    metrics: tuple[MetricVerdict, ...] = ()
    explanation: str = ""

    def metric(self, name: str) -> MetricVerdict | None:
        """The verdict of one metric."""
        return next((m for m in self.metrics if m.metric == name), None)


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


def waiting(metric: str, why: str, *, alpha: float) -> MetricVerdict:
    """A metric that has nothing to say yet."""
    return MetricVerdict(
        metric=metric, outcome=Outcome.WAIT, reason=f"{metric}: {why}", alpha=alpha
    )


def explanation(verdict: RolloutVerdict, left_out: dict[str, str]) -> str:
    """One line for each metric, the deciding one first; then what is not judged, and why."""
    if not verdict.metrics:
        lines = ["no metric judges this rollout: there is nothing to promote or roll back on"]
    else:
        ordered = sorted(verdict.metrics, key=lambda metric: _FIRST[metric.outcome])
        lines = [metric.reason for metric in ordered]
    return "\n".join([*lines, *(f"{name}: not judged, {why}" for name, why in left_out.items())])
