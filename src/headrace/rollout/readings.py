"""Counts of one interval between two readings of the gateway and the replicas."""

from collections.abc import Mapping
from typing import Final

import msgspec


class LatencyCounts(msgspec.Struct, frozen=True, kw_only=True):
    """How many requests took longer than `lower_s[i]` and at most `lower_s[i] + width_s[i]`.

    Ascending, empty buckets left out. Seconds. The gateway's buckets have two significant digits.
    """

    lower_s: tuple[float, ...] = ()
    width_s: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()


class ArmCounts(msgspec.Struct, frozen=True, kw_only=True):
    """One arm in one interval: requests of the traffic split only, by how they ended.

    `requests` includes `errors` (5xx, 429) and `rejections` (other 4xx, without 499).
    """

    requests: int = 0
    errors: int = 0
    rejections: int = 0
    latency: LatencyCounts = LatencyCounts()
    classes: Mapping[str, int] = {}
    """Answers by predicted class."""
    scores: Mapping[float, int] = {}
    """Answers by the upper edge of their score's bucket; an answer has either."""


class PairCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Shadow: answers to the same request, compared."""

    pairs: int = 0
    disagreements: int = 0
    unanswered: int = 0
    """Copies that the shadow failed; `pairs` are those that it answered."""
    distance_sum: float = 0.0
    """Of the mean absolute difference of each pair, where they are numbers."""


REWARD_LIMIT: Final = 1e12
"""The largest absolute value of a reward; the squares of a million of these are finite."""


class RewardSums(msgspec.Struct, frozen=True, kw_only=True):
    """Rewards of one arm so far: units, their mean, the sum of squared deviations from it."""

    units: int = 0
    mean: float = 0.0
    squares: float = 0.0
    left_out: int = 0
    """Units whose stored rewards are beyond `REWARD_LIMIT`; they are not in the others."""


class UnitTally(msgspec.Struct, frozen=True, kw_only=True):
    """Callers of one rollout so far, as stored."""

    first: dict[float, tuple[int, int]] = {}
    """Callers by the candidate's share at their first answer: on the baseline, on the candidate."""
    requests: int = 0
    """Answers that were counted by caller."""
    squares: int = 0
    """The sum of the squares of each caller's."""
    positions: dict[str, tuple[int, int]] = {}
    """How far the answers of each replica were read, and of which process."""

    @property
    def units(self) -> int:
        """How many callers there were."""
        return sum(baseline + candidate for baseline, candidate in self.first.values())


class When(msgspec.Struct, frozen=True, kw_only=True):
    """When an interval was: in which step of the rollout, counted from 0, and for how long."""

    step: int = 0
    duration_s: float = 1.0


ONE_SECOND: Final = When()


class Increment(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that one interval adds."""

    at: float
    """Its end, of the monotonic clock."""
    duration_s: float
    share: float
    """The candidate's share of the requests that went to either arm, in force over the whole
    interval (0 to 1); intervals in which it changed are left out by whoever reads.
    """
    step: int = 0
    """The rollout's, counted from 0."""
    is_sticky: bool = False
    """Callers stay on an arm, so the arms' requests need not have the proportion of the share."""
    baseline: ArmCounts = ArmCounts()
    candidate: ArmCounts = ArmCounts()
    pairs: PairCounts = PairCounts()
    baseline_reward: RewardSums | None = None
    candidate_reward: RewardSums | None = None
