"""Which lengths share a run: the cheapest cut, held against every cut there is."""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from hypothesis import assume, given
from hypothesis import strategies as st

from headrace.engine.grouping import cheapest_group
from headrace.engine.ticket import Ticket
from tests.unit.engine.tickets import a_ticket

sizes = st.lists(
    st.tuples(st.integers(1, 60), st.integers(1, 3)), min_size=1, max_size=9
)  # length, rows


def the_tickets(wanted: Sequence[tuple[int, int]]) -> list[Ticket]:
    return [a_ticket(length=length, rows=rows, group=((),)) for length, rows in wanted]


def cuts(ordered: Sequence[Ticket]) -> Iterator[list[Sequence[Ticket]]]:
    """Every way to cut tickets in the order of their lengths into runs."""
    places = range(1, len(ordered))
    for count in range(len(ordered)):
        for chosen in combinations(places, count):
            edges = [0, *chosen, len(ordered)]
            yield [ordered[a:b] for a, b in pairwise(edges)]


def elements(run: Sequence[Ticket]) -> int:
    return sum(t.rows for t in run) * max(t.length for t in run)


def is_allowed(run: Sequence[Ticket], limit: int, ratio: float) -> bool:
    real = sum(t.rows * t.length for t in run)
    fits = sum(t.rows for t in run) <= limit and elements(run) <= real * ratio
    return len(run) == 1 or fits


@given(sizes, st.integers(1, 12), st.floats(1.0, 3.0), st.floats(0.5, 100.0))
def test_the_cut_that_it_belongs_to_is_the_cheapest_of_all(
    wanted: list[tuple[int, int]], limit: int, ratio: float, overhead: float
) -> None:
    # Among equal lengths those that came first share the run of the first, whatever that costs.
    assume(len({length for length, _ in wanted}) == len(wanted))
    left = the_tickets(wanted)
    ordered = sorted(left, key=lambda ticket: ticket.length)
    cheapest = min(
        sum(overhead + elements(run) for run in cut)
        for cut in cuts(ordered)
        if all(is_allowed(run, limit, ratio) for run in cut)
    )

    taken = 0.0
    while left:
        head = left[0]
        batch = cheapest_group(left, limit=limit, max_ratio=ratio, overhead=overhead)
        assert head in batch
        assert is_allowed(batch, limit, ratio)
        taken += overhead + elements(batch)
        left = [ticket for ticket in left if ticket not in batch]

    # What is left is cut anew after each run, never worse than before.
    assert taken <= cheapest * (1 + 1e-9)


def test_equal_lengths_run_in_the_order_in_which_they_came() -> None:
    waiting: list[Ticket] = [a_ticket(length=10) for _ in range(20)]

    batch = cheapest_group(waiting, limit=8, max_ratio=1.25, overhead=16)

    assert batch == waiting[:8]


def test_of_shorter_ones_those_that_came_first_join_the_first() -> None:
    head = a_ticket(length=11)
    shorter = [a_ticket(length=10) for _ in range(9)]

    batch = cheapest_group([head, *shorter], limit=4, max_ratio=1.25, overhead=16)

    assert set(batch) == {head, *shorter[: len(batch) - 1]}
    assert len(batch) > 1


def test_padding_that_costs_more_than_a_run_of_its_own_is_left_out() -> None:
    head, near, far = (a_ticket(length=n) for n in (10, 11, 40))

    batch = cheapest_group([head, near, far], limit=8, max_ratio=100, overhead=16)

    assert batch == [head, near]


def test_where_a_run_costs_far_more_than_its_elements_the_bound_decides() -> None:
    head, far = a_ticket(length=10), a_ticket(length=40)

    assert len(cheapest_group([head, far], limit=8, max_ratio=100, overhead=1e6)) == 2
    assert cheapest_group([head, far], limit=8, max_ratio=1.5, overhead=1e6) == [head]


def test_one_that_is_larger_than_the_limit_runs_alone() -> None:
    head, other = a_ticket(length=10, rows=9), a_ticket(length=10)

    batch = cheapest_group([head, other], limit=8, max_ratio=1.25, overhead=math.inf)

    assert batch == [head]
