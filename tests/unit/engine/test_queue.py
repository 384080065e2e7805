"""The queue's laws."""

import math
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.priorities import DEFAULT_LEVEL, LEVELS
from headrace.engine import BatchQueue
from headrace.engine.queue import level_of
from tests.unit.engine.tickets import Recorded, a_ticket


def of(limit: int) -> Callable[[int], int]:
    return lambda _length: limit


def drain(queue: BatchQueue, limit: int) -> list[list[Recorded]]:
    batches = []
    while batch := queue.take(of(limit)):
        batches.append(batch)
    return batches  # type: ignore[return-value]  # only Recorded tickets were pushed


sizes = st.lists(st.integers(1, 6), max_size=40)


@given(sizes, st.integers(1, 8))
def test_a_queue_loses_repeats_and_reorders_nothing(rows: list[int], limit: int) -> None:
    queue = BatchQueue(max_size=64)
    tickets = [a_ticket(rows=n) for n in rows]
    for ticket in tickets:
        queue.push(ticket)

    batches = drain(queue, limit)

    assert [ticket for batch in batches for ticket in batch] == tickets
    assert queue.size == 0
    assert queue.rows == 0


@given(sizes, st.integers(1, 8))
def test_a_batch_exceeds_its_limit_only_for_one_request_that_does_alone(
    rows: list[int], limit: int
) -> None:
    queue = BatchQueue(max_size=64)
    for n in rows:
        queue.push(a_ticket(rows=n))

    for batch in drain(queue, limit):
        assert len(batch) == 1 or sum(ticket.rows for ticket in batch) <= limit


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(1, 3)), max_size=40))
def test_a_higher_priority_never_waits_for_a_lower_one(wanted: list[tuple[int, int]]) -> None:
    queue = BatchQueue(max_size=64)
    for priority, rows in wanted:
        queue.push(a_ticket(priority=priority, rows=rows))

    order = [level_of(t.request.priority) for batch in drain(queue, 1) for t in batch]

    assert order == sorted(order)


lengths = st.lists(st.integers(1, 100), min_size=1, max_size=60)


@given(lengths, st.integers(1, 16), st.floats(1.0, 2.0))
def test_padding_never_costs_more_than_its_bound_and_loses_nothing(
    wanted: list[int], limit: int, ratio: float
) -> None:
    queue = BatchQueue(max_size=64, max_padding_ratio=ratio)
    tickets = [a_ticket(length=length, group=((),)) for length in wanted]
    for ticket in tickets:
        queue.push(ticket)

    batches = drain(queue, limit)

    assert sorted(map(id, (t for batch in batches for t in batch))) == sorted(map(id, tickets))
    for batch in batches:
        real = sum(ticket.length for ticket in batch)
        assert len(batch) * max(ticket.length for ticket in batch) <= real * ratio + 1e-9
        assert len(batch) <= limit


@given(lengths, st.integers(1, 16))
def test_without_a_padding_ratio_only_equal_shapes_share_a_batch(
    wanted: list[int], limit: int
) -> None:
    queue = BatchQueue(max_size=64)
    for length in wanted:
        queue.push(a_ticket(length=length, group=((length,),)))

    for batch in drain(queue, limit):
        assert len({ticket.group for ticket in batch}) == 1


@given(lengths, st.integers(1, 16))
def test_the_first_in_line_is_in_the_next_batch(wanted: list[int], limit: int) -> None:
    queue = BatchQueue(max_size=64, max_padding_ratio=1.1)
    waiting = [a_ticket(length=length, group=((),)) for length in wanted]
    for ticket in waiting:
        queue.push(ticket)

    while waiting:
        batch = queue.take(of(limit))
        assert waiting[0] in batch
        waiting = [ticket for ticket in waiting if ticket not in batch]


@given(st.lists(st.floats(0, 100), max_size=30), st.floats(0, 100))
def test_expiry_takes_exactly_those_whose_deadline_passed(
    deadlines: list[float], now: float
) -> None:
    queue = BatchQueue(max_size=64)
    for deadline in deadlines:
        queue.push(a_ticket(deadline=deadline))

    expired = queue.expire(now)

    assert sorted(t.deadline for t in expired) == sorted(d for d in deadlines if d <= now)
    assert queue.size == sum(d > now for d in deadlines)
    assert queue.rows == queue.size
    assert queue.expires_at() == min((d for d in deadlines if d > now), default=math.inf)


