"""Where windows' states come from, what is told of them, and what stands in their way."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from headrace.core import UnsupportedError
from headrace.core.spec.stream_parts import StreamWindowSpec, StreamWindowsSpec
from headrace.streaming.broker import BrokerFeatures, StartPosition
from headrace.streaming.metrics import Counters, render_metrics
from headrace.streaming.records import NewRecord, Record, TopicPartition
from headrace.streaming.settings import StreamStatus
from headrace.streaming.windows.session import STALE_AFTER, Restore, Windows, restore
from headrace.testing.streams import MemoryBroker, TurnedClock
from tests.unit.streaming.world import settings

HERE = TopicPartition("in", 0)
STEP_S = 10.0


class ForgetfulBroker(MemoryBroker):
    """Keeps records from `first` on only."""

    first = 0

    def ends(self, topic: str) -> Mapping[TopicPartition, tuple[int, int]]:
        return {p: (self.first, end) for p, (_, end) in super().ends(topic).items()}

    def offsets_at(self, topic: str, at_s: float) -> Mapping[TopicPartition, int]:
        return {p: max(self.first, at) for p, at in super().offsets_at(topic, at_s).items()}


@pytest.fixture
def broker() -> ForgetfulBroker:
    """Twenty records, ten seconds apart."""
    clock = TurnedClock()
    made = ForgetfulBroker(clock)
    made.create_topic("in")
    for _ in range(20):
        made.send([NewRecord(topic="in", key=b"k", value=b"")])
        clock.turn(STEP_S)
    return made


def windows(
    broker: MemoryBroker, folder: Path, *, start: StartPosition = StartPosition.EARLIEST
) -> Windows:
    told = settings(
        group="g",
        start=start,
        windows=StreamWindowsSpec(
            windows=[StreamWindowSpec(name="n", size_s=35, slide_s=5)],
            lateness_s=0.0,
            state=str(folder),
        ),
    )
    return Windows(told, broker, Counters().windows, clock=broker.clock)


def read(broker: MemoryBroker, at: int, count: int) -> list[Record]:
    return broker.read("in", after={HERE: at}, max_records=count)


def counts(found: Windows, records: list[Record]) -> list[object]:
    return list(found.count(records).columns["n"])


def run(broker: MemoryBroker, folder: Path, count: int) -> None:
    """Count some, deliver and write them."""
    made = windows(broker, folder)
    (at,) = made.on_assigned([HERE]).values()
    done = at + count
    made.count(made.count_restored(read(broker, at, count)))
    made.delivered({HERE: done})
    made.checkpoint()
    made.close()
    broker.set_committed("g", {HERE: done})


@pytest.mark.parametrize(("written", "group"), [(8, 8), (4, 7)])
def test_a_state_is_read_on_from_and_what_the_group_has_done_since_is_only_counted(
    broker: ForgetfulBroker, tmp_path: Path, written: int, group: int
) -> None:
    run(broker, tmp_path, written)
    broker.set_committed("g", {HERE: group})
    made = windows(broker, tmp_path)
    behind = group - written

    assert made.on_assigned([HERE]) == {HERE: written}
    assert (f"{behind} records are read again" in made.problem) == (behind > 0)
    left = made.count_restored(read(broker, written, behind + 2))
    assert [one.offset for one in left] == [group, group + 1]
    assert made.problem == ""
    assert counts(made, left) == [4, 4]
    counted = made._counters
    assert (counted.restored_records, counted.opened, counted.rebuilt) == (behind, 1, 0)
    made.close()


@pytest.mark.parametrize("group", [2, 12])
def test_a_group_that_was_put_back_or_lost_its_state_has_windows_made_again(
    broker: ForgetfulBroker, tmp_path: Path, group: int, caplog: pytest.LogCaptureFixture
) -> None:
    if group == 2:
        run(broker, tmp_path, 8)
    broker.set_committed("g", {HERE: group})
    made = windows(broker, tmp_path)
    (at,) = made.on_assigned([HERE]).values()

    assert at == max(group - 1 - 4, 0)
    made.count_restored(read(broker, at, group - at))
    assert counts(made, read(broker, group, 2)) == [min(group + 1, 4), 4]
    assert "are rebuilt from" in caplog.text
    assert (made._counters.rebuilt, made._counters.incomplete) == (1, 0)
    made.close()


def test_windows_of_what_the_log_has_forgotten_are_told_to_be_short(
    broker: ForgetfulBroker, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broker.first = 10
    broker.set_committed("g", {HERE: 12})
    made = windows(broker, tmp_path)

    assert made.on_assigned([HERE]) == {HERE: 10}
    assert "older records were deleted" in caplog.text
    assert made._counters.incomplete == 1
    made.close()


def test_a_group_that_begins_at_the_end_has_full_windows(
    broker: ForgetfulBroker, tmp_path: Path
) -> None:
    made = windows(broker, tmp_path, start=StartPosition.LATEST)
    (at,) = made.on_assigned([HERE]).values()
    assert made.count_restored(read(broker, at, 20)) == []
    broker.send([NewRecord(topic="in", key=b"k", value=b"")])

    assert at < 17
    assert counts(made, read(broker, 20, 1)) == [4]
    made.close()


def test_a_state_that_cannot_be_written_is_told_and_written_later(
    broker: ForgetfulBroker, tmp_path: Path
) -> None:
    made = windows(broker, tmp_path)
    made.on_assigned([HERE])
    made.count(made.count_restored(read(broker, 0, 3)))
    made.delivered({HERE: 3})
    db = made._held[HERE].file._db
    db.execute("PRAGMA query_only = 1")
    made.checkpoint()
    problem = made.problem
    db.execute("PRAGMA query_only = 0")
    made.checkpoint()

    assert "cannot write the state of windows" in problem
    assert made.problem == ""
    assert made._held[HERE].file.position() == (3, round((broker.clock.now() - 180) * 1e6))
    made.close()


def test_much_is_written_in_parts_and_at_the_end_as_a_whole(
    broker: ForgetfulBroker, tmp_path: Path
) -> None:
    clock, told = broker.clock, TopicPartition("many", 0)
    broker.create_topic("many")
    broker.send([NewRecord(topic="many", key=b"%d" % at, value=b"") for at in range(3000)])
    made = windows(broker, tmp_path)
    made.on_assigned([told])
    for at in range(0, 3000, 100):
        made.count(made.count_restored(broker.read("many", after={told: at}, max_records=100)))
    made.delivered({told: 3000})
    written = []
    for _ in range(2):
        made.checkpoint()
        kept = made._held[told].file.position()
        written.append(0 if kept is None else kept.offset)
        assert made.is_due(clock.monotonic() + 0.06)
    made.checkpoint(is_last=True)
    kept = made._held[told].file.position()

    assert written == [800, 1400]
    assert kept is not None
    assert kept.offset == 3000
    made.close()


def test_brokers_without_partitions_have_no_windows(
    broker: ForgetfulBroker, tmp_path: Path
) -> None:
    broker.abilities = replace(broker.abilities, partitions=False)
    assert isinstance(broker.abilities, BrokerFeatures)

    with pytest.raises(
        UnsupportedError, match="windows need a broker whose topics have partitions"
    ):
        windows(broker, tmp_path)


def test_what_happens_to_windows_is_in_the_metrics(broker: ForgetfulBroker, tmp_path: Path) -> None:
    counters = Counters()
    quiet = render_metrics(counters, StreamStatus(stream="s", member="m"))
    run(broker, tmp_path, 5)
    made = windows(broker, tmp_path)
    counters.windows = made._counters
    made.on_assigned([HERE])
    late = msgspec.structs.replace(read(broker, 5, 1)[0], timestamp_s=1.0)
    added = made.count([*made.count_restored(read(broker, 5, 1)), late])
    made.checkpoint()
    text = render_metrics(counters, StreamStatus(stream="s", member="m")).decode()
    made.close()

    assert b"window" not in quiet
    assert not added.errors
    assert 'headrace_stream_window_late_records_total{stream="s"} 1' in text
    assert 'headrace_stream_window_states_opened_total{stream="s"} 1' in text
    assert 'headrace_stream_window_keys{stream="s"} 1' in text
    assert 'headrace_stream_window_checkpoint_seconds_count{stream="s"} 1' in text


def test_a_stale_state_is_given_up_if_less_is_read_without_it() -> None:
    far = STALE_AFTER + 1

    assert restore(0, group=far, first=0, since=lambda: far - 5) == Restore(
        far - 5, far, is_rebuilt=True
    )
    assert restore(far - 9, group=far * 2, first=0, since=lambda: 3) == Restore(
        far - 9, far * 2, is_rebuilt=False
    )
