"""The policy against loads that are known to give trouble. No flapping; fewer late requests."""

import dataclasses

import numpy as np
import pytest

from headrace.core.spec.scale import AutoscaleSpec
from tests.unit.autoscale.simulation import TRACES, Outcome, Trace, simulate, steady

pytestmark = pytest.mark.slow

_COMPARED = ("oracle", "headrace", "cpu-target")
_MAX_TURNS = {
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
    assert outcomes[name]["headrace"].direction_changes <= _MAX_TURNS[name]


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


def short() -> Trace:
    return dataclasses.replace(steady(), rates=np.full(60, 35.0), concurrency=2)


def test_settings_are_tried_as_they_are() -> None:
    (headrace,) = simulate(
        short(), AutoscaleSpec(min_replicas=9, max_replicas=9), only=["headrace"]
    )

    assert headrace.replicas[-1] == 9