def test_a_removed_ticket_is_not_run() -> None:
    queue = BatchQueue(max_size=8)
    first, middle, last = a_ticket(), a_ticket(rows=2), a_ticket()
    for ticket in (first, middle, last):
        queue.push(ticket)

    assert queue.remove(middle)
    assert not queue.remove(middle)

    assert queue.take(of(8)) == [first, last]
    assert queue.rows == 0


def test_a_batch_is_due_when_its_oldest_has_waited_or_when_it_is_full() -> None:
    queue = BatchQueue(max_size=8, max_queue_delay_s=0.5)
    assert queue.due_at(of(4)) is None

    queue.push(a_ticket(queued_at=10.0))
    assert queue.due_at(of(4)) == 10.5

    queue.push(a_ticket(queued_at=10.2, rows=3))
    assert queue.due_at(of(4)) == 10.0


def test_a_full_queue_says_so() -> None:
    queue = BatchQueue(max_size=1)
    assert not queue.is_full
    queue.push(a_ticket())
    assert queue.is_full


def test_rows_ahead_counts_equal_and_higher_priorities() -> None:
    queue = BatchQueue(max_size=8)
    queue.push(a_ticket(rows=2, priority=1))
    queue.push(a_ticket(rows=3))
    queue.push(a_ticket(rows=4, priority=9))

    assert queue.rows_ahead(1) == 2
    assert queue.rows_ahead(DEFAULT_LEVEL) == 5
    assert queue.rows_ahead(9) == 9
    assert queue.has_below(DEFAULT_LEVEL)
    assert not queue.has_below(9)


def test_a_plain_batch_is_filled_from_lower_levels() -> None:
    queue = BatchQueue(max_size=8)
    low, high = a_ticket(), a_ticket(priority=1)
    queue.push(low)
    queue.push(high)

    assert queue.take(of(4)) == [high, low]


def test_priority_zero_is_the_default_level_and_too_large_ones_are_the_last() -> None:
    assert level_of(0) == DEFAULT_LEVEL
    assert level_of(1) == 1
    assert level_of(1 << 40) == LEVELS


@given(st.integers(-3, 12), st.integers(0, LEVELS))
def test_a_caller_may_lower_its_priority_and_never_raise_it_above_its_floor(
    priority: int, floor: int
) -> None:
    level = level_of(priority, floor)

    assert 1 <= level <= LEVELS
    assert level >= floor
    assert level == max(level_of(priority), floor) or (priority <= 0 and level == floor)


steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(1, LEVELS), st.integers(1, 4)),
        st.tuples(st.just("take"), st.integers(1, 6), st.just(0)),
        st.tuples(st.just("expire"), st.integers(0, 20), st.just(0)),
        st.tuples(st.just("remove"), st.integers(0, 20), st.just(0)),
    ),
    max_size=60,
)


@given(steps, st.integers(1, 6))
def test_shedding_keeps_the_bound_and_the_count_and_never_costs_a_higher_priority(
    wanted: list[tuple[str, int, int]], max_size: int
) -> None:
    queue = BatchQueue(max_size=max_size)
    waiting: list[Recorded] = []
    for number, (what, one, rows) in enumerate(wanted):
        if what == "push":
            ticket = a_ticket(priority=one, rows=rows, deadline=number % 7 * 5.0)
            levels = [other.level for other in waiting]
            if not queue.is_full:
                queue.push(ticket)
                waiting.append(ticket)
            elif queue.has_below(one):
                victim = queue.shed()
                assert victim.level == max(levels) > one
                assert victim is [other for other in waiting if other.level == victim.level][-1]
                waiting.remove(victim)
                queue.push(ticket)
                waiting.append(ticket)
            else:
                assert all(level <= one for level in levels)
        elif what == "take":
            gone = queue.take(of(one))
            waiting = [ticket for ticket in waiting if ticket not in gone]
        elif what == "expire":
            gone = queue.expire(float(one))
            assert all(ticket.deadline <= one for ticket in gone)
            waiting = [ticket for ticket in waiting if ticket not in gone]
        elif waiting:
            assert queue.remove(waiting.pop(one % len(waiting)))

        assert queue.size == len(waiting) <= max_size
        assert queue.rows == sum(ticket.rows for ticket in waiting)
        for level in range(1, LEVELS + 1):
            ahead = sum(ticket.rows for ticket in waiting if ticket.level <= level)
            assert queue.rows_ahead(level) == ahead

    assert sorted(map(id, waiting)) == sorted(id(t) for batch in drain(queue, 3) for t in batch)
