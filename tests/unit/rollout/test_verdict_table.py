"""Figures at the margin: what `docs/explain/verdicts.md` says of traffic that breaks assumptions.

`VERDICT_RUNS=1000 pytest -s -m long tests/unit/rollout/test_verdict_table.py` makes the table.
"""

import math
import os
import sys

import numpy as np
import pytest

from headrace.core.spec.rollout import CanarySpec, MetricsSpec
from headrace.rollout.simulate import SimulatedTests
from headrace.rollout.simulated_traffic import SimulatedBaseline, SimulatedCandidate
from tests.unit.rollout.worlds import Decided, Noisy, OffSplit, Stalls, TwoSpeeds, Untimed, watch

RUNS = int(os.environ.get("VERDICT_RUNS", "100"))
SETTINGS = CanarySpec()

pytestmark = [pytest.mark.long, pytest.mark.slow]


def same(runs: int = RUNS) -> list[SimulatedCandidate]:
    return [SimulatedCandidate()] * runs


def rng() -> np.random.Generator:
    return np.random.default_rng(11)


def at_most(level: float, runs: int = RUNS) -> float:
    """What a ratio of `runs` exceeds with probability 0.1 % if it is `level`."""
    return level + 3.1 * math.sqrt(level * (1 - level) / runs)


def tell(what: str, decided: Decided) -> None:
    back, on = np.median(decided.rolled_back_s), np.median(decided.promoted_s)
    sys.stdout.write(
        f"\n{what}: rolled back {decided.rolled_back:.1%}, promoted {decided.promoted:.1%}; "
        f"half after {back:g} s and {on:g} s\n"
    )


@pytest.mark.parametrize("weight", [0.1, 0.5])
@pytest.mark.parametrize("every_s", [30.0, 60.0])
def test_versions_that_stall_alike_are_not_told_apart(every_s: float, weight: float) -> None:
    world = SimulatedBaseline(weight=weight, bursts=True, moves=False)

    decided = watch(
        Stalls(world=world, candidates=same(), rng=rng(), every_s=every_s), SETTINGS, 1200
    )

    tell(f"stalls each {every_s:g} s, weight {weight:.0%}", decided)
    assert decided.rolled_back <= at_most(0.05)


@pytest.mark.parametrize("weight", [0.1, 0.5])
@pytest.mark.parametrize(
    ("correlation", "most"),
    # At 0.99 the candidate is slower than tolerated for minutes on end: a figure, not a promise.
    [(0.9, 0.05), (0.99, 0.15)],
)
def test_slow_noise_on_one_arm_is_no_difference(
    correlation: float, most: float, weight: float
) -> None:
    traffic = Noisy(
        world=SimulatedBaseline(weight=weight),
        candidates=same(),
        rng=rng(),
        correlation=correlation,
    )

    decided = watch(traffic, SETTINGS, 1200)

    tell(f"AR(1) {correlation:g} noise, weight {weight:.0%}", decided)
    assert decided.rolled_back <= at_most(most)


def test_a_split_that_was_not_kept_decides_nothing() -> None:
    traffic = OffSplit(
        world=SimulatedBaseline(weight=0.1, errors=0.05), candidates=same(), rng=rng()
    )

    decided = watch(traffic, SETTINGS, 1200, checks_share=True)

    tell("14 % instead of 10 %, both 5 % errors", decided)
    assert decided.rolled_back <= at_most(0.05)
    assert decided.promoted <= at_most(0.05)


@pytest.mark.parametrize("weight", [0.1, 0.5])
def test_a_longer_quantile_at_a_cliff_is_not_promoted(weight: float) -> None:
    world = SimulatedBaseline(weight=weight, errors=0.001)

    decided = watch(TwoSpeeds(world=world, candidates=same(), rng=rng()), SETTINGS, 600)

    tell(f"0.9 to 1.3 % at 100 ms instead of 10 ms, weight {weight:.0%}", decided)
    assert decided.promoted <= at_most(0.05)


def test_twice_as_slow_everywhere_is_found_within_minutes() -> None:
    traffic = TwoSpeeds(
        world=SimulatedBaseline(weight=0.1, errors=0.001),
        candidates=same(),
        rng=rng(),
        slow=(0.009, 0.009),
        factor=2.0,
    )

    decided = watch(traffic, SETTINGS, 180)

    tell("twice as slow at a cliff", decided)
    assert decided.rolled_back >= 0.99


@pytest.mark.parametrize("more_errors", [0.02, 0.05])
@pytest.mark.parametrize("requests_per_s", [50.0, 200.0])
@pytest.mark.parametrize("held_min", [15, 30, 60])
def test_a_step_gives_no_credit_to_the_next(
    held_min: int, requests_per_s: float, more_errors: float
) -> None:
    runs = max(RUNS * 3 // 10, 30)
    world = SimulatedBaseline(weight=0.05, errors=0.001, requests_per_s=requests_per_s)
    # Latency only holds promotions back, so what is promoted without it is a bound.
    settings = CanarySpec(metrics=MetricsSpec(latency=None))
    traffic = Untimed(world=world, candidates=same(runs), rng=rng())
    worse = [SimulatedCandidate(more_errors=more_errors)] * runs
    held_s = 60 * held_min

    def before(second: int, tests: SimulatedTests) -> bool:
        if second == held_s + 1:
            traffic.weights, traffic.candidates = np.full(runs, 0.5), worse
            tests.step = np.ones(runs)
        return second > held_s

    decided = watch(traffic, settings, held_s + 600, before=before)
    decided.rolled_back_s -= held_s
    decided.promoted_s -= held_s
    at_once = SimulatedBaseline(weight=0.5, errors=0.001, requests_per_s=requests_per_s)
    alone = watch(Untimed(world=at_once, candidates=worse, rng=rng()), settings, 600)

    tell(f"{more_errors:+.0%} at 50 % after {held_min} min, {requests_per_s:g}/s", decided)
    tell("  from the start", alone)
    assert decided.promoted <= at_most(0.05, runs)
    # Noise of two medians; the figure of 300 runs is below 1.5.
    assert np.median(decided.rolled_back_s) <= 2.0 * np.median(alone.rolled_back_s)
