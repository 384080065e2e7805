"""Verdicts of metrics and of a rollout, and their reasons as text."""

from enum import StrEnum
from typing import Final

import msgspec

from headrace.core.text import number_text


class Outcome(StrEnum):
    """Outcome of a verdict."""

    PROMOTE = "promote"
    ROLL_BACK = "roll_back"
    WAIT = "wait"
    """Not enough evidence yet."""


class MetricVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """The verdict of one metric."""

    metric: str
    outcome: Outcome
    reason: str
    unit: str = ""
    """Unit of the effect: `ratio difference`, `times` or `reward`."""

    baseline: float | None = None

    candidate: float | None = None

    effect: float | None = None
    """Difference of the candidate; None if unknown."""

    low: float | None = None
    """Lower bound, valid at all times with probability 1 - `alpha`."""

    high: float | None = None
    """Upper bound, valid at all times with probability 1 - `alpha`."""

    margin: float | None = None
    """Tolerated effect, in the same unit."""

    alpha: float = 0.0

    samples: tuple[int, int] = (0, 0)
    """Samples of the baseline and of the candidate."""


class RolloutVerdict(msgspec.Struct, frozen=True, kw_only=True):
    """Joint verdict of all metrics: one `roll_back` decides; `promote` needs all metrics."""

    outcome: Outcome
    at: float
    """Time of the last reading, in seconds since 1970."""

    metrics: tuple[MetricVerdict, ...] = ()

    explanation: str = ""
    """One line per metric."""

    def metric(self, name: str) -> MetricVerdict | None:
        """Return the verdict of one metric."""
        return next((m for m in self.metrics if m.metric == name), None)


_FIRST: Final = {Outcome.ROLL_BACK: 0, Outcome.WAIT: 1, Outcome.PROMOTE: 2}


class Names(msgspec.Struct, frozen=True):
    """Display names of the two arms."""

    baseline: str = "the old version"
    candidate: str = "the new version"


def points(ratio: float, *, signed: bool = True) -> str:
    """Return a difference of two shares, in percentage points: `+3.2`."""
    sign = "+" if signed and ratio > 0 else ""
    return f"{sign}{number_text(100 * ratio)}"


def confidence(level: float) -> str:
    """Return the confidence as text: `98.8 % confidence at any time`."""
    return f"{100 * (1 - level):.3g} % confidence at any time"


def ending(outcome: Outcome) -> str:
    """Return the conclusion of one metric's sentence."""
    match outcome:
        case Outcome.ROLL_BACK:
            return "worse than tolerated"
        case Outcome.PROMOTE:
            return "within what is tolerated"
        case Outcome.WAIT:
            return "not enough evidence yet"


def waiting(metric: str, reason: str, *, alpha: float) -> MetricVerdict:
    """Return the verdict of a metric without data."""
    return MetricVerdict(
        metric=metric, outcome=Outcome.WAIT, reason=f"{metric}: {reason}", alpha=alpha
    )


def explanation(verdict: RolloutVerdict, left_out: dict[str, str]) -> str:
    """Return a line per metric, the deciding one first; then excluded ones with reasons."""
    if not verdict.metrics:
        lines = ["no metric judges this rollout: there is nothing to promote or roll back on"]
    else:
        ordered = sorted(verdict.metrics, key=lambda metric: _FIRST[metric.outcome])
        lines = [metric.reason for metric in ordered]
    return "\n".join(
        [*lines, *(f"{name}: not judged, {reason}" for name, reason in left_out.items())]
    )
