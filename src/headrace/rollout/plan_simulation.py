"""Simulation of a rollout plan at an endpoint's load: outcomes of good and bad versions.

Runs as a program of its own (`python -m headrace.rollout.plan_simulation REQUEST`), because it
computes for seconds. It prints a `PlanSimulation` as JSON.

Pauses, approvals and warm-up are not simulated, so a rollout takes at least its pauses longer.
"""

import math
import os
import sys
from typing import Final

import msgspec
import numpy as np
from msgspec.structs import replace

from headrace.core.spec.rollout import (
    AbSpec,
    CanarySpec,
    ErrorsSpec,
    MetricsSpec,
    PredictionsSpec,
    RejectionsSpec,
    RolloutSpec,
)
from headrace.rollout.outlook import EndpointLoad, outlook
from headrace.rollout.simulate import simulate
from headrace.rollout.simulated_traffic import SimulatedBaseline, SimulatedCandidate
from headrace.rollout.stages import plan_of

_MOST_RUNS: Final = 50
_MIN_RUNS: Final = 20
_MAX_REQUESTS: Final = 6e6
"""Simulated requests of all runs, which take about 5 s."""
_READINGS: Final = 150
"""Readings of each run. A longer rollout is simulated with proportionally more requests in each."""
_TIMES_OUTLOOK: Final = 2.0
_MIN_S: Final = 60.0
_MOST_PER_READING: Final = 10_000.0
_UNUSED_MARGIN: Final = 0.99
"""Margin of a metric that the plan leaves out: no simulated version reaches it."""
_TIMES_MARGIN: Final = 2.0
_NICE: Final = 10


class SimulationRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A plan and the load under which it is simulated."""

    settings: RolloutSpec
    load: EndpointLoad
    seed: int = 1


class SimulatedOutcome(msgspec.Struct, frozen=True, kw_only=True):
    """Outcomes of one kind of version; ratios are 0 to 1."""

    candidate: str
    promoted_ratio: float
    rolled_back_ratio: float
    undecided_ratio: float
    median_s: float | None
    """Time when half of the rollouts were decided; null if fewer ever were. Unit: seconds."""


class PlanSimulation(msgspec.Struct, frozen=True, kw_only=True):
    """Outcomes of `runs` rollouts of each kind of version within `duration_s`."""

    runs: int
    duration_s: float
    requests_per_s: float
    outcomes: tuple[SimulatedOutcome, ...]


def why_not_simulated(settings: RolloutSpec, load: EndpointLoad) -> str:
    """Return why a plan cannot be simulated; empty if it can."""
    if not isinstance(settings, CanarySpec | AbSpec):
        return f"a {settings.strategy} rollout compares no shares of the requests"
    if isinstance(settings, CanarySpec) and settings.baseline:
        return "fresh copies of the old version are not simulated"
    if outlook(settings, load) is None:
        return "no step of the plan waits for a verdict on errors, latency or predictions"
    if load.requests_per_s <= 0.0:
        return "the endpoint has no requests"
    return ""


def simulate_plan(request: SimulationRequest) -> PlanSimulation:
    """Return the outcomes of a plan for which `why_not_simulated` is empty.

    The simulated versions are as good as the old one, or worse in one metric by twice its margin.
    """
    settings, load = request.settings, request.load
    expected = outlook(settings, load)
    assert expected is not None, "the plan waits for a verdict"
    times_s = (expected.good_s, expected.worse_s)
    longest_s = max((time_s for time_s in times_s if math.isfinite(time_s)), default=math.inf)
    duration_s = min(max(_TIMES_OUTLOOK * longest_s, _MIN_S), settings.max_duration_s)
    reading_s = max(duration_s / _READINGS, 1.0)
    reading_s = min(reading_s, max(_MOST_PER_READING / load.requests_per_s, 1.0))
    readings = max(math.ceil(duration_s / reading_s), 1)
    steps = [
        stage.traffic.share
        for stage in plan_of(settings).stages
        if stage.until == "verdict" and 0 < stage.traffic.candidate < 100  # noqa: PLR2004  # percent
    ]
    world = SimulatedBaseline(
        requests_per_s=load.requests_per_s * load.independent_ratio * reading_s,
        weight=steps[0],
        errors=load.error_ratio,
        rejections=load.rejection_ratio,
        median_s=load.median_s,
        moves=False,
    )
    candidates = _candidates(settings)
    requests = load.requests_per_s * duration_s * len(candidates)
    runs = int(min(max(_MAX_REQUESTS / requests, _MIN_RUNS), _MOST_RUNS))
    results = simulate(
        world,
        candidates,
        CanarySpec(
            alpha=settings.alpha,
            min_samples=settings.min_samples,
            metrics=_all_metrics(settings.metrics),
        ),
        runs=runs,
        duration_s=readings,
        rng=np.random.default_rng(request.seed),
        steps=steps,
    )
    return PlanSimulation(
        runs=runs,
        duration_s=readings * reading_s,
        requests_per_s=load.requests_per_s,
        outcomes=tuple(
            SimulatedOutcome(
                candidate=result.candidate,
                promoted_ratio=result.promoted,
                rolled_back_ratio=result.rolled_back,
                undecided_ratio=result.undecided,
                median_s=None if result.median_s is None else result.median_s * reading_s,
            )
            for result in results
        ),
    )


def _candidates(settings: RolloutSpec) -> list[SimulatedCandidate]:
    metrics = settings.metrics
    candidates = [SimulatedCandidate(name="as good as the old version")]
    if metrics.errors is not None:
        more = _TIMES_MARGIN * metrics.errors.margin
        name = f"errors {100 * more:g} percentage points higher"
        candidates.append(SimulatedCandidate(name=name, more_errors=more))
    if metrics.latency is not None:
        slower = 1.0 + _TIMES_MARGIN * (metrics.latency.margin_ratio - 1.0)
        name = f"latency {slower:g} times as long"
        candidates.append(SimulatedCandidate(name=name, times_slower=slower))
    return candidates


def _all_metrics(metrics: MetricsSpec) -> MetricsSpec:
    """Return the simulated metrics; the simulation needs the three ratios."""
    errors, rejections, predictions = metrics.errors, metrics.rejections, metrics.predictions
    return replace(
        metrics,
        errors=errors or ErrorsSpec(margin=_UNUSED_MARGIN),
        rejections=rejections or RejectionsSpec(margin=_UNUSED_MARGIN),
        predictions=predictions or PredictionsSpec(margin=_UNUSED_MARGIN),
    )


if __name__ == "__main__":
    os.nice(_NICE)  # the control plane and the replicas come first
    plan = msgspec.json.decode(sys.argv[1], type=SimulationRequest)
    sys.stdout.buffer.write(msgspec.json.encode(simulate_plan(plan)) + b"\n")
