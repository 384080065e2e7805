"""The policy against loads that are known to give trouble. No flapping; fewer late requests."""

import dataclasses

import numpy as np
import pytest

from headrace.autoscale.policies import CpuTarget, Fixed, Oracle, View, enough_copies
from headrace.autoscale.signals import Signals
from headrace.autoscale.simulate import Outcome, _Load, _Run, simulate
from headrace.autoscale.traces import TRACES, Trace, steady
from headrace.core.autoscale_settings import AutoscaleSettings

pytestmark = pytest.mark.slow

_COMPARED = ("oracle", "headrace", "cpu-target")
_MOST_TURNS = {
    "steady": 0,
    "flash-crowd": 1,  # up, down
    "diurnal": 4,  # up, down, up, down; one to spare
    "on-off": 11,  # as often as the load
    "lost-metrics": 0,
    "slow-start": 1,
}


@pytest.fixture(scope="module")
def outcomes() -> dict[str, dict[str, Outcome]]:
    return {
        name: {outcome.policy: outcome for outcome in simulate(make(), only=_COMPARED)}
        for name, make in TRACES.items()
    }


@pytest.mark.long
@pytest.mark.parametrize("name", TRACES)
def test_the_count_turns_no_more_often_than_the_load(
    outcomes: dict[str, dict[str, Outcome]], name: str
) -> None:
    assert outcomes[name]["headrace"].direction_changes <= _MOST_TURNS[name]


@pytest.mark.parametrize("seed", [1, 2])
def test_other_requests_of_the_same_load_do_not_make_it_flap(seed: int) -> None:
    (outcome,) = simulate(steady(), seed=seed, only=["headrace"])

    assert outcome.direction_changes <= 1
    assert outcome.violation_ratio < 0.01


@pytest.mark.long
@pytest.mark.parametrize("name", ["flash-crowd", "slow-start", "lost-metrics"])
def test_a_burst_hurts_fewer_callers_than_under_a_cpu_target_and_costs_less(
    outcomes: dict[str, dict[str, Outcome]], name: str
) -> None:
    headrace, cpu = outcomes[name]["headrace"], outcomes[name]["cpu-target"]

    assert headrace.violation_ratio < cpu.violation_ratio
    assert headrace.replica_hours < cpu.replica_hours


@pytest.mark.long
@pytest.mark.parametrize("name", ["steady", "diurnal"])
def test_a_load_that_changes_slowly_meets_its_slo(
    outcomes: dict[str, dict[str, Outcome]], name: str
) -> None:
    headrace, oracle = outcomes[name]["headrace"], outcomes[name]["oracle"]

    assert headrace.violation_ratio < 0.01
    assert headrace.replica_hours < 1.3 * oracle.replica_hours


@pytest.mark.long
def test_lost_metrics_take_nothing_away(outcomes: dict[str, dict[str, Outcome]]) -> None:
    counts = outcomes["lost-metrics"]["headrace"].replicas

    assert min(counts[400:700]) >= counts[399]


@pytest.mark.long
def test_slow_starts_do_not_make_it_start_twice_as_many(
    outcomes: dict[str, dict[str, Outcome]],
) -> None:
    trace = outcomes["slow-start"]

    assert trace["headrace"].max_replicas <= 1.5 * trace["oracle"].max_replicas


@pytest.mark.long
def test_everybody_sees_the_same_requests(outcomes: dict[str, dict[str, Outcome]]) -> None:
    for by_policy in outcomes.values():
        assert len({outcome.requests for outcome in by_policy.values()}) == 1


def short() -> Trace:
    return dataclasses.replace(steady(), rates=np.full(60, 35.0), concurrency=2)


def test_the_same_seed_gives_the_same_outcome_and_another_one_another() -> None:
    assert simulate(short(), seed=3) == simulate(short(), seed=3)
    assert simulate(short(), seed=3) != simulate(short(), seed=4)


def test_settings_are_tried_as_they_are() -> None:
    (headrace,) = simulate(short(), AutoscaleSettings(min_replicas=9), only=["headrace"])

    assert headrace.replicas[-1] == 9


def test_fixed_sizes_are_the_mean_and_the_peak_of_what_is_enough() -> None:
    trace = dataclasses.replace(steady(), rates=np.repeat([5.0, 60.0], 30))
    outcomes = {outcome.policy: outcome for outcome in simulate(trace)}

    assert outcomes["fixed-peak"].replicas[-1] == max(outcomes["oracle"].replicas)
    assert outcomes["fixed-mean"].replicas[-1] < outcomes["fixed-peak"].replicas[-1]


def test_without_any_copy_every_request_is_refused() -> None:
    trace = dataclasses.replace(short(), start_s=1000.0)
    outcome = _Run(trace, Fixed(0, "none"), _Load.of(trace, 0), AutoscaleSettings()).outcome()

    assert outcome.refused_ratio > 0.9


def test_an_oracle_has_copies_ready_before_the_load_comes() -> None:
    trace = TRACES["slow-start"]()
    counts = Oracle(trace).counts

    assert counts[240] == enough_copies(trace, 10.0)
    assert counts[250] == enough_copies(trace, 50.0), "45 s of start, 10 s of warming up"
    assert enough_copies(trace, 1e9) == trace.max_replicas


def view(second: int, current: int, cpu: float | None, *, starting: int = 0) -> View:
    signals = Signals(at=0.0, ready=current - starting, starting=starting)
    return View(second=second, current=current, signals=signals, cpu=cpu)


def test_a_cpu_target_acts_as_kubernetes_documents_it() -> None:
    policy = CpuTarget(max_replicas=16)

    assert policy.count(view(14, 2, 1.0)) == 2, "only every 15 s"
    assert policy.count(view(15, 2, 1.0)) == 3
    assert CpuTarget(16).count(view(15, 2, 0.72)) == 2, "within its tolerance"
    assert CpuTarget(16).count(view(15, 2, None)) == 2
    assert CpuTarget(16).count(view(15, 4, 0.9, starting=2)) == 4, "what starts counts as idle"
    assert CpuTarget(16).count(view(15, 10, 0.1)) == 2


def test_a_fixed_size_stays() -> None:
    assert Fixed(3, "fixed").count(view(15, 7, 1.0)) == 3
