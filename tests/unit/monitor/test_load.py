"""How busy replicas were is exact in steps of any length, whatever starts again."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.monitor import LoadHistory, LoadReading, LoadTotals, LoadWindow
from headrace.monitor.load import LOAD, LoadCell

_NOON = 1_800_000_000.0
_DAY_S = 24 * 3600
_KNOWN = frozenset({"a", "b"})


@dataclass(slots=True)
class Process:
    """Counts up as a replica does, from the moment it starts."""

    began_at: float = _NOON
    batches: int = 0
    rows: int = 0
    waited: int = 0
    queue_s: float = 0.0
    in_flight_s: float = 0.0

    def run(self, *batch_rows: int, queue_s: float = 0.001, in_flight_s: float = 0.01) -> None:
        """Batches of so many requests of one row, each of which waits and takes so long."""
        requests = sum(batch_rows)
        self.batches += len(batch_rows)
        self.rows += requests
        self.waited += requests
        self.queue_s += requests * queue_s
        self.in_flight_s += requests * in_flight_s

    def totals(self, at: float) -> LoadTotals:
        return LoadTotals(
            epoch=f"{self.began_at}",
            age_s=at - self.began_at,
            batches=self.batches,
            rows=self.rows,
            waited=self.waited,
            queue_s=self.queue_s,
            in_flight_s=self.in_flight_s,
        )


@dataclass(slots=True)
class Watched:
    """A history of endpoint `fraud`, whose first look was at noon."""

    history: LoadHistory = field(default_factory=LoadHistory)

    def __post_init__(self) -> None:
        self.history.advance(_NOON)

    def look(
        self,
        at: float,
        processes: Mapping[str, Process],
        *,
        version: str = "1",
        ready: int | None = None,
        is_first: bool = True,
    ) -> None:
        reading = LoadReading(
            ready=len(processes) if ready is None else ready,
            totals={name: one.totals(at) for name, one in processes.items()},
            process_names=_KNOWN,
            is_first=is_first,
        )
        self.history.add(at, "fraud", version, reading)

    def window(self, begin: float, end: float, version: str = "") -> LoadWindow:
        [window] = self.history.series("fraud", [begin, end], version=version)
        return window

    def total(self, until: float) -> LoadCell:
        """Everything since noon, of all steps."""
        total = LoadCell()
        for _, _, track in self.history.all():
            for _, _, cell in track.ladder.cells(_NOON - _DAY_S, until + 120):
                total.add(cell)
        return total


def test_means_are_over_batches_requests_and_time() -> None:
    watched, process = Watched(), Process()
    for second in range(1, 11):
        process.run(3, 5, queue_s=0.002, in_flight_s=0.05)
        watched.look(_NOON + second, {"a": process})

    window = watched.window(_NOON, _NOON + 10)

    assert window.batch_rows == 4
    assert window.queue_s == pytest.approx(0.002)
    assert window.in_flight == pytest.approx(8 * 0.05)
    assert window.ready == pytest.approx(1)


def test_what_nobody_said_is_not_known_and_not_nothing() -> None:
    watched = Watched()
    watched.look(_NOON + 1, {}, ready=2)

    assert watched.window(_NOON, _NOON + 1) == LoadWindow(ready=2)
    assert watched.window(_NOON + 60, _NOON + 70) == LoadWindow()
    assert watched.history.series("nobody", [_NOON, _NOON + 1]) == [LoadWindow()]
    assert watched.history.series("fraud", []) == []


def test_idle_replicas_have_no_batches_and_nothing_in_flight() -> None:
    watched = Watched()
    watched.look(_NOON + 1, {"a": Process()})

    assert watched.window(_NOON, _NOON + 1) == LoadWindow(in_flight=0, ready=1)


def test_an_endpoint_scaled_to_zero_has_no_replica() -> None:
    watched = Watched()
    watched.look(_NOON + 1, {})

    assert watched.window(_NOON, _NOON + 1) == LoadWindow(ready=0)


def test_what_was_counted_before_the_first_look_is_left_out() -> None:
    watched, process = Watched(), Process(began_at=_NOON - 500)
    process.run(100)
    watched.look(_NOON + 1, {"a": process})
    process.run(2)
    watched.look(_NOON + 2, {"a": process})

    assert watched.window(_NOON, _NOON + 2).batch_rows == 2


def test_a_process_that_starts_again_counts_from_zero() -> None:
    watched, process = Watched(), Process()
    process.run(8, 8)
    watched.look(_NOON + 1, {"a": process})
    process = Process(began_at=_NOON + 1.5)
    process.run(2, 2, 2)
    watched.look(_NOON + 2, {"a": process})

    total = watched.total(_NOON + 2)

    assert (total.batches, total.rows) == (5, 22)


def test_one_that_was_silent_is_not_counted_twice() -> None:
    watched, process = Watched(), Process()
    process.run(8)
    watched.look(_NOON + 1, {"a": process})
    watched.look(_NOON + 2, {}, ready=1)
    process.run(4)
    watched.look(_NOON + 3, {"a": process})

    assert watched.total(_NOON + 3).rows == 12


def test_after_a_long_gap_batches_are_known_and_replicas_are_not() -> None:
    watched, process = Watched(), Process()
    watched.look(_NOON + 1, {"a": process})
    process.run(*[6] * 3600)
    watched.look(_NOON + 3601, {"a": process})

    window = watched.window(_NOON + 600, _NOON + 1200)

    assert window.batch_rows == 6
    assert (window.in_flight, window.ready) == (None, None)


def test_versions_that_follow_each_other_add_up_to_the_replicas_there_were() -> None:
    watched = Watched()
    for second in range(1, 61):
        version = "1" if second <= 30 else "2"
        watched.look(_NOON + second, {"a": Process(), "b": Process()}, version=version)

    assert watched.window(_NOON, _NOON + 60).ready == pytest.approx(2)


def test_versions_side_by_side_are_added_and_told_apart() -> None:
    watched = Watched()
    one, other, third = Process(), Process(), Process()
    for second in range(1, 11):
        one.run(4)
        other.run(2)
        third.run(2)
        watched.look(_NOON + second, {"a": one})
        watched.look(_NOON + second, {"a": other, "b": third}, version="2", is_first=False)
        watched.look(_NOON + second, {}, version="2~baseline", ready=1, is_first=False)
    whole = watched.window(_NOON, _NOON + 10)
    newer = watched.window(_NOON, _NOON + 10, "2")

    assert whole.ready == pytest.approx(4)
    assert whole.in_flight == pytest.approx(0.08)
    assert newer.ready == pytest.approx(3)
    assert newer.batch_rows == 2
    assert watched.window(_NOON, _NOON + 10, "2~baseline") == LoadWindow(ready=1)


_STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.25, 1.0, 1.0, 1.0, 7.0, 30.0, 400.0, 5000.0]),
        st.lists(st.integers(1, 64), max_size=5),
        st.floats(0.0, 2.0),
        st.booleans(),
        st.booleans(),
    ),
    max_size=60,
)


@given(steps=_STEPS)
def test_downsampling_and_restarts_keep_every_sum(
    steps: list[tuple[float, list[int], float, bool, bool]],
) -> None:
    watched, at, process, ended = Watched(), _NOON, Process(), Process()
    for pause_s, batches, queue_s, is_silent, restarts in steps:
        if at + pause_s - _NOON > _DAY_S - 3600:
            break
        at += pause_s
        process.run(*batches, queue_s=queue_s)
        watched.look(at, {} if is_silent else {"a": process}, ready=1)
        if restarts and not is_silent:  # what one counted after the last look goes with it
            ended.batches += process.batches
            ended.rows += process.rows
            ended.waited += process.waited
            ended.queue_s += process.queue_s
            process = Process(began_at=at + 0.01)
    watched.look(at + 1, {"a": process})

    total = watched.total(at)

    assert (total.batches, total.rows, total.waited) == (
        ended.batches + process.batches,
        ended.rows + process.rows,
        ended.waited + process.waited,
    )
    assert total.queue_s == pytest.approx(ended.queue_s + process.queue_s, abs=1e-3)
    assert total.ready_s == pytest.approx(total.looked_s, abs=0.1)


@given(steps=_STEPS)
def test_what_was_packed_goes_on_as_if_nothing_had_happened(
    steps: list[tuple[float, list[int], float, bool, bool]],
) -> None:
    straight, stored, at, process = Watched(), Watched(), _NOON, Process()
    for pause_s, batches, queue_s, *_ in steps:
        at += pause_s
        process.run(*batches, queue_s=queue_s)
        straight.look(at, {"a": process})
        stored.look(at, {"a": process})
        again = LoadHistory()
        again.unpack(stored.history.pack())
        stored.history = again

    def batches_of(watched: Watched) -> list[float | None]:
        # On whole minutes: what was joined at another time lies in other steps than those.
        edges = [60 * (at // 60 - 60 + number) for number in range(62)]
        return [window.batch_rows for window in watched.history.series("fraud", edges)]

    assert batches_of(stored) == batches_of(straight)
    assert stored.history.looked_at == straight.history.looked_at


@given(
    st.builds(LoadCell, *[st.floats(0, 1e4)] * 4, *[st.integers(0, 10**9)] * 3), st.integers(1, 120)
)
def test_parts_are_the_whole_and_rows_are_read_as_written(cell: LoadCell, pieces: int) -> None:
    together = LoadCell()
    for number in range(pieces):
        together.add(cell.part(number, pieces))
    read = LOAD.cell_of(LOAD.row_of(3, cell))

    assert (together.batches, together.rows, together.waited) == (
        cell.batches,
        cell.rows,
        cell.waited,
    )
    assert together.ready_s == pytest.approx(cell.ready_s)
    assert read.looked_s == pytest.approx(cell.looked_s, abs=1e-3)
    assert read.rows == cell.rows


@pytest.mark.parametrize("data", [b"", b"\xc0", b"{}", b"\x83" * 40])
def test_a_file_that_is_none_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no history of load"):
        LoadHistory().unpack(data)


def test_a_file_of_another_format_is_refused() -> None:
    data = Watched().history.pack().replace(b"\xa6format\x01", b"\xa6format\x02")

    with pytest.raises(ValueError, match="format 2"):
        LoadHistory().unpack(data)


@pytest.mark.slow
def test_a_day_of_an_endpoint_takes_little_and_the_oldest_hours_go_first() -> None:
    watched, process, bounded = Watched(), Process(), Watched(LoadHistory(max_bytes=6_000))
    for number in range(1, _DAY_S // 30):
        process.run(3, 4, 5)
        for one in (watched, bounded):
            one.look(_NOON + number * 30, {"a": process})
    now = _NOON + _DAY_S

    assert 6_000 < watched.history.size_bytes < 48_000
    assert bounded.history.size_bytes < 9_000
    assert bounded.window(now - 1800, now).batch_rows == 4
    assert bounded.window(_NOON, _NOON + 3600) == LoadWindow()
    assert watched.window(_NOON + 3600, _NOON + 7200).batch_rows == 4


def test_what_is_a_day_old_is_forgotten() -> None:
    watched = Watched()
    watched.look(_NOON + 1, {"a": Process()})
    for hour in range(1, 27):
        watched.history.advance(_NOON + hour * 3600)
        watched.history.advance(_NOON + hour * 3600 + 61)

    assert watched.history.size_bytes == 0
