"""Versions that are the same, and callers of whom few send most requests and some always fail."""

from dataclasses import dataclass, field

import numpy as np
import pytest

from headrace.core.spec.rollout import CanarySpec, ErrorsSpec
from headrace.rollout.betting import Array
from headrace.rollout.change_detector import ChangeDetector
from headrace.rollout.evidence import metrics_in_use
from headrace.rollout.judge import is_worse
from headrace.rollout.rate_difference import RateDifferences
from tests.unit.rollout.test_simulate import at_most


@dataclass(frozen=True, slots=True, kw_only=True)
class UnequalCallers:
    """Sticky callers, the i-th of whom sends 1 / i as much as the first.

    Each is on the candidate with probability `weight`, and one whose requests fail on either
    version with probability `failing`. `by_caller`: whether evidence counts callers or requests.
    """

    weight: float
    callers: int = 2000
    requests_per_s: int = 50
    duration_s: int = 1200
    failing: float = 0.05
    by_caller: bool = True
    settings: CanarySpec = field(default_factory=CanarySpec)

    def rolled_back(self, *, runs: int, seed: int) -> float:
        """In which share of the runs the metric of errors ever rolls back, looked at each 5 s.

        As `Evidence` weighs and judges, all runs side by side.
        """
        rng = np.random.default_rng(seed)
        errors = self.settings.metrics.errors or ErrorsSpec()
        level = self.settings.alpha / len(metrics_in_use(self.settings)[0])
        traffic = np.cumsum(1.0 / np.arange(1, self.callers + 1))
        is_on_candidate = rng.random((runs, self.callers)) < self.weight
        is_failing = rng.random((runs, self.callers)) < self.failing
        sent = np.zeros((runs, self.callers))
        tests, turn = (
            RateDifferences.start(runs, watched=errors.margin),
            ChangeDetector.start(runs, errors.margin),
        )
        rows, ever = np.arange(runs)[:, None], np.zeros(runs, bool)
        for second in range(self.duration_s):
            drawn = rng.random((runs, self.requests_per_s)) * traffic[-1]
            who = np.searchsorted(traffic, drawn)
            on_candidate, failed = is_on_candidate[rows, who], is_failing[rows, who]
            arms = [
                ((arm & failed).sum(1).astype(float), arm.sum(1).astype(float))
                for arm in (on_candidate, ~on_candidate)
            ]
            tests.add(self.weight, arms[0], arms[1])
            turn.add(self.weight, arms[0], arms[1])
            flat = (rows * self.callers + who).ravel()
            sent += np.bincount(flat, minlength=sent.size).reshape(sent.shape)
            if self.by_caller:
                _weigh(tests, turn, sent)
            if second % 5 == 4:
                harm = tests.log_evidence_of_harm()
                ever |= is_worse(harm, turn.log_evidence(), level)
        return float(ever.mean())


def _weigh(tests: RateDifferences, turn: ChangeDetector, sent: Array) -> None:
    """As `Evidence` does, each run by its own callers."""
    part = np.minimum(sent.sum(1) / (sent**2).sum(1), 1.0)
    tests.part = part  # one for each run
    turn.part = tests.parts


@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.1, 0.5])
def test_few_callers_that_send_most_roll_back_hardly_any_of_two_equal_versions(
    weight: float,
) -> None:
    callers = UnequalCallers(weight=weight, duration_s=300)

    assert callers.rolled_back(runs=150, seed=3) <= at_most(0.05, 150)


@pytest.mark.slow
def test_law_sees_what_counting_requests_does() -> None:
    callers = UnequalCallers(weight=0.5, duration_s=300, by_caller=False)

    assert callers.rolled_back(runs=100, seed=3) > 0.3


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("weight", [0.1, 0.5])
def test_unequal_callers_roll_back_at_most_a_twentieth_of_1000_rollouts(weight: float) -> None:
    assert UnequalCallers(weight=weight).rolled_back(runs=1000, seed=11) <= 0.05
