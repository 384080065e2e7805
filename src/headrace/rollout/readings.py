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

    `requests` includes `errors` (5xx, 429) and `rejections` (other 4xx, without 499). `classes`:
    answers by predicted class. `scores`: answers by the upper edge of their score's bucket; an
    answer has either.
    """

    requests: int = 0
    errors: int = 0
    rejections: int = 0
    latency: LatencyCounts = LatencyCounts()
    classes: Mapping[str, int] = {}
    scores: Mapping[float, int] = {}


class PairCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Shadow: answers to the same request, compared.

    `distance_sum`: of the mean absolute difference of each pair, where they are numbers.
    `unanswered`: copies that the shadow failed; `pairs` are those that it answered.
    """

    pairs: int = 0
    disagreements: int = 0
    unanswered: int = 0
    distance_sum: float = 0.0


REWARD_LIMIT: Final = 1e12
"""The largest absolute value of a reward; the squares of a million of these are finite."""


class RewardSums(msgspec.Struct, frozen=True, kw_only=True):
    """Rewards of one arm so far: units, their mean, the sum of squared deviations from it.

    `left_out`: units whose stored rewards are beyond `REWARD_LIMIT`; they are not in the others.
    """

    units: int = 0
    mean: float = 0.0
    squares: float = 0.0
    left_out: int = 0


class UnitTally(msgspec.Struct, frozen=True, kw_only=True):
    """Callers of one rollout so far, as stored.

    `first`: callers by the candidate's share at their first answer: on the baseline, on the
    candidate. `requests`: answers that were counted by caller; `squares`: the sum of the squares of
    each caller's. `positions`: how far the answers of each replica were read, and of which process.
    """

    first: dict[float, tuple[int, int]] = {}
    requests: int = 0
    squares: int = 0
    positions: dict[str, tuple[int, int]] = {}

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
    """Everything that one interval adds.

    `at`: its end, of the monotonic clock. `share`: the candidate's share of the requests that went
    to either arm, in force over the whole interval (0 to 1); intervals in which it changed are left
    out by whoever reads. `step`: the rollout's, counted from 0. `is_sticky`: callers stay on an
    arm, so the arms' requests need not have the proportion of the share.
    """

    at: float
    duration_s: float
    share: float
    step: int = 0
    is_sticky: bool = False
    baseline: ArmCounts = ArmCounts()
    candidate: ArmCounts = ArmCounts()
    pairs: PairCounts = PairCounts()
    baseline_reward: RewardSums | None = None
    candidate_reward: RewardSums | None = None
