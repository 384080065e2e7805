"""The embedded log keeps every broker's promises, and some of its own."""

import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from headrace.core import ConflictError
from headrace.streaming.brokers import open_broker
from headrace.streaming.brokers.log.broker import LogBroker
from headrace.streaming.brokers.log.file import ChangeNotifier
from headrace.streaming.records import NewRecord, TopicPartition
from tests.contract.brokers.rig import (
    Listener,
    Rig,
    after,
    everything,
    joined,
    new_name,
    numbered,
    numbers,
    settle,
    take,
    taken,
)
from tests.contract.brokers.suite import BrokerContract

DAY_S = 86_400.0
LONG_S = 60.0
PLACE = TopicPartition("t", 0)


@pytest.mark.e2e
class TestLog(BrokerContract):
    @pytest.fixture
    def rig(self, tmp_path: Path) -> Rig:
        return Rig(
            url=f"log://{tmp_path / 'log'}",
            home=tmp_path,
            session_timeout_s=1.0,
            copied=20_000,
            kills=12,
        )


@dataclass
class TurnedClock:
    """Its time is what a test says; what waits, waits by the machine's."""

    now_s: float = 1_700_000_000.0

    def now(self) -> float:
        return self.now_s

    def monotonic(self) -> float:
        return time.monotonic()


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


@pytest.fixture
def log(tmp_path: Path, clock: TurnedClock) -> Iterator[LogBroker]:
    """A log with the topic t."""
    broker = LogBroker(tmp_path / "log", retention_bytes=40_000_000, clock=clock)
    broker.create_topic("t")
    yield broker
    broker.close()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(url="unused:", home=tmp_path, session_timeout_s=30.0)


def test_what_is_a_week_old_is_forgotten_as_something_new_is_written(
    log: LogBroker, clock: TurnedClock
) -> None:
    log.send(numbered("t", range(5000)))
    clock.now_s += 6 * DAY_S
    log.send(numbered("t", range(5000, 10_000)))
    clock.now_s += 1.5 * DAY_S
    log.send(numbered("t", [10_000]))

    ((first, following),) = log.ends("t").values()
    assert first == 5000
    assert following == 10_001
    assert numbers(log.read("t", after={PLACE: 0}, max_records=2)) == [5000, 5001]


def test_a_topic_keeps_no_more_bytes_than_it_may(log: LogBroker) -> None:
    for start in range(0, 120, 10):
        value = bytes(1_000_000)
        log.send(
            [NewRecord(topic="t", key=b"%d" % n, value=value) for n in range(start, start + 10)]
        )

    ((first, following),) = log.ends("t").values()
    assert following == 120
    assert 30 <= following - first <= 50


def test_a_topic_of_two_partitions_forgets_the_oldest_of_both(
    tmp_path: Path, clock: TurnedClock
) -> None:
    log = LogBroker(tmp_path / "two", retention_bytes=10_000_000, clock=clock)
    log.create_topic("t", partitions=2)
    for number in (0, 0, 1, 1, 1, 1):
        clock.now_s += 1
        records = [
            NewRecord(topic="t", key=None, value=bytes(1_000_000), partition=number)
            for _ in range(5)
        ]
        log.send(records)

    kept = {partition.partition: end - first for partition, (first, end) in log.ends("t").items()}
    log.close()

    assert kept[0] == 5  # the newest of a place stays
    assert kept[1] <= 10


