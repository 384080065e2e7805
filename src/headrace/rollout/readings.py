"""Counts of one interval between two readings of the gateway and the replicas."""

from collections.abc import Mapping
from typing import Final, TypeAlias

import msgspec

Buckets: TypeAlias = Mapping[tuple[float, float], int]
"""Requests by lower edge (exclusive) and width of their bucket, ascending and in seconds. The
gateway's buckets have two significant digits."""


class ArmCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of one arm in one interval: requests of the traffic split only, by outcome.

    `requests` includes `errors` (5xx, 429) and `rejections` (other 4xx, without 499).
    """

    requests: int = 0
    errors: int = 0
    rejections: int = 0
    latency: Buckets = {}
    classes: Mapping[str, int] = {}
    """Responses by predicted class."""
    scores: Mapping[float, int] = {}
    """Responses by the upper edge of their score's bucket; a response has a class or a score."""
    per_token: Buckets = {}
    """Streamed responses by the mean time of their output tokens after the first."""
    output_tokens: Mapping[int, int] = {}
    """Responses by their number of output tokens, of which two digits are significant."""


class PairCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Comparison of pairs of responses to the same request, for shadows."""

    pairs: int = 0
    disagreements: int = 0
    unanswered: int = 0
    """Number of copies that the shadow failed; `pairs` are those with a response."""
    distance_sum: float = 0.0
    """Sum of the mean distances of the pairs: absolute differences, or cosine distances."""


REWARD_LIMIT: Final = 1e12
"""The largest absolute value of a reward; the squares of a million of these are finite."""


class RewardSums(msgspec.Struct, frozen=True, kw_only=True):
    """Rewards of one arm so far: units, their mean, the sum of squared deviations from it."""

    units: int = 0
    mean: float = 0.0
    squares: float = 0.0
    left_out: int = 0
    """Number of units whose stored rewards exceed `REWARD_LIMIT`; they are excluded from the other
    fields."""


class UnitTally(msgspec.Struct, frozen=True, kw_only=True):
    """Callers of one rollout so far, as stored."""

    first: dict[float, tuple[int, int]] = {}
    """Callers by the candidate's share at their first response: on the baseline, on the
    candidate."""
    requests: int = 0
    """Number of responses that were counted by caller."""
    squares: int = 0
    """Sum of the squares of each caller's responses."""
    positions: dict[str, tuple[int, int]] = {}
    """Read position in the responses of each replica, and the replica's process."""

    @property
    def units(self) -> int:
        """Return the number of callers."""
        return sum(baseline + candidate for baseline, candidate in self.first.values())


class When(msgspec.Struct, frozen=True, kw_only=True):
    """Rollout step of an interval, counted from 0, and the interval's duration."""

    step: int = 0
    duration_s: float = 1.0


ONE_SECOND: Final = When()


class Increment(msgspec.Struct, frozen=True, kw_only=True):
    """Counts that one interval adds."""

    at: float
    """End of the interval, on the monotonic clock."""
    duration_s: float
    share: float
    """Candidate's share of the requests that went to either arm, in force over the whole interval
    (0 to 1); the reader leaves out intervals in which it changed."""
    step: int = 0
    """Step of the rollout, counted from 0."""
    is_sticky: bool = False
    """Whether callers stay on an arm, so the arms' requests may not have the proportion of the
    share."""
    baseline: ArmCounts = ArmCounts()
    candidate: ArmCounts = ArmCounts()
    pairs: PairCounts = PairCounts()
    baseline_reward: RewardSums | None = None
    candidate_reward: RewardSums | None = None
