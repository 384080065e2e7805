"""A metric's verdict holds the numbers that its sentence tells, whoever reads it."""

from typing import Final

import numpy as np
import pytest

from headrace.core.spec.rollout import (
    DisagreementSpec,
    ErrorsSpec,
    LatencySpec,
    PredictionsSpec,
    RewardSpec,
)
from headrace.rollout import judge, judge_fixed
from headrace.rollout.assignment import Assignments
from headrace.rollout.bernoulli import Rate
from headrace.rollout.betting import Array
from headrace.rollout.change_detector import ChangeDetector
from headrace.rollout.latency_ratio import LatencyMargin, LatencyRatios
from headrace.rollout.moves import reasons_for
from headrace.rollout.outcomes import MetricVerdict, Names, Outcome, RolloutVerdict, points
from headrace.rollout.prediction_shift import PredictionShift
from headrace.rollout.rate_difference import RateDifferences
from headrace.rollout.readings import RewardSums
from headrace.rollout.reward import RewardDifference
from tests.unit.rollout.readings import in_buckets

NAMES: Final = Names(baseline="version 1", candidate="version 2")
BUDGET: Final = judge_fixed.Budget(back=0.01, on=0.05)
NOTHING: Final = (None,) * 6


def numbers(found: MetricVerdict) -> tuple[float | None, ...]:
    return found.baseline, found.candidate, found.effect, found.low, found.high, found.margin


def one(value: float) -> Array:
    return np.array([value])


def errors(a: tuple[int, int], b: tuple[int, int]) -> MetricVerdict:
    """The verdict where `a` and `b` are how many failed, and of how many."""
    settings = ErrorsSpec(margin=0.02)
    tests, turn = RateDifferences.start(1, watched=0.02), ChangeDetector.start(1, 0.02)
    for _ in range(10):
        arms = (one(b[0] / 10), one(b[1] / 10)), (one(a[0] / 10), one(a[1] / 10))
        tests.add(0.5, *arms)
        turn.add(0.5, *arms)
    return judge.judge_difference(
        "errors",
        "failed",
        tests,
        settings,
        turn=turn,
        own=Rate(),
        budget=BUDGET,
        names=NAMES,
        step=0,
    )


def test_a_difference_of_rates() -> None:
    found = errors((20, 2000), (20, 2000))

    assert (found.unit, found.alpha, found.samples) == ("ratio difference", 0.05, (2000, 2000))
    assert (found.baseline, found.candidate, found.margin) == (0.01, 0.01, 0.02)
    assert found.low is not None
    assert found.high is not None
    assert found.low < 0.0 < found.high < 0.02
    assert found.effect == pytest.approx(0.0, abs=1e-12)
    assert found.reason == (
        "errors: 1 % of 2,000 requests failed on version 2 against 1 % of 2,000 on version 1: "
        f"difference {points(found.effect or 0.0)} points, between {points(found.low)} and "
        f"{points(found.high)} with "
        "95 % confidence at any time; 2 points are tolerated: within what is tolerated"
    )


@pytest.mark.parametrize(
    ("a", "b", "missing"),
    [
        ((0, 0), (0, 100), "version 1"),
        ((0, 100), (0, 0), "version 2"),
        ((0, 0), (0, 0), "version 1"),
    ],
)
def test_an_arm_without_requests_is_named_and_has_no_numbers(
    a: tuple[int, int], b: tuple[int, int], missing: str
) -> None:
    found = errors(a, b)

    assert found.reason == f"errors: no requests to {missing} counted yet"
    assert found.outcome is Outcome.WAIT
    assert found.alpha == BUDGET.on
    assert numbers(found) == NOTHING


def test_a_ratio_of_quantiles() -> None:
    ratios = LatencyRatios.start(0.9, LatencyMargin(1.5, 0.0))
    for _ in range(40):
        same = in_buckets(
            lower_s=(0.010, 0.020, 0.10), width_s=(0.001, 0.001, 0.01), counts=(80, 10, 10)
        )
        ratios.add(0.5, same, same)

    found = judge.judge_latency(
        "latency", [ratios], LatencySpec(quantile=0.9), slow=Rate(), budget=BUDGET, names=NAMES
    )

    assert (found.unit, found.alpha, found.samples) == ("times", 0.05, (4000, 4000))
    assert found.baseline == found.candidate
    assert found.baseline == pytest.approx(0.021, rel=0.1)
    assert found.effect == 1.0
    assert found.margin == pytest.approx(1.5)
    assert found.low is not None
    assert found.low <= 1.0