def test_who_reads_too_slowly_is_told_what_it_missed(
    log: LogBroker, clock: TurnedClock, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    membership = rig.membership("t")
    log.send(numbered("t", range(5000)))
    with joined(log, membership) as session:
        session.produce([], after(take(session, 10, max_records=10)))
    clock.now_s += 8 * DAY_S
    log.send(numbered("t", range(5000, 5003)))

    with caplog.at_level(logging.WARNING), joined(log, membership) as session:
        found = take(session, 3)

    assert numbers(found) == [5000, 5001, 5002]
    assert "records 10 to 4999 were deleted before group" in caplog.text


def test_a_record_keeps_the_time_that_it_brings_and_is_found_by_it(log: LogBroker) -> None:
    times = [10.0, 50.0, 20.0, 60.0, 30.0]
    log.send([NewRecord(topic="t", key=None, value=b"", timestamp_s=at_s) for at_s in times])

    assert [record.timestamp_s for record in everything(log, "t")] == times
    found = [log.offsets_at("t", at_s)[PLACE] for at_s in (0, 10, 11, 50, 51, 60, 61)]
    assert found == [0, 0, 1, 1, 3, 3, 5]


def test_a_topic_found_by_time_without_its_beginning(log: LogBroker, clock: TurnedClock) -> None:
    future = NewRecord(topic="t", key=None, value=b"0", timestamp_s=clock.now_s * 2)
    log.send([future, *numbered("t", range(1, 5000))])
    clock.now_s += 8 * DAY_S
    log.send(numbered("t", range(5000, 5005)))
    clock.now_s += 10
    log.send(numbered("t", range(5005, 5010)))

    assert log.offsets_at("t", clock.now_s - 5)[PLACE] == 5005


def test_records_without_keys_spread_over_the_partitions(log: LogBroker) -> None:
    log.create_topic("wide", partitions=4)
    log.send(numbered("wide", range(400)))

    assert [end - first for first, end in log.ends("wide").values()] == [100] * 4


def test_who_gave_no_sign_of_life_delivers_no_more(
    log: LogBroker, clock: TurnedClock, rig: Rig
) -> None:
    log.create_topic("out")
    log.send(numbered("t", range(5)))
    group = new_name("group")
    silent = log.join(rig.membership("t", group=group), Listener())
    found = take(silent, 5)
    clock.now_s += 31
    with joined(log, rig.membership("t", group=group, member="two")) as other:
        again = take(other, 5)
        with pytest.raises(ConflictError, match="no heartbeat for 30 s"):
            silent.produce(numbered("out", range(5)), after(found))
        with pytest.raises(ConflictError, match="no heartbeat"):
            silent.poll(1, 0)
        silent.close()
        other.produce(numbered("out", numbers(again)), after(again))

    assert numbers(everything(log, "out")) == [0, 1, 2, 3, 4]


def test_who_gave_no_sign_of_life_and_comes_back_is_told_what_it_lost(
    log: LogBroker, clock: TurnedClock, rig: Rig
) -> None:
    log.create_topic("wide", partitions=2)
    group = new_name("group")
    first, second = Listener(), Listener()
    with joined(log, rig.membership("wide", group=group), first) as silent:
        settle(silent, lambda: len(first.held) == 2)
        clock.now_s += 31
        with joined(log, rig.membership("wide", group=group, member="two"), second) as other:
            settle(other, lambda: len(second.held) == 2)
            settle(silent, lambda: len(first.lost_partitions) == 2)
            settle(other, lambda: len(second.held) == 1)
            settle(silent, lambda: len(first.held) == 1)

            assert not first.held & second.held


_SENDER = """
import sys
from pathlib import Path
from headrace.streaming.brokers import open_broker
from headrace.streaming.records import NewRecord
broker = open_broker(sys.argv[1], home=Path(sys.argv[2]))
broker.create_topic("t", partitions=3)
for n in range(int(sys.argv[3]), 600, 3):
    broker.send([NewRecord(topic="t", key=b"%d" % n, value=b"%d" % n)])
"""


@pytest.mark.e2e
def test_processes_that_make_one_log_at_once_all_write_to_it(tmp_path: Path, rig: Rig) -> None:
    senders = [
        subprocess.Popen([sys.executable, "-c", _SENDER, "log:mine", str(tmp_path), str(first)])  # noqa: S603  # ours
        for first in range(3)
    ]
    codes = [sender.wait(timeout=60) for sender in senders]
    with closing(open_broker("log:mine", home=tmp_path)) as broker:
        found = taken(broker, rig.membership("t"), 600)

    assert codes == [0, 0, 0]
    assert sorted(numbers(found)) == list(range(600))


def test_a_log_with_a_name_lies_in_the_home_and_is_private(tmp_path: Path) -> None:
    open_broker("log:mine?sync=full&retention_s=60", home=tmp_path).close()

    (file,) = (tmp_path / "streams" / "mine").glob("*.db")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


@contextmanager
def bells(folder: Path, *names: str) -> Iterator[list[ChangeNotifier]]:
    made = [ChangeNotifier(folder) for _ in names]
    try:
        for bell, name in zip(made, names, strict=True):
            assert bell.listen(name)
        yield made
    finally:
        for bell in made:
            bell.close()
            bell.close()


def waited_s(bell: ChangeNotifier, most_s: float) -> float:
    began = time.monotonic()
    bell.wait(most_s)
    return time.monotonic() - began


def test_a_ring_wakes_the_others_once(tmp_path: Path) -> None:
    with bells(tmp_path, "one", "two", "three") as (one, two, three):
        for _ in range(100):  # more than a socket keeps
            one.notify()

        assert waited_s(two, LONG_S) < LONG_S / 2
        assert waited_s(three, LONG_S) < LONG_S / 2
        assert waited_s(two, 0.05) >= 0.05
        assert waited_s(one, 0.05) >= 0.05


def test_it_rings_however_long_the_path_of_the_log_is(tmp_path: Path) -> None:
    folder = tmp_path / ("x" * 200)
    folder.mkdir()
    with bells(folder, "one", "two") as (one, two):
        one.notify()

        assert waited_s(two, LONG_S) < LONG_S / 2


def test_who_has_died_is_forgotten(tmp_path: Path) -> None:
    with bells(tmp_path, "one", "dead") as (one, dead):
        dead._socket.close()  # as when its process is killed
        one.notify()

        assert [path.name for path in (tmp_path / "waiting").iterdir()] == ["one"]
    assert list((tmp_path / "waiting").iterdir()) == []


def test_who_cannot_be_rung_looks_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChangeNotifier, "listen", lambda *_: False)  # as on a disk without sockets
    log = LogBroker(tmp_path / "log")
    log.create_topic("t")
    rig = Rig(url="unused:", home=tmp_path)
    with joined(log, rig.membership("t")) as session:
        assert session.poll(1, 0.1) == []
        log.send(numbered("t", [1]))
        began = time.monotonic()

        assert numbers(take(session, 1, within_s=LONG_S)) == [1]
        assert time.monotonic() - began < LONG_S / 2
    log.close()
