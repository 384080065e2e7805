"""An embedded log that is damaged, full, busy or away says so, and how to mend it."""

import contextlib
import os
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.core import (
    ConflictError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    UnavailableError,
)
from headrace.streaming.brokers.log.broker import LogBroker
from headrace.streaming.brokers.log.file import LogFullError
from headrace.streaming.records import NewRecord, TopicPartition
from tests.contract.brokers.rig import Rig, after, everything, joined, numbered, numbers, take


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "log"


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(url="unused:", home=tmp_path, session_timeout_s=0.3)


@contextlib.contextmanager
def opened(folder: Path, *, lock_timeout_s: float = 5.0) -> Iterator[LogBroker]:
    broker = LogBroker(folder, lock_timeout_s=lock_timeout_s)
    try:
        broker.create_topic("t")
        broker.create_topic("out")
        yield broker
    finally:
        broker.close()


@contextlib.contextmanager
def held(folder: Path) -> Iterator[sqlite3.Connection]:
    """Another process, as far as the file can tell, that writes and does not end."""
    with contextlib.closing(
        sqlite3.connect(folder / "log.db", isolation_level=None, check_same_thread=False)
    ) as other:
        other.execute("BEGIN IMMEDIATE")
        yield other


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"this is no database, whatever its name says" * 100, r"move log\.db .* away"),
        ("PRAGMA user_version = 3", "something else"),
        ("PRAGMA user_version = 3; CREATE TABLE mine (x)", "something else"),
        ("PRAGMA application_id = 0x48524C47; PRAGMA user_version = 99", "of another version"),
    ],
)
def test_what_is_no_log_of_this_version_is_left_alone(
    folder: Path, content: bytes | str, told: str
) -> None:
    folder.mkdir()
    file = folder / "log.db"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        with contextlib.closing(sqlite3.connect(file)) as other:
            other.executescript(content)
    before = file.read_bytes()

    with pytest.raises(FailedPreconditionError, match=told):
        LogBroker(folder)
    assert file.read_bytes() == before


