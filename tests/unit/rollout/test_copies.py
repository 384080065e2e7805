"""Simulated shadows of language models: each request, or some, and its copy on the new version."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from numpy.typing import NDArray

from headrace.core.spec.rollout import (
    LatencySpec,
    MetricsSpec,
    OutputTokensSpec,
    ShadowSpec,
    TimePerOutputTokenSpec,
)
from headrace.rollout.betting import Array
from headrace.rollout.evidence import RolloutEvidenceState, metrics_in_use
from headrace.rollout.outcomes import Outcome
from headrace.rollout.simulate import TOKEN_METRICS, SimulatedTests
from headrace.rollout.simulated_traffic import (
    CLASSES,
    SimulatedBaseline,
    SimulatedCandidate,
    SimulatedInterval,
    TrafficDraws,
)
from tests.unit.rollout.test_simulate import increment

SETTINGS = ShadowSpec(
    counts_copies=True,
    min_samples=1,
    metrics=MetricsSpec(
        latency=LatencySpec(quantile=0.5, margin_ratio=1.1),
        time_per_output_token=TimePerOutputTokenSpec(),
        output_tokens=OutputTokensSpec(),
    ),
)
METRICS = ("errors", "rejections", "latency", "predictions", *TOKEN_METRICS)
ALIKE = 0.6
"""Part of the variance, and of the failures, that is the request's and not the version's."""


@dataclass(kw_only=True)
class CopiedDraws(TrafficDraws):
    """Seconds of many shadows. Both arms get the same requests, and count them when they end."""

    percent: int = 100
    running: Array = field(default_factory=lambda: np.zeros((6, 0)))
    """Rows `end_s, cell, latency_s, per_token_s, tokens, outcome` of requests in flight."""

    def next(self) -> SimulatedInterval:
        world, runs = self.world, len(self.candidates)
        swell = self._swell()
        rate = world.requests_per_s * (1.0 + 0.5 * swell)
        run = np.repeat(np.arange(runs), self.rng.poisson(rate))
        shared = self.rng.standard_normal((3, run.size))
        fate = self.rng.random(run.size)
        is_copied = self.rng.random(run.size) < self.percent / 100
        for arm, sent in enumerate((np.ones(run.size, bool), is_copied)):
            rows = self._answers(arm, run[sent], shared[:, sent], fate[sent], swell)
            self.running = np.concatenate([self.running, rows], axis=1)
        is_over = self.running[0] <= self._second
        ended, self.running = self.running[:, is_over], self.running[:, ~is_over]
        cell = ended[1].astype(np.int64)
        counts = [
            np.bincount(cell[kind], minlength=2 * runs).reshape(2, runs).astype(float)
            for kind in (np.ones(cell.size, bool), ended[5] == 1, ended[5] == 2)
        ]
        return SimulatedInterval(
            requests=counts[0],
            errors=counts[1],
            rejections=counts[2],
            classes=np.zeros((2, runs, len(CLASSES))),
            cell=cell,
            bucket=np.searchsorted(self.upper_s[:-1], ended[2], side="left"),
            per_token=np.searchsorted(self.token_buckets()[1][:-1], ended[3], side="left"),
            lengths=np.ceil(ended[4]).astype(np.int64),
        )

    def _answers(
        self, arm: int, run: NDArray[np.int64], shared: Array, fate: Array, swell: Array
    ) -> Array:
        """The rows of one arm's answers to requests sent in this second."""
        version = self.candidates if arm else [SimulatedCandidate()] * len(self.candidates)
        slower, per_token, longer, more = (
            np.array([getattr(candidate, name) for candidate in version])[run]
            for name in ("times_slower", "times_slower_per_token", "times_longer", "more_errors")
        )
        own = self.rng.standard_normal(shared.shape)
        noise = np.sqrt(ALIKE) * shared + np.sqrt(1 - ALIKE) * own
        spread = np.exp(np.array([0.5, 0.2, 0.8])[:, None] * noise)
        latency = self.world.median_s * slower * spread[0] * (1.0 + 0.3 * swell[run])
        token = self.world.per_token_s * per_token * spread[1]
        tokens = self.world.output_tokens * longer * spread[2]
        own_fate = np.where(self.rng.random(run.size) < ALIKE, fate, self.rng.random(run.size))
        fails = own_fate < self.world.errors * (1.0 + 0.8 * swell[run]) + more
        outcome = np.where(fails, 1, np.where(fate > 1.0 - self.world.rejections, 2, 0))
        end = self._second + self.rng.random(run.size) + latency + token * tokens
        return np.stack([end, arm * len(self.candidates) + run, latency, token, tokens, outcome])


