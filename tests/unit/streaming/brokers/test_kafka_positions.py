"""How far a member of a group of Kafka's is behind, from what it handed out and what is done."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.streaming.brokers.kafka_positions import Positions
from headrace.streaming.records import Lag, Place, Record

PLACE = Place("t", 0)
NOW_S = 1000.0


def record(offset: int) -> Record:
    """Written as many seconds after 0 as its offset says."""
    return Record(place=PLACE, offset=offset, key=None, value=None, timestamp_s=float(offset))


def positions(start: int = 0) -> Positions:
    held = Positions()
    held.hold({PLACE: start})
    return held


def test_what_is_not_done_counts_though_it_was_handed_out() -> None:
    held = positions()
    held.handed_out(record(0), 10)
    held.done({PLACE: 4})

    assert held.lag(PLACE, 25, NOW_S) == Lag(records=21, seconds=NOW_S)


def test_the_oldest_run_that_is_not_done_says_how_long() -> None:
    held = positions()
    for first in (0, 10, 20):
        held.handed_out(record(first), first + 10)
    held.done({PLACE: 10})

    assert held.lag(PLACE, 30, NOW_S) == Lag(records=20, seconds=NOW_S - 10)


def test_where_all_that_was_handed_out_is_done_the_time_of_the_rest_is_not_known() -> None:
    held = positions()
    held.handed_out(record(0), 10)
    held.done({PLACE: 10})

    assert held.lag(PLACE, 30, NOW_S) == Lag(records=20, seconds=None)


def test_the_marks_of_transactions_at_the_end_are_no_records() -> None:
    held = positions()
    held.handed_out(record(0), 10)
    held.done({PLACE: 10})
    held.reached_end(PLACE, 11)

    assert held.lag(PLACE, 11, NOW_S) == Lag(records=0, seconds=0.0)
    assert held.lag(PLACE, 12, NOW_S) == Lag(records=1, seconds=None)


def test_an_end_that_was_reached_is_not_done() -> None:
    held = positions()
    held.handed_out(record(0), 10)
    held.reached_end(PLACE, 11)

    assert held.lag(PLACE, 11, NOW_S) == Lag(records=11, seconds=NOW_S)


def test_nothing_is_known_of_the_end_before_the_first_fetch() -> None:
    assert positions(5).lag(PLACE, -1, NOW_S) == Lag(records=0, seconds=0.0)


def test_places_that_are_gone_are_done_without_harm() -> None:
    held = positions()
    held.drop([PLACE, Place("t", 1)])
    held.done({PLACE: 3})
    held.reached_end(PLACE, 3)

    assert PLACE not in held
    assert list(held) == []


@given(
    st.lists(st.integers(1, 5), max_size=30),
    st.lists(st.integers(0, 60), max_size=10).map(sorted),
    st.integers(0, 20),
)
def test_lag_is_what_a_slow_count_says(runs: list[int], dones: list[int], behind: int) -> None:
    held = positions()
    following = 0
    firsts = []
    for length in runs:
        held.handed_out(record(following), following + length)
        firsts.append(following)
        following += length
    done = 0
    for one in dones:
        done = min(one, following)
        held.done({PLACE: done})

    lag = held.lag(PLACE, following + behind, NOW_S)

    open_firsts = [
        first for first, length in zip(firsts, runs, strict=True) if first + length > done
    ]
    assert lag is not None
    assert lag.records == following + behind - done
    if not lag.records:
        assert lag.seconds == 0.0
    elif open_firsts:
        assert lag.seconds == NOW_S - open_firsts[0]
    else:
        assert lag.seconds is None