def test_damaged_pages_are_told_with_the_way_to_save_the_rest(folder: Path, rig: Rig) -> None:
    with opened(folder) as broker:
        broker.send(numbered("t", range(20_000)))
    path = folder / "log.db"
    content = bytearray(path.read_bytes())
    content[len(content) // 3 :] = b"\xff" * (len(content) - len(content) // 3)
    path.write_bytes(content)
    broker = LogBroker(folder)
    try:
        with pytest.raises(FailedPreconditionError, match=r"malformed.*\.recover"):
            everything(broker, "t")
        with joined(broker, rig.membership("t")) as session, pytest.raises(FailedPreconditionError):
            take(session, 20_000, within_s=5)
    finally:
        broker.close()


def test_a_folder_that_is_a_file_is_told(folder: Path) -> None:
    folder.write_text("a file")

    with pytest.raises(FailedPreconditionError, match=r"log.*exists"):
        LogBroker(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user")
def test_a_log_that_this_user_may_not_write_is_told() -> None:
    with tempfile.TemporaryDirectory(prefix="hr-log-") as name:
        folder = Path(name) / "log"
        with opened(folder):
            pass
        Path(name).chmod(0o755)
        folder.chmod(0o755)
        (folder / "log.db").chmod(0o644)
        os.seteuid(65534)
        try:
            with pytest.raises(HeadraceError, match=r"may write|read-only"):
                LogBroker(folder).create_topic("new")
            with pytest.raises(FailedPreconditionError, match="denied"):
                LogBroker(Path(name) / "another")
        finally:
            os.seteuid(0)


def test_a_full_disk_delivers_nothing_and_loses_nothing(folder: Path, rig: Rig) -> None:
    membership = rig.membership("t")
    large = [NewRecord(topic="out", key=None, value=bytes(100_000)) for _ in range(10)]
    with opened(folder) as broker:
        broker.send(numbered("t", range(5)))
        with joined(broker, membership) as session:
            found = take(session, 5)
            session._file._db.execute("PRAGMA max_page_count = 40")  # type: ignore[attr-defined]
            with pytest.raises(LogFullError, match="no space is left on the disk; free some"):
                session.produce(large, after(found))
            with pytest.raises(LogFullError):
                session.poll(1, 0)

        with joined(broker, membership) as session:
            again = take(session, 5)
            session.produce(large, after(again))
            assert len(everything(broker, "out")) == 10

    assert numbers(again) == [0, 1, 2, 3, 4]


def test_a_writer_is_waited_for_and_one_that_stays_is_trouble_to_a_poll_and_ends_a_delivery(
    folder: Path, rig: Rig
) -> None:
    membership = rig.membership("t")
    with opened(folder, lock_timeout_s=0.5) as broker, joined(broker, membership) as session:
        broker.send(numbered("t", range(3)))
        found = take(session, 3)
        with held(folder) as other:
            ends = threading.Timer(0.2, other.execute, ["ROLLBACK"])
            ends.start()
            session.produce(numbered("out", range(3)), after(found))
            ends.join()
        with held(folder):
            for _ in range(3):
                assert session.poll(1, 0.2) == []
            assert "another process has locked it" in session.problem
        assert session.poll(1, 0.5) == []
        assert session.problem == ""
        with (
            held(folder),
            pytest.raises(UnavailableError, match="another process has locked it"),
        ):
            session.produce(numbered("out", [3]), {})

        assert numbers(everything(broker, "out")) == [0, 1, 2]


def test_a_record_that_no_log_takes_is_refused_before_anything_is_written(folder: Path) -> None:
    huge = NewRecord(topic="out", key=None, value=bytes((64 << 20) + 1))
    never = NewRecord(topic="out", key=None, value=b"", timestamp_s=float("nan"))
    with opened(folder) as broker:
        for bad, told in ((huge, "exceeds the limit of 67108864 bytes"), (never, "timestamp nan")):
            with pytest.raises(InvalidArgumentError, match=told):
                broker.send([*numbered("out", [1]), bad])
        assert everything(broker, "out") == []


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"group": ""}, "group ''"),
        ({"group": "a\nb"}, "printable"),
        ({"member": "x" * 300}, "member 'xxx"),
        ({"session_timeout_s": 0.0}, "session_timeout_s"),
        ({"start_s": float("nan")}, "start_s"),
    ],
)
def test_a_membership_that_cannot_be_is_refused(
    folder: Path, rig: Rig, changes: dict[str, object], told: str
) -> None:
    with opened(folder) as broker, pytest.raises(InvalidArgumentError, match=told):
        broker.join(rig.membership("t", **changes), None)  # type: ignore[arg-type]  # never asked


def test_a_group_is_put_only_where_records_are(folder: Path) -> None:
    with opened(folder) as broker:
        broker.send(numbered("t", range(3)))
        for offset in (-1, 4):
            with pytest.raises(InvalidArgumentError, match=r"t/0 ends at 3"):
                broker.set_committed("g", {TopicPartition("t", 0): offset})
        broker.set_committed("g", {TopicPartition("t", 0): 3})

        assert broker.committed("g", "t") == {TopicPartition("t", 0): 3}


def test_another_process_that_closes_the_log_takes_nothing_from_who_has_it_open(
    folder: Path,
) -> None:
    """Closing a file drops all locks of a process on it: nothing of ours may open it beside."""
    script = (
        "import sys, pathlib; from headrace.streaming.brokers.log.broker import LogBroker as Log; "
    )
    script += "Log(pathlib.Path(sys.argv[1])).close()"
    with opened(folder) as broker:
        with opened(folder) as other:
            other.send(numbered("t", range(10)))
        subprocess.run([sys.executable, "-c", script, str(folder)], check=True, timeout=60)  # noqa: S603  # ours
        assert (folder / "log.db-wal").exists(), "it thought that it was the last"
        broker.send(numbered("t", range(10, 20)))
        with opened(folder) as third:
            assert numbers(everything(third, "t")) == list(range(20))


def test_a_conflict_is_no_trouble_that_passes(folder: Path, rig: Rig) -> None:
    membership = rig.membership("t")
    with opened(folder) as broker, joined(broker, membership) as replaced:
        replaced.poll(1, 0)
        with joined(broker, membership):
            for _ in range(2):
                with pytest.raises(
                    ConflictError, match="was replaced by another member of that name"
                ):
                    take(replaced, 1, within_s=5)