def draws(candidate: SimulatedCandidate, runs: int, percent: int, seed: int) -> CopiedDraws:
    world = SimulatedBaseline(
        requests_per_s=20.0, weight=percent / (100 + percent), median_s=0.2, streams=True
    )
    rng = np.random.default_rng(seed)
    return CopiedDraws(world=world, candidates=[candidate] * runs, rng=rng, percent=percent)


def rolled_back(
    candidate: SimulatedCandidate, *, runs: int, duration_s: int, percent: int = 100
) -> dict[str, int]:
    """How many runs each metric ever rolls back, read every second; under `any`, any metric."""
    traffic = draws(candidate, runs, percent, seed=8)
    tests = SimulatedTests(SETTINGS, traffic)
    worse = np.zeros((len(METRICS), runs), bool)
    for _ in range(duration_s):
        tests.add(traffic.next())
        worse |= tests.verdicts()[0]
    by_metric = dict(zip(METRICS, worse.sum(axis=1).tolist(), strict=True))
    return {"any": int(worse.any(axis=0).sum()), **by_metric}


def laws(equal: int, worse: int, duration_s: int, percent: int) -> None:
    same = rolled_back(SimulatedCandidate(), runs=equal, duration_s=duration_s, percent=percent)
    assert same["any"] / equal <= 0.05
    for candidate, metric in (
        (SimulatedCandidate(times_slower_per_token=1.3), "time_per_output_token"),
        (SimulatedCandidate(times_slower=1.3), "latency"),
        (SimulatedCandidate(times_longer=2.0), "output_tokens"),
        (SimulatedCandidate(more_errors=0.1), "errors"),
    ):
        counts = rolled_back(candidate, runs=worse, duration_s=duration_s, percent=percent)
        assert counts[metric] >= 0.95 * worse, (candidate, counts)


@pytest.mark.slow
def test_a_worse_copy_of_a_language_model_is_rolled_back_and_an_equal_one_is_not() -> None:
    laws(20, 8, 240, 100)


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("percent", [100, 25])
def test_of_a_thousand_equal_copies_of_a_language_model_few_are_rolled_back(percent: int) -> None:
    laws(1000, 100, 300 if percent == 100 else 600, percent)


@pytest.mark.slow
@pytest.mark.parametrize(
    "candidate", [SimulatedCandidate(), SimulatedCandidate(times_slower_per_token=1.3)]
)
def test_the_evidence_of_a_shadow_decides_by_tokens_as_the_simulation_does(
    candidate: SimulatedCandidate,
) -> None:
    traffic = draws(candidate, 1, 100, seed=3)
    tests, evidence = SimulatedTests(SETTINGS, traffic), RolloutEvidenceState.start(SETTINGS)
    for reason in ("predictions", "disagreement"):
        evidence.leave_out(reason, "the texts of a language model are not compared")
    said, verdict = set(), evidence.verdict(0.0)
    for at in range(250):
        interval = traffic.next()
        tests.add(interval)
        worse, tolerated = tests.verdicts()
        evidence.add(increment(traffic, interval, 0, at))
        verdict = evidence.verdict(at)
        for metric in verdict.metrics:
            row = METRICS.index(metric.metric)
            assert (metric.outcome is Outcome.ROLL_BACK) == worse[row, 0]
            assert (metric.outcome is Outcome.PROMOTE) == tolerated[row, 0]
        said.add(verdict.outcome)
    is_equal = candidate == SimulatedCandidate()
    assert (Outcome.ROLL_BACK in said) is not is_equal
    assert "predictions: not judged, the texts" in verdict.explanation
    assert "crashes" not in metrics_in_use(SETTINGS)[0]
