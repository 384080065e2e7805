"""Nodes: what they keep for themselves, and how many may be lost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.advise.capacity.nodes import GIB, Headroom, NodeType, checked, with_headroom
from headrace.core import InvalidArgumentError


def test_a_node_keeps_for_itself_what_gke_says() -> None:
    node = NodeType(name="e2-standard-4", cores=4.0, memory_bytes=16 * GIB, cost_per_hour=0.13)

    assert node.usable_cores == pytest.approx(3.92)
    assert (16 * GIB - node.usable_memory_bytes) / GIB == pytest.approx(2.6 + 100 / 1024)


@given(
    st.integers(1, 20_000),
    st.integers(0, 5),
    st.integers(2, 9),
    st.booleans(),
    st.sampled_from([None, 0.9, 0.999, 0.99999]),
)
def test_enough_are_left_whatever_may_fail(
    needed: int,
    spare: int,
    zones: int,
    lose_zone: bool,  # noqa: FBT001  # drawn
    availability: float | None,
) -> None:
    headroom = Headroom(nodes=spare, zones=zones, lose_zone=lose_zone, availability=availability)

    total, lost, why = with_headroom(needed, headroom)

    assert total - spare >= needed
    assert total - lost >= needed
    assert why
    if lose_zone:
        assert total - -(-total // zones) >= needed


def test_a_higher_availability_takes_more_nodes() -> None:
    totals = [
        with_headroom(100, Headroom(nodes=0, availability=one))[0]
        for one in (0.5, 0.9, 0.99, 0.9999, 0.999999)
    ]

    assert totals == sorted(set(totals))


def test_spares_are_those_of_the_binomial() -> None:
    # One node of 90 %, one in reserve: both are down for 1 % of the time.
    headroom = Headroom(nodes=0, availability=0.99, node_availability=0.9)

    assert with_headroom(1, headroom)[:2] == (2, 1)


@pytest.mark.parametrize(
    ("headroom", "told"),
    [
        (Headroom(lose_zone=True), "two: --zones"),
        (Headroom(nodes=-1), "spare nodes"),
        (Headroom(zones=0), "zones"),
        (Headroom(availability=1.0), "availability is from 50 %"),
        (Headroom(availability=float("nan")), "availability is from 50 %"),
        (Headroom(node_availability=0.1), "a node's availability"),
    ],
)
def test_headroom_that_makes_no_sense_is_refused(headroom: Headroom, told: str) -> None:
    with pytest.raises(InvalidArgumentError, match=told):
        checked(headroom)
