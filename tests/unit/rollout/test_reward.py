import math

import numpy as np
import pytest

from headrace.rollout.readings import RewardSums
from headrace.rollout.reward import RewardDifference, boundary


def sums(rewards: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> RewardSums:
    return RewardSums(
        units=len(rewards),
        mean=float(rewards.mean()),
        squares=float(((rewards - rewards.mean()) ** 2).sum()),
    )


def test_the_boundary_is_the_papers_but_for_its_one_side() -> None:
    # Waudby-Smith et al. 2024, for both sides together at twice the level, with the same rho.
    level, units, tuned = 0.025, 500, 1000
    wanted = -2 * math.log(2 * level)
    rho2 = (wanted + math.log(wanted) + 1) / tuned
    trimmed_capitals = units * rho2 + 1
    both_sides = math.sqrt(
        2
        * trimmed_capitals
        / (units**2 * rho2)
        * math.log(math.sqrt(trimmed_capitals) / (2 * level))
    )

    assert boundary(units, level, tuned_for=tuned) == pytest.approx(both_sides, rel=0.03)


def test_the_boundary_is_narrowest_where_it_is_tuned() -> None:
    at_1000 = [boundary(1000, 0.0125, tuned_for=tuned) for tuned in (50, 1000, 100_000)]

    assert at_1000[1] == min(at_1000)


def test_a_level_of_a_half_still_has_a_boundary() -> None:
    assert boundary(100, 0.5, tuned_for=100) > 0.0


def test_a_better_arm_is_told_and_its_bounds_hold_the_truth() -> None:
    rng = np.random.default_rng(3)
    rewards = RewardDifference(sums(rng.exponential(1.0, 3000)), sums(rng.exponential(1.3, 3000)))

    bounds = rewards.bounds(0.025, 0.025, tuned_for=2000)

    assert bounds is not None
    assert 0.0 < bounds[0] < 0.3 < bounds[1]


def test_hundred_zeros_prove_nothing() -> None:
    zeros, some = np.zeros(100), np.array([1.0] * 10 + [0.0] * 90)

    assert RewardDifference(sums(zeros), sums(zeros)).bounds(0.025, 0.025, tuned_for=2000) is None
    bounds = RewardDifference(sums(zeros), sums(some)).bounds(0.025, 0.025, tuned_for=2000)
    assert bounds is not None
    assert bounds[0] < 0.0


def test_one_unit_has_no_variance() -> None:
    assert (
        RewardDifference(sums(np.ones(1)), sums(np.ones(5))).bounds(0.1, 0.1, tuned_for=9) is None
    )


@pytest.mark.slow
def test_skewed_rewards_read_after_every_unit_are_seldom_missed() -> None:
    rng, runs, level = np.random.default_rng(11), 400, 0.05
    a, b = rng.exponential(1.0, (2, runs, 1000))
    missed = np.zeros(runs, bool)
    for n in range(100, 1001, 25):
        for run in np.flatnonzero(~missed):
            found = RewardDifference(sums(a[run, :n]), sums(b[run, :n]))
            bounds = found.bounds(level, level, tuned_for=1000)
            missed[run] = bounds is None or bounds[0] > 0.0

    assert missed.sum() <= level * runs + 3 * math.sqrt(level * (1 - level) * runs)
