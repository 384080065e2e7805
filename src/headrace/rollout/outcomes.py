"""What does the evidence say? The verdict of all metrics, with the numbers that made it."""

from enum import StrEnum

import msgspec


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


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
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
