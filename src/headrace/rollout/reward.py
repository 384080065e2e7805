"""Bounds of the difference of two mean rewards, for rewards of any distribution.

Rewards have no known bounds to bet on, so this is an *asymptotic* confidence sequence: it holds at
all times as the sample grows, like a confidence interval by the central limit theorem that may be
read at any time. Waudby-Smith, Arbour, Sinha, Kennedy, Ramdas, "Time-uniform central limit theory
and asymptotic confidence sequences", Annals of Statistics 2024 (arXiv 2103.06476). A minimum number
of units keeps the approximation valid.
"""

import math

import msgspec

from headrace.rollout.readings import RewardSums


class RewardDifference(msgspec.Struct):
    """Both arms' rewards so far; each new reading replaces the last, so late rewards count."""

    baseline: RewardSums = RewardSums()
    candidate: RewardSums = RewardSums()

    def bounds(
        self, level_low: float, level_high: float, *, tuned_for: int
    ) -> tuple[float, float] | None:
        """Return bounds of candidate's mean minus the baseline's, each at its own level.

        An arm whose rewards hardly vary yet is given the variance of both together, so that a
        hundred zeros prove nothing.

        Args:
            level_low: Probability that the lower bound is ever wrong.
            level_high: Probability that the upper bound is ever wrong.
            tuned_for: Units in all at which the bounds shall be the narrowest.

        Returns:
            Lower and upper bound; None where an arm has fewer than two units, nothing varies, or
            the variance is not finite.
        """
        if min(self.baseline.units, self.candidate.units) < 2:  # noqa: PLR2004  # a variance
            return None
        units = self.baseline.units + self.candidate.units
        pooled = self._pooled_variance()
        if not 0.0 < pooled < math.inf:
            return None
        # Variance of one unit's part in the difference, as if each arm had its share.
        spread = units * sum(
            max(arm.squares / (arm.units - 1), pooled) / arm.units
            for arm in (self.baseline, self.candidate)
        )
        below, above = (
            math.sqrt(spread) * boundary(units, level, tuned_for=tuned_for)
            for level in (level_low, level_high)
        )
        return self.difference - below, self.difference + above

    @property
    def difference(self) -> float:
        """Return the candidate's mean minus the baseline's."""
        return self.candidate.mean - self.baseline.mean

    def _pooled_variance(self) -> float:
        a, b = self.baseline, self.candidate
        # Not a power, which raises OverflowError instead of being infinite.
        between = a.units * b.units / (a.units + b.units) * self.difference * self.difference
        return (a.squares + b.squares + between) / (a.units + b.units - 1)


def boundary(units: int, level: float, *, tuned_for: int) -> float:
    """Return the one-sided bound at `level`, at all times, of a mean of variance-1 values.

    The one-sided normal mixture: a half-normal prior of variance rho2 on the drift.
    """
    squared_width = -2.0 * math.log(2.0 * min(level, 0.4))
    rho2 = (
        (squared_width + math.log(squared_width) + 1.0) / tuned_for
        if squared_width > 1.0
        else 1.0 / tuned_for
    )
    variance_sum = units * rho2 + 1.0
    return math.sqrt(
        2.0 * variance_sum / (units**2 * rho2) * math.log1p(math.sqrt(variance_sum) / (2.0 * level))
    )
