"""From a load to replicas, nodes, clusters and cost."""

from dataclasses import replace
from typing import Final

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.advise.plan.capacity import (
    Fleet,
    Forecast,
    NodeType,
    PlannedLoad,
    ReplicaProfile,
    SloUnreachableError,
    fleet_for,
    plan_capacity,
    replica_by_hand,
    replica_of,
)
from headrace.core import InvalidArgumentError
from headrace.optimize.profiling.messages import ModelMemory
from tests.unit.optimize.profiling.made import profile

NODE: Final = NodeType(name="m", cores=8.0, memory_bytes=32 << 30, cost_per_hour=0.4)
REPLICA: Final = ReplicaProfile(
    capacity=100.0,  # of which 80 are planned with
    loads=(0.1, 0.5, 0.8, 0.95),
    p99s=(0.01, 0.02, 0.05, 0.2),
    batch_rows=(1.0, 1.5, 3.0, 8.0),
)
DEMAND: Final = PlannedLoad(replica=REPLICA, forecast=Forecast(rates=(4_000.0,)))
rates = st.floats(1.0, 1e7)


def at(rate: float, p99_s: float | None = None) -> Fleet:
    return fleet_for(replace(DEMAND, p99_s=p99_s), NODE, rate)


def test_the_arithmetic_of_a_plan() -> None:
    plan = plan_capacity(DEMAND, [NODE])

    (option,) = plan.options
    fleet = option.fleet
    assert fleet is not None
    assert (fleet.replicas_needed, fleet.gateways, fleet.clusters) == (50, 2, 1)
    assert fleet.nodes_needed == 9  # 50 at 7 a node take 8, which leave 7.6 cores for 2 gateways
    assert (fleet.nodes, fleet.replicas) == (10, 56)  # so many that 9 of 10 nodes have 50
    assert option.load_ratio == pytest.approx(0.8)
    assert option.p99_s == pytest.approx(0.05)
    assert option.batch_rows == pytest.approx(3.0)
    assert fleet.cost_per_month == pytest.approx(10 * 0.4 * 730.0)
    assert option.cost_per_million == pytest.approx(
        fleet.cost_per_month / (4_000 * 730 * 3600) * 1e6
    )
    assert (plan.min_replicas, plan.max_replicas) == (50, 56)


@settings(max_examples=50)
@given(rates, rates)
def test_more_load_never_takes_less(one: float, other: float) -> None:
    less, more = (at(rate) for rate in sorted((one, other)))

    assert less.replicas_needed <= more.replicas_needed
    assert less.clusters <= more.clusters


@settings(max_examples=50)
@given(rates, st.floats(0.01, 1.0), st.floats(0.01, 1.0))
def test_a_tighter_slo_never_takes_fewer_replicas(rate: float, one: float, other: float) -> None:
    tight, loose = sorted((one, other))

    assert at(rate, tight).replicas_needed >= at(rate, loose).replicas_needed


@given(rates, st.floats(0.01, 1.0))
def test_no_replica_gets_more_than_its_share(rate: float, p99_s: float) -> None:
    share = rate / at(rate, p99_s).replicas_needed / REPLICA.capacity

    assert share <= REPLICA.load_within(p99_s) * (1.0 + 1e-9) <= 0.8 * (1.0 + 1e-9)


