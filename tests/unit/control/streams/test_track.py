"""What is remembered of a stream: nothing counted twice, nothing that nobody knows."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.control.streams.status import Lagging
from headrace.control.streams.workers import RETENTION_S, STEP_S, StreamTrack
from headrace.streaming.settings import StreamStatus

START = 1_764_000_000.0


def said(member: str, answered: int, dead_letters: int = 0) -> StreamStatus:
    return StreamStatus(stream="pay", member=member, answered=answered, dead_letters=dead_letters)


def lag(records: int | None = 0, seconds: float | None = 0.0) -> Lagging:
    return Lagging(records=records, seconds=seconds, partitions=1)


def looked(track: StreamTrack, at: float, *statuses: StreamStatus, behind: Lagging) -> None:
    track.note(statuses, behind, running=len(statuses), now=START + at)


def test_a_step_has_what_happened_in_it_and_the_most_lag() -> None:
    track = StreamTrack()
    for at in range(11):
        behind = lag(at, 9.0 if at == 4 else 1.0)
        looked(track, at, said("a", 100 + 10 * at, at // 5), behind=behind)

    [point] = track.points(60, now=START + 10, maximum=90)
    assert (point.at, point.seconds, point.answered, point.dead_letters) == (
        START + 10,
        10.0,
        100,
        2,
    )
    assert (point.lag_records, point.lag_s, point.running) == (10, 9.0, 1)


def test_what_was_counted_before_anybody_looked_is_left_out() -> None:
    track = StreamTrack()
    looked(track, 0, said("a", 5000, 400), behind=lag())

    assert track.dead_letters_within(300, now=START) == 0


def test_a_worker_that_begins_anew_is_counted_from_0() -> None:
    track = StreamTrack()
    looked(track, 0, said("a", 100, 10), behind=lag())
    looked(track, 1, said("a", 3, 2), behind=lag())  # fell: another process
    looked(track, 2, behind=lag())  # ended
    looked(track, 3, said("a", 200, 20), behind=lag())  # a third one, quicker than the looks
    looked(track, 10, said("a", 200, 20), behind=lag())

    [point] = track.points(60, now=START + 10, maximum=90)
    assert (point.answered, point.dead_letters) == (3 + 200, 2 + 20)


def test_dead_letters_are_forgotten_by_alerts_after_their_window() -> None:
    track = StreamTrack()
    looked(track, 0, said("a", 0, 0), behind=lag())
    looked(track, 5, said("a", 0, 7), behind=lag())
    at_once = track.dead_letters_within(300, now=START + 5)
    looked(track, 10, said("a", 0, 7), behind=lag())

    assert at_once == 7
    assert track.dead_letters_within(300, now=START + 309) == 7
    assert track.dead_letters_within(300, now=START + 310) == 0


def test_a_lag_that_nobody_knew_stays_unknown() -> None:
    track = StreamTrack()
    for at in range(11):
        looked(track, at, behind=lag(None, None))

    [point] = track.points(60, now=START + 10, maximum=90)
    assert (point.lag_records, point.lag_s, point.running) == (None, None, 0)


def test_an_hour_is_kept_and_no_more() -> None:
    track = StreamTrack()
    for at in range(0, 3 * int(RETENTION_S), int(STEP_S)):
        looked(track, at, said("a", at), behind=lag())

    points = track.points(1e9, now=START + 3 * RETENTION_S, maximum=10_000)
    assert len(points) == int(RETENTION_S / STEP_S)
    assert points[-1].at == START + 3 * RETENTION_S - STEP_S


def test_a_clock_that_is_set_back_begins_a_new_memory() -> None:
    track = StreamTrack()
    for at in range(100, 121):
        looked(track, at, said("a", at, at), behind=lag())
    looked(track, 50, said("a", 121, 121), behind=lag())

    assert track.points(1e9, now=START + 200, maximum=90) == []
    assert track.dead_letters_within(300, now=START + 50) == 1


def test_steps_that_were_joined_stay_so_while_new_ones_come() -> None:
    track = StreamTrack()
    for at in range(0, 610, 10):
        looked(track, at, said("a", at), behind=lag())
    before = track.points(600, now=START + 600, maximum=13)
    for at in range(610, 650, 10):
        looked(track, at, said("a", at), behind=lag())
    after = track.points(600, now=START + 640, maximum=13)

    complete = before[2:-1]
    assert len(complete) > 5
    assert [point for point in after if point in complete] == complete


@given(
    counts=st.lists(st.integers(0, 50), min_size=1, max_size=80),
    most=st.integers(2, 30),
)
def test_joining_steps_loses_and_repeats_nothing(counts: list[int], most: int) -> None:
    track, total = StreamTrack(), 0
    looked(track, 0, said("a", 0), behind=lag())
    for number, count in enumerate(counts):
        total += count
        looked(track, 10 * (number + 1), said("a", total), behind=lag(count, float(count)))

    seconds = 10 * len(counts)
    points = track.points(seconds, now=START + seconds, maximum=most)

    assert sum(point.answered for point in points) == total
    assert sum(point.seconds for point in points) == seconds
    assert max(point.lag_records or 0 for point in points) == max(counts)
    assert len(points) <= most + 1
