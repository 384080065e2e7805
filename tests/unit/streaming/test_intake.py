"""Which records are a batch, and when."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.streaming.in_flight import MAX_BYTES, Intake
from headrace.streaming.records import Place, Record


def some(count: int, *, first: int = 0, partition: int = 0) -> list[Record]:
    place = Place("in", partition)
    return [Record(place=place, offset=first + at, key=None, value=b"") for at in range(count)]


def test_nothing_that_waits_is_never_due() -> None:
    assert Intake(max_batch_size=4, max_delay_s=1.0).due_at(is_free=True) is None


def test_a_batch_is_due_when_its_oldest_record_has_waited() -> None:
    intake = Intake(max_batch_size=4, max_delay_s=1.0)
    intake.put(some(1), 10.0)
    intake.put(some(1, first=1), 10.5)

    assert intake.due_at(is_free=True) == 11.0
    assert intake.due_at(is_free=False) is None


def test_a_full_batch_is_due_though_the_model_is_busy() -> None:
    intake = Intake(max_batch_size=2, max_delay_s=1.0)
    intake.put(some(2), 10.0)

    assert intake.due_at(is_free=False) == 10.0


def test_what_is_left_behind_waits_from_when_it_came() -> None:
    intake = Intake(max_batch_size=2, max_delay_s=1.0)
    intake.put(some(1), 10.0)
    intake.put(some(2, first=1), 10.5)
    intake.take()

    assert intake.due_at(is_free=True) == 11.5


def test_places_that_went_are_dropped_and_others_keep_their_order() -> None:
    intake = Intake(max_batch_size=9, max_delay_s=1.0)
    intake.put([*some(2), *some(1, partition=1)], 10.0)
    intake.put(some(2, first=2), 11.0)
    intake.put(some(1, first=1, partition=1), 12.0)
    intake.drop({Place("in", 0)})

    assert intake.due_at(is_free=True) == 11.0
    assert [record.offset for record in intake.take()] == [0, 1]


def test_few_large_records_leave_no_room_for_more() -> None:
    intake = Intake(max_batch_size=256, max_delay_s=0.0)
    large = Record(place=Place("in", 0), offset=0, key=None, value=bytes(MAX_BYTES))
    none = Record(place=Place("in", 1), offset=0, key=None, value=None)
    intake.put([large, none], 0.0)
    full = intake.room
    intake.drop({Place("in", 0)})
    dropped = intake.room
    intake.put([large], 0.0)
    intake.take()

    assert (full, dropped, intake.room) == (0, 511, 512)


@given(
    steps=st.lists(st.integers(-1, 9), max_size=40),
    most=st.integers(1, 5),
)
def test_it_loses_repeats_and_reorders_nothing_and_keeps_its_size(
    steps: list[int], most: int
) -> None:
    intake = Intake(max_batch_size=most, max_delay_s=0.0)
    put = taken = 0
    for now, step in enumerate(steps):
        if step < 0:
            batch = intake.take()
            assert [record.offset for record in batch] == list(range(taken, taken + len(batch)))
            assert len(batch) == min(most, put - taken)
            taken += len(batch)
        else:
            count = min(step, intake.room)
            intake.put(some(count, first=put), float(now))
            put += count
        assert len(intake) == put - taken <= 2 * most
        assert (intake.due_at(is_free=True) is None) == (len(intake) == 0)