@given(st.integers(1, 10_000), st.integers(2, 9), st.integers(0, 5))
def test_enough_nodes_are_left_when_a_zone_fails(needed: int, zones: int, spare: int) -> None:
    demand = replace(DEMAND, spare_nodes=spare, zones=zones, lose_zone=True)

    total = demand.nodes_for(needed)

    assert total - max(-(-total // zones), spare) >= needed


def test_an_slo_that_one_request_misses_is_unreachable() -> None:
    with pytest.raises(SloUnreachableError, match=r"has a p99 of 10 ms.*--p99 15ms"):
        plan_capacity(replace(DEMAND, p99_s=0.009), [NODE])


def test_a_faster_node_meets_an_slo_that_another_misses() -> None:
    fast = replace(NODE, name="fast", speed=2.0, cost_per_hour=4.0)

    plan = plan_capacity(replace(DEMAND, p99_s=0.009), [NODE, fast])

    assert plan.recommended == "fast"
    assert [option.fleet is not None for option in plan.options] == [True, False]


def test_a_replica_that_fits_nowhere_is_named_with_what_is_short() -> None:
    plan = plan_capacity(replace(DEMAND, replica=replace(REPLICA, gpus=1)), [NODE])

    assert plan.recommended is None
    assert plan.options[0].why == ("a replica does not fit: too few GPUs",)


@pytest.mark.parametrize(
    ("change", "limited_by", "count"),
    [
        ({}, "cores", 7),
        ({"memory_bytes": 10 << 30}, "memory", 2),
        ({"cores": 0.5, "memory_bytes": 1 << 20}, "cores", 14),
    ],
)
def test_a_node_holds_what_its_scarcest_resource_allows(
    change: dict[str, float], limited_by: str, count: int
) -> None:
    assert NODE.holds(replace(REPLICA, **change)) == (count, limited_by)  # type: ignore[arg-type]  # by name


def test_one_control_plane_has_at_most_a_thousand_replicas() -> None:
    fleet = at(1e6)

    assert fleet.clusters == 13
    assert fleet.replicas / fleet.clusters <= 1_010


def test_a_forecast_grows_month_by_month() -> None:
    forecast = Forecast(rates=(50.0, 150.0), growth_ratio=0.1, months=2, peak_factor=2.0)

    plan = plan_capacity(replace(DEMAND, forecast=forecast), [NODE])

    assert [month.rate for month in plan.months] == pytest.approx([300.0, 330.0, 363.0])
    assert plan.peak_rate == pytest.approx(363.0)
    assert plan.mean_rate == pytest.approx(121.0)
    assert plan.min_replicas == 2


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf"), 1e10])
def test_a_rate_that_makes_no_sense_is_refused(rate: float) -> None:
    with pytest.raises(InvalidArgumentError, match="a rate must be above 0"):
        Forecast(rates=(rate,))


def test_a_profile_says_what_a_replica_can_take() -> None:
    made = profile()

    replica = replica_of(made)

    assert replica.capacity == pytest.approx(made.prediction.capacity)
    assert replica.p99s[0] == pytest.approx(made.prediction.curve[0].p99_s)
    assert (replica.cores, replica.memory_bytes) == (1.0, 0)


def test_the_low_end_of_what_is_sure_counts() -> None:
    made = profile()
    unsure = msgspec.structs.replace(
        made.prediction, capacity_ci=(made.prediction.capacity / 1.25, 1e9)
    )

    replica = replica_of(msgspec.structs.replace(made, prediction=unsure))

    assert replica.capacity == pytest.approx(made.prediction.capacity / 1.25)
    assert replica.p99s[0] == pytest.approx(made.prediction.curve[0].p99_s * 1.25)


def test_memory_is_that_after_the_largest_batch() -> None:
    made = profile()
    memory = ModelMemory(
        before_bytes=0,
        loaded_bytes=5,
        one_row_bytes=6,
        largest_bytes=9,
        largest_rows=8,
        length=32,
    )
    measured = msgspec.structs.replace(made.measured, memory=memory)

    assert replica_of(msgspec.structs.replace(made, measured=measured)).memory_bytes == 9


@pytest.mark.slow
def test_by_hand_a_replica_batches_as_far_as_that_is_worth_it() -> None:
    replica = replica_by_hand({1: 0.004, 8: 0.012})

    assert replica.capacity == pytest.approx(8 / 0.012, rel=0.02)
    assert 0.004 < replica.p99s[0] < 0.012
    assert list(replica.p99s) == sorted(replica.p99s)
    assert replica_by_hand({1: 0.004}, runs=2).capacity == pytest.approx(500.0, rel=0.05)