def test_the_largest_change_of_the_answers() -> None:
    shift = PredictionShift.start()
    for _ in range(20):
        shift.add(0.5, {"cat": 70, "dog": 30}, {"cat": 30, "dog": 70})

    found = judge.judge_shift(
        "predictions", shift, PredictionsSpec(margin=0.1), budget=BUDGET, names=NAMES
    )

    assert found.outcome is Outcome.ROLL_BACK
    assert (found.baseline, found.candidate) in {(0.7, 0.3), (0.3, 0.7)}
    assert (found.unit, found.margin, found.alpha) == ("ratio difference", 0.1, 0.05)
    assert found.samples == (2000, 2000)
    assert found.effect == pytest.approx(0.4)
    assert found.low is not None
    assert found.high is not None
    assert 0.1 < found.low < 0.4 < found.high


def test_a_difference_of_rewards() -> None:
    def sums(mean: float) -> RewardSums:
        return RewardSums(units=2000, mean=mean, squares=2000.0)

    rewards = RewardDifference(baseline=sums(1.0), candidate=sums(1.4))

    found = judge.judge_reward(rewards, RewardSpec(margin=0.05), budget=BUDGET, names=NAMES)

    assert found.outcome is Outcome.PROMOTE
    assert (found.baseline, found.candidate, found.margin) == (1.0, 1.4, 0.05)
    assert (found.unit, found.alpha, found.samples) == ("reward", 0.05, (2000, 2000))
    assert found.effect == pytest.approx(0.4)
    assert found.low is not None
    assert found.high is not None
    assert 0.2 < found.low < 0.4 < found.high < 0.6


@pytest.mark.parametrize("counts", [(0, 0), (900, 100), (500, 500)])
def test_an_assignment(counts: tuple[int, int]) -> None:
    assignments = Assignments()
    assignments.add(0.1, *counts)

    found = judge.judge_assignment(
        assignments, counted="units", is_off=counts == (500, 500), level=0.001, names=NAMES
    )

    assert found.alpha == 0.001
    if counts == (0, 0):
        assert found.reason == "assignment: no caller is assigned to either version yet"
        assert numbers(found) == NOTHING
        return
    is_off = counts == (500, 500)
    seen = counts[1] / 1000
    assert found.outcome is (Outcome.WAIT if is_off else Outcome.PROMOTE)
    assert ("the other numbers cannot be trusted" in found.reason) is is_off
    assert (found.baseline, found.candidate) == (0.1, seen)
    assert found.effect == pytest.approx(seen - 0.1)
    assert found.samples == counts


def test_a_rate_of_its_own() -> None:
    own = Rate()
    own.add(30, 1000)

    found = judge_fixed.judge_disagreement(
        own, DisagreementSpec(max_ratio=0.1), budget=BUDGET, names=NAMES
    )

    low, high = own.bounds(BUDGET.back)[0], own.bounds(BUDGET.on)[1]
    assert found.outcome is Outcome.PROMOTE
    assert numbers(found) == (None, 0.03, 0.03, low, high, 0.1)
    assert (found.unit, found.alpha, found.samples) == ("ratio", 0.05, (0, 1000))
    assert "3 % of 1,000 pairs of answers differ on version 2" in found.reason


def test_a_rate_of_its_own_that_has_no_trials_waits() -> None:
    found = judge_fixed.judge_disagreement(Rate(), DisagreementSpec(), budget=BUDGET, names=NAMES)

    assert found.reason == "disagreement: no pairs of answers of version 2 counted yet"
    assert (found.alpha, numbers(found)) == (0.05, NOTHING)


def test_seconds_that_are_too_many() -> None:
    ratios, slow = LatencyRatios.start(0.9, LatencyMargin()), Rate()
    late = in_buckets(lower_s=(0.5,), width_s=(0.01,), counts=(400,))
    ratios.add(0.5, late, late)
    slow.add(400, 400)

    found = judge_fixed.judge_slow(
        ratios,
        LatencySpec(quantile=0.9, max_s=0.2),
        slow=slow,
        budget=BUDGET,
        names=NAMES,
    )

    low, high = slow.bounds(BUDGET.back)[0], slow.bounds(BUDGET.on)[1]
    assert found.outcome is Outcome.ROLL_BACK
    assert found.candidate == pytest.approx(0.51, rel=0.03)
    assert (found.effect, found.low, found.high) == (1.0, low, high)
    assert found.margin == pytest.approx(0.1)
    assert (found.unit, found.alpha, found.samples) == ("ratio", 0.05, (0, 400))
    assert found.reason.endswith("where 10 % may: too slow")


def test_what_nobody_said_is_told_by_the_explanation() -> None:
    said = errors((20, 2000), (20, 2000))
    verdict = RolloutVerdict(
        outcome=said.outcome, at=1.0, metrics=(said,), explanation="all is well"
    )

    assert reasons_for(verdict, said.outcome) == said.reason
    assert reasons_for(verdict, Outcome.ROLL_BACK) == "all is well"
