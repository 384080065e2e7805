"""A state file holds panes and their offset together, is one worker's, and mends itself."""

import sqlite3
from pathlib import Path

import pytest

from headrace.core import ConflictError, FailedPreconditionError, UnavailableError
from headrace.streaming.records import TopicPartition
from headrace.streaming.windows.panes import Pane
from headrace.streaming.windows.state_file import (
    StatePosition,
    WindowChange,
    WindowStateFile,
    state_path,
)

PANE = Pane().with_value(0.1).with_value(-3.5)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "in-0.db"


def change(offset: int, at: int = 5) -> WindowChange:
    return WindowChange(offset, {(0, b"a", at): PANE, (1, b"a", at): Pane()}, offset * 10)


def written(path: Path, definition: str = "d") -> None:
    file = WindowStateFile(path, definition=definition)
    file.begin(3)
    file.write(change(7), first_needed=[0, 0])
    file.close()


def test_what_is_written_is_read_to_the_last_bit(path: Path) -> None:
    written(path)
    file = WindowStateFile(path, definition="d")

    assert file.position() == StatePosition(7, 70)
    assert file.read([(0, b"a"), (1, b"a"), (0, b"none")]) == {
        (0, b"a"): {5: PANE},
        (1, b"a"): {5: Pane()},
    }
    file.close()
    file.close()


def test_a_new_file_and_a_state_of_other_windows_hold_nothing_and_begin_where_told(
    path: Path,
) -> None:
    for definition in ("d", "other"):
        file = WindowStateFile(path, definition=definition)
        assert file.position() is None
        assert file.read([(0, b"a")]) == {}
        file.begin(9)
        file.write(change(10), first_needed=[0, 0])
        file.begin(2)
        assert file.position() == StatePosition(2, None)
        assert file.read([(0, b"a")]) == {}
        file.write(change(7), first_needed=[0, 0])
        file.close()


def test_old_panes_go(path: Path) -> None:
    written(path)
    file = WindowStateFile(path, definition="d")
    file.write(change(8, at=9), first_needed=[9, 0])

    assert set(file.read([(0, b"a")])[0, b"a"]) == {9}
    assert set(file.read([(1, b"a")])[1, b"a"]) == {5, 9}
    file.close()


def test_who_opens_a_file_owns_it_and_the_one_before_writes_no_more(path: Path) -> None:
    written(path)
    before, after = WindowStateFile(path, definition="d"), WindowStateFile(path, definition="d")
    with pytest.raises(ConflictError, match="taken over"):
        before.write(change(8), first_needed=[])
    after.write(change(9), first_needed=[])
    after.begin(1)

    with pytest.raises(ConflictError, match="taken over"):
        before.write(change(10), first_needed=[])
    assert after.position() == StatePosition(1, None)
    before.close()
    after.close()


def test_a_damaged_file_is_set_aside(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path.parent.mkdir()
    path.write_bytes(b"this is no database, but somebody's letter" * 100)
    file = WindowStateFile(path, definition="d")

    assert file.position() is None
    assert path.with_name("in-0.db.damaged").read_bytes().startswith(b"this is no database")
    assert "rebuilt from the topic" in caplog.text
    file.close()


def test_damage_that_is_seen_later_is_set_aside_too(path: Path) -> None:
    written(path)
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xff" * (len(data) - 4096)
    path.write_bytes(bytes(data))
    with pytest.raises((UnavailableError, FailedPreconditionError), match="malformed"):
        WindowStateFile(path, definition="d").read([(0, b"a")])
    again = WindowStateFile(path, definition="d")

    assert again.position() is None
    again.close()


def test_a_file_of_a_later_version_is_left_alone(path: Path) -> None:
    written(path)
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()

    with pytest.raises(FailedPreconditionError, match=r"version 99.*delete it"):
        WindowStateFile(path, definition="d")
    assert path.exists()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(FailedPreconditionError, match="cannot open the state of windows in"):
        WindowStateFile(tmp_path / "file" / "in-0.db", definition="d")


def test_a_file_that_another_writes_for_long_is_told(path: Path) -> None:
    written(path)
    file = WindowStateFile(path, definition="d")
    file._db.execute("PRAGMA busy_timeout = 10")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")

    with pytest.raises(UnavailableError, match="cannot write the state of windows"):
        file.write(change(8), first_needed=[])
    other.close()
    assert file.position() == StatePosition(7, 70)
    file.close()


def test_files_of_places_are_apart_whatever_topics_are_called() -> None:
    names = ["in", "a/b", "..", "x" * 249, "x" * 248 + "y", "é" * 249]
    paths = {state_path(Path("/s"), TopicPartition(name, 0)) for name in names}

    assert len(paths) == len(names)
    assert all(path.parent == Path("/s") and len(path.name) < 255 for path in paths)
