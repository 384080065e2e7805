"""From a load to nodes, clusters and cost."""

from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.advise.capacity.documents import Asked, Option
from headrace.advise.capacity.fleet import Promise, SloUnreachableError
from headrace.advise.capacity.forecast import Curve, Forecast, constant
from headrace.advise.capacity.limits import Figure, Limits
from headrace.advise.capacity.nodes import GIB, Headroom, NodeType, Shape
from headrace.advise.capacity.plan import plan_capacity
from headrace.advise.capacity.service import curve_by_hand

NODE: Final = NodeType(name="m", cores=8.0, memory_bytes=32 * GIB, cost_per_hour=0.4)
ASKED: Final = Asked(
    curve=curve_by_hand({1: 0.01}),  # 100 requests/s, of which 80 are planned with
    shape=Shape(cores=1.0),
    promise=Promise(),
    forecast=Forecast(curve=constant(4_000.0)),
)


def option(asked: Asked, node: NodeType = NODE) -> Option:
    (found,) = plan_capacity(asked, [node]).options
    return found


def test_the_arithmetic_of_a_plan() -> None:
    found = option(ASKED)

    need = found.need
    assert need is not None
    assert (need.replicas, found.replicas_per_node) == (50, 7)
    assert need.gateways == 2
    assert need.nodes_needed == 8  # 50 at 7 a node; they leave 13 cores, and gateways take 8
    assert (need.nodes, need.spare_nodes) == (9, 1)
    assert need.running == 57  # so many that 8 of 9 nodes have 50
    assert found.cost_per_month == pytest.approx(9 * 0.4 * 730.0)
    assert found.cost_per_million == pytest.approx(
        found.cost_per_month / (4_000 * 730 * 3600) * 1e6
    )


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(st.floats(1.0, 1e7), st.floats(1.0, 1e7))
def test_more_load_never_costs_less(one: float, other: float) -> None:
    less, more = (
        option(replace(ASKED, forecast=Forecast(curve=constant(rate))))
        for rate in sorted((one, other))
    )

    assert less.cost_per_month <= more.cost_per_month
    assert less.nodes <= more.nodes
    assert less.clusters <= more.clusters


def test_what_if_ten_times_is_the_plan_of_ten_times_the_rate() -> None:
    what_if = replace(ASKED, forecast=Forecast(curve=constant(700.0), times=10.0))
    plain = replace(ASKED, forecast=Forecast(curve=constant(7_000.0)))

    assert option(what_if).cost_per_month == option(plain).cost_per_month


@pytest.mark.parametrize(
    ("shape", "limit", "count"),
    [
        (Shape(cores=1.0, memory_bytes=10 * GIB), "memory", 2),
        (Shape(cores=0.01), "pods", 100),
        (Shape(cores=1.0, gpus=1), "GPUs", 4),
    ],
)
def test_what_a_node_runs_out_of_first_limits_it(shape: Shape, limit: str, count: int) -> None:
    found = option(replace(ASKED, shape=shape), replace(NODE, gpus=4))

    assert (found.limited_by, found.replicas_per_node) == (limit, count)


def test_a_node_that_holds_no_replica_does_not_fit_and_another_is_recommended() -> None:
    small = NodeType(name="s", cores=1.0, memory_bytes=2 * GIB, cost_per_hour=0.01)

    plan = plan_capacity(ASKED, [small, NODE])

    assert plan.recommended == "m"
    assert [one.fits for one in plan.options] == [True, False]
    assert "too few cores" in plan.options[1].why[0]


def test_a_faster_node_takes_fewer_replicas_and_may_be_the_only_one_in_time() -> None:
    fast = replace(NODE, name="fast", speed=2.0)
    asked = replace(ASKED, promise=Promise(p99_s=0.008))

    plan = plan_capacity(asked, [NODE, fast])

    assert plan.recommended == "fast"
    assert "no number of replicas" in plan.options[1].why[0]
    with pytest.raises(SloUnreachableError):
        plan_capacity(asked, [NODE])


def test_a_zone_may_fail_and_enough_are_left() -> None:
    need = option(replace(ASKED, headroom=Headroom(zones=3, lose_zone=True))).need

    assert need is not None
    lost = -(-need.nodes // 3)
    assert need.nodes - lost >= need.nodes_needed
    assert need.nodes - 1 - -(-(need.nodes - 1) // 3) < need.nodes_needed  # and no more than that
    assert need.running * (need.nodes - lost) / need.nodes >= need.replicas - 1


def test_many_requests_take_several_clusters_and_one_may_fail() -> None:
    limits = Limits(
        replicas_per_control_plane=Figure(
            name="replicas_per_control_plane", value=40.0, source="given"
        )
    )

    plain = option(replace(ASKED, limits=limits))
    spare = option(replace(ASKED, limits=limits, spare_clusters=1))

    assert plain.clusters > 1
    assert plain.need is not None
    assert plain.need.running <= 40
    assert spare.clusters == plain.clusters + 1
    assert spare.need == plain.need


def test_a_load_beyond_all_clusters_is_said_and_takes_no_time() -> None:
    huge = replace(
        ASKED,
        curve=curve_by_hand({1: 100.0}),
        forecast=Forecast(curve=constant(1e9)),
        headroom=Headroom(availability=0.9999),
    )

    found = option(huge)

    assert not found.fits
    assert "no number of clusters" in found.why[0]


def test_nodes_that_follow_a_daily_curve_cost_less_than_the_peak() -> None:
    rates = tuple(float(1_000 + 900 * (hour > 12)) for hour in range(24))
    curve = Curve(at_s=tuple(3600.0 * hour for hour in range(24)), rates=rates)

    plan = plan_capacity(replace(ASKED, forecast=Forecast(curve=curve)), [NODE])

    (found,) = plan.options
    assert found.autoscaled_cost_per_month < found.cost_per_month
    assert plan.autoscale is not None
    assert plan.autoscale.min_replicas < plan.autoscale.max_replicas
    assert any("autoscaler is late" in one for one in plan.assumptions)


def test_growth_is_shown_by_the_month() -> None:
    forecast = Forecast(curve=constant(4_000.0), growth_ratio=0.1, months=6)

    plan = plan_capacity(replace(ASKED, forecast=forecast), [NODE])

    assert [one.month for one in plan.months] == list(range(7))
    assert [one.replicas for one in plan.months] == sorted(one.replicas for one in plan.months)
    assert plan.months[-1].cost_per_month == plan.options[0].cost_per_month
    assert plan.peak_rate == pytest.approx(4_000 * 1.1**6)


def test_a_network_that_is_too_thin_is_said() -> None:
    thin = replace(NODE, network_bits_per_s=1e9)

    found = option(replace(ASKED, request_bytes=600_000, response_bytes=1_000), thin)

    assert not found.fits
    assert found.network_bits_per_s == pytest.approx(8 * 4_000 * 601_000)
    assert "Gbit/s" in found.why[0]


def test_every_figure_names_its_source() -> None:
    assert all(one.source and one.value > 0 for one in Limits().all)
