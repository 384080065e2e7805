"""Largest change of a class's share of the responses, or of a distribution.

A distribution is that of scores, or of numbers of output tokens, cut at `LENGTHS`.

Each class is a difference of two rates (`rate_difference`): how often the arms' responses are of
that class. A score is cut at every edge at which it was ever counted, and each edge is such a
difference too, of the responses up to it: the largest is the Kolmogorov-Smirnov distance.

A class is tested from its first response on, and earlier responses count as other classes. Classes
share the level by the order in which they appear *in both arms together*, which is independent of
the arms.

Each replica reports its own responses, so the arms' responses may not have the proportion of the
split: one replica reports later, began to count later, or does not report. If the split's
proportion were assumed, a missing arm would be a difference. So an interval lasts until both arms
have `ENOUGH` responses, and each response of the arm with more than its share counts as a part of
one. Given these numbers, a gambler who bets on `a` and `b` responses in the proportion of the share
gains at most as if each were drawn from the mean of both (the logarithm is concave), so the tests
hold for any number of responses.
"""

from bisect import bisect_left
from collections.abc import Mapping
from typing import Final, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.rollout.betting import Array
from headrace.rollout.rate_difference import RateDifferences
from headrace.rollout.readings import When

Answers: TypeAlias = Mapping[str, int] | Mapping[float, int] | Mapping[str | float, int]
Counts: TypeAlias = dict[str | float, int]

MAX_LABELS: Final = 50
"""Maximum number of classes; further classes are counted only in the total."""
ENOUGH: Final = 25
"""Minimum number of responses of each arm that are compared together, so that chance omits few of
them."""
LENGTHS: Final = (1, *(factor << exponent for exponent in range(22) for factor in (2, 3)))
"""Edges of the numbers of output tokens: 1, 2, 3, 4, 6, 8, 12 and so on."""


class PredictionShift(msgspec.Struct):
    """Responses of both arms, by class or by score."""

    tests: RateDifferences
    labels: list[str | float] = []
    """Class names, or edges; test 0 has no label and only counts all responses, so label `i` is
    test `i + 1`."""
    answers: int = 0
    """Number of responses of both arms."""
    held: tuple[Counts, Counts] = msgspec.field(default_factory=lambda: ({}, {}))
    """Responses of the baseline and the candidate that wait until both have enough."""
    step: int = 0

    @classmethod
    def start(cls) -> "PredictionShift":
        """Return the state without counts."""
        return cls(tests=RateDifferences.start(1))

    def add(
        self,
        share: float,
        baseline: Answers,
        candidate: Answers,
        *,
        step: int = 0,
    ) -> None:
        """Count one interval's responses, by class or by the upper edge of a score's bucket."""
        if step != self.step:
            self.step, self.held = step, ({}, {})  # sent under another share
        self.answers += sum(baseline.values()) + sum(candidate.values())
        if not 0.0 < share < 1.0:
            return  # one version has all requests
        for held, new in zip(self.held, (baseline, candidate), strict=True):
            for label, count in new.items():
                held[label] = held.get(label, 0) + count
        a, b = self.held
        if min(sum(a.values()), sum(b.values())) < ENOUGH:
            return
        self.held = ({}, {})
        self._add_labels({label: a.get(label, 0) + b.get(label, 0) for label in {*a, *b}})
        part_a, part_b = parts(share, sum(a.values()), sum(b.values()))
        self.tests.add(share, self._arm(b, part_b), self._arm(a, part_a), When(step=step))

    def refuted(
        self, margin: float, level_moved: float, confirmed_level: float
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the labels whose shares are shown to move by more than `margin`, and by less.

        The second result is of the current step.
        """
        thresholds = -np.log(levels(level_moved, len(self.labels)) / 2.0)
        increased = self.tests.log_evidence(margin, above=True)[1:] >= thresholds
        decreased = self.tests.log_evidence(-margin, above=False)[1:] >= thresholds
        # The label that moves most moves to one side: so each side of each label has the whole
        # level, without a correction for the others.
        threshold = -np.log(confirmed_level)
        rose_less = self.tests.log_evidence(margin, above=False, step=self.step)[1:] >= threshold
        decreased_less = (
            self.tests.log_evidence(-margin, above=True, step=self.step)[1:] >= threshold
        )
        return increased | decreased, rose_less & decreased_less

    def bounds(self, level_low: float, level_high: float) -> tuple[float, float]:
        """Return bounds of the largest change of any label's share; see `refuted`."""
        label_levels = np.concatenate([[1.0], levels(level_low, len(self.labels)) / 2.0])
        increases, decreases = self.tests.bounds(label_levels, label_levels)
        minimum = self.tests.lower_bounds(level_high, step=self.step)
        maximum = self.tests.upper_bounds(level_high, step=self.step)
        low = max(0.0, float(increases[1:].max()), float(-decreases[1:].min()))
        return low, max(low, float(maximum[1:].max()), float(-minimum[1:].min()))

    def _add_labels(self, together: Mapping[str | float, int]) -> None:
        new = [label for label in together if label not in self.labels]
        for label in sorted(new, key=lambda label: (-together[label], str(label))):
            if len(self.labels) >= MAX_LABELS:
                return
            lower = [lower_label for lower_label in self.labels if _within(lower_label, label)]
            self.tests.append(like=self.labels.index(max(lower)) + 1 if lower else 0)
            self.labels.append(label)

    def _arm(self, counts: Counts, part: Array) -> tuple[Array, Array]:
        yes = [
            sum(n for counted, n in counts.items() if counted == label or _within(counted, label))
            for label in self.labels
        ]
        return part * np.array([0, *yes]), part * np.full(len(yes) + 1, sum(counts.values()))


def by_length(answers: Mapping[int, int]) -> dict[float, int]:
    """Return counts of answers by their number of tokens as counts by the next of `LENGTHS`."""
    counts: dict[float, int] = {}
    for tokens, count in answers.items():
        edge = float(LENGTHS[min(bisect_left(LENGTHS, tokens), len(LENGTHS) - 1)])
        counts[edge] = counts.get(edge, 0) + count
    return counts


def parts(
    share: Array | float, baseline: Array | float, candidate: Array | float
) -> tuple[Array, Array]:
    """Return the weight of each arm's responses that restores the proportion of the share.

    Args:
        share: The candidate's, above 0 and below 1, `[...]`.
        baseline: Number of the baseline's responses, above 0, `[...]`.
        candidate: Number of the candidate's responses, above 0, `[...]`.

    Returns:
        The baseline's and the candidate's part, `[...]`; one of both is 1.
    """
    a, b = np.asarray(baseline) / (1 - share), np.asarray(candidate) / share
    minimum = np.minimum(a, b)
    return minimum / a, minimum / b


def levels(level: float, labels: int) -> Array:
    """Return how `level` is split over the labels, `[labels]`: the first ones get more."""
    rank = np.arange(1, labels + 1)
    result: Array = level * (0.5 / (rank * (rank + 1)) + 0.5 / MAX_LABELS)
    return result


def _within(seen: str | float, label: str | float) -> bool:
    """Whether a score counted at `seen` is below the edge `label`; never so for classes."""
    return not isinstance(seen, str) and not isinstance(label, str) and seen < label
