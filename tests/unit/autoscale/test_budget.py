import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.autoscale import ReplicaRequest, share_out
from headrace.core.spec.scale import BudgetSpec

MB = 1_000_000


@st.composite
def asks(draw: st.DrawFn) -> list[ReplicaRequest]:
    return [
        ReplicaRequest(
            endpoint=f"e{index}",
            arm="1",
            desired=draw(st.integers(0, 12)),
            minimum=draw(st.integers(0, 3)),
            running=draw(st.integers(0, 12)),
            cpus=draw(st.sampled_from([0.0, 0.1, 0.7, 2.0])),
            memory_bytes=draw(st.sampled_from([0.0, 50.0 * MB, 400.0 * MB])),
        )
        for index in range(draw(st.integers(0, 8)))
    ]


BUDGETS = st.builds(
    BudgetSpec,
    cpus=st.none() | st.floats(0.1, 20.0),
    memory_bytes=st.none() | st.integers(MB, 5000 * MB),
)


@given(asks(), BUDGETS)
def test_nobody_gets_more_than_wanted_or_less_than_the_minimum(
    wishes: list[ReplicaRequest], budget: BudgetSpec
) -> None:
    grants = share_out(wishes, budget)

    for ask in wishes:
        assert min(ask.minimum, ask.desired) <= grants[ask.key].replicas <= ask.desired
        assert bool(grants[ask.key].reason) is (grants[ask.key].replicas < ask.desired)


@given(asks(), BUDGETS)
def test_the_machine_is_not_overdrawn_but_for_minimums_and_what_runs(
    wishes: list[ReplicaRequest], budget: BudgetSpec
) -> None:
    grants = share_out(wishes, budget)

    beyond = [ask for ask in wishes if grants[ask.key].replicas > min(ask.minimum, ask.desired)]
    cpus = sum(ask.cpus * grants[ask.key].replicas for ask in wishes)
    memory = sum(ask.memory_bytes * grants[ask.key].replicas for ask in wishes)
    if budget.cpus is not None and any(ask.cpus for ask in beyond):
        allowed = 1.1 if any(ask.running for ask in beyond) else 1.0
        assert cpus <= budget.cpus * allowed + 1e-6
    if budget.memory_bytes is not None and any(ask.memory_bytes for ask in beyond):
        allowed = 1.1 if any(ask.running for ask in beyond) else 1.0
        assert memory <= budget.memory_bytes * allowed + 1.0


@given(asks(), BUDGETS, st.randoms())
def test_the_order_of_the_wishes_does_not_matter(
    wishes: list[ReplicaRequest], budget: BudgetSpec, random: object
) -> None:
    mixed = list(wishes)
    random.shuffle(mixed)  # type: ignore[attr-defined]  # what `st.randoms` gives

    assert share_out(mixed, budget) == share_out(wishes, budget)


def test_what_is_left_is_shared_fairly() -> None:
    wishes = [
        ReplicaRequest(endpoint="greedy", arm="1", desired=100, minimum=1, cpus=1.0),
        ReplicaRequest(endpoint="modest", arm="1", desired=4, minimum=1, cpus=1.0),
    ]

    grants = share_out(wishes, BudgetSpec(cpus=26.0))

    assert grants["greedy", "1"].replicas == 25
    assert grants["modest", "1"].replicas == 1
    assert share_out(wishes, BudgetSpec(cpus=52.0))["modest", "1"].replicas == 2


def test_who_is_cut_is_told_why() -> None:
    cpu = share_out(
        [ReplicaRequest(endpoint="a", arm="1", desired=5, minimum=1, cpus=0.7)],
        BudgetSpec(cpus=2.0),
    )
    memory = share_out(
        [ReplicaRequest(endpoint="a", arm="1", desired=5, minimum=1, memory_bytes=300.0 * MB)],
        BudgetSpec(memory_bytes=1000 * MB),
    )

    assert cpu["a", "1"].replicas == 2
    assert cpu["a", "1"].reason == ("2 of 5 copies: one more needs 0.70 cores, 0.60 of 2 are left")
    assert memory["a", "1"].reason == (
        "3 of 5 copies: one more needs 300 MB, 100 MB of 1 GB are left"
    )


@pytest.mark.parametrize("cpus", [0.66, 0.69, 0.73])
def test_a_small_error_in_what_a_copy_uses_stops_none_that_runs(cpus: float) -> None:
    wish = ReplicaRequest(endpoint="a", arm="1", desired=6, minimum=1, running=3, cpus=cpus)

    assert share_out([wish], BudgetSpec(cpus=2.0))["a", "1"].replicas == 3


def test_minimums_come_first_even_where_there_is_no_room() -> None:
    wishes = [
        ReplicaRequest(endpoint=name, arm="1", desired=3, minimum=2, cpus=4.0) for name in "ab"
    ]

    grants = share_out(wishes, BudgetSpec(cpus=1.0))

    assert [grants[name, "1"].replicas for name in "ab"] == [2, 2]
