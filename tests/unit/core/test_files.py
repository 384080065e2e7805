"""Atomic replacement and durable renames of files and directories."""

import errno
import os
import stat
from pathlib import Path

import pytest

from headrace.core.files import move, read_regular, replacing, sync_directory, write_atomic


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("durable", [True, False])
def test_a_shorter_file_replaces_a_longer_one_whole(tmp_path: Path, *, durable: bool) -> None:
    write_atomic(tmp_path / "f", b"long content")

    write_atomic(tmp_path / "f", b"short", durable=durable)

    assert contents(tmp_path) == {"f": b"short"}


@pytest.mark.parametrize("function", ["fsync", "fchmod", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_no_temporary_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    write_atomic(tmp_path / "f", b"old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, function, full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(tmp_path / "f", b"new")

    assert contents(tmp_path) == {"f": b"old"}


def test_an_error_of_the_writer_leaves_the_old_file(tmp_path: Path) -> None:
    write_atomic(tmp_path / "f", b"old")

    def write() -> None:
        with replacing(tmp_path / "f") as file:
            file.write(b"new")
            raise ValueError("later")

    with pytest.raises(ValueError, match="later"):
        write()

    assert contents(tmp_path) == {"f": b"old"}


def test_two_writers_of_one_file_do_not_mix_their_contents(tmp_path: Path) -> None:
    with replacing(tmp_path / "f") as first, replacing(tmp_path / "f") as second:
        first.write(b"first")
        second.write(b"second, longer")

    assert contents(tmp_path) == {"f": b"first"}


@pytest.mark.parametrize(("mode", "expected"), [(0o444, 0o444), (0o644, 0o644), (None, 0o640)])
def test_the_new_file_has_the_mode_of_the_call_or_of_the_umask(
    tmp_path: Path, mode: int | None, expected: int
) -> None:
    before = os.umask(0o027)
    try:
        write_atomic(tmp_path / "f", b"", mode=mode)
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "f").stat().st_mode) == expected


def test_a_directory_that_cannot_be_flushed_is_no_error_and_a_broken_disk_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(number: int) -> None:
        def fsync(_descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    failing(errno.EINVAL)
    sync_directory(tmp_path)
    failing(errno.EIO)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        sync_directory(tmp_path)


def test_a_moved_directory_keeps_its_files(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "f").write_bytes(b"x")

    move(tmp_path / "a", tmp_path / "b")

    assert contents(tmp_path / "b") == {"f": b"x"}
    assert not (tmp_path / "a").exists()


def test_a_regular_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"1234")
    (tmp_path / "link").symlink_to("f")

    assert read_regular(tmp_path / "f", limit_bytes=4) == b"1234"
    assert read_regular(tmp_path / "link", limit_bytes=4) == b"1234"
    with pytest.raises(OSError, match="larger than the limit of 3 bytes"):
        read_regular(tmp_path / "f", limit_bytes=3)
    with pytest.raises(OSError, match="symbolic links"):
        read_regular(tmp_path / "link", limit_bytes=4, follow=False)


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")

    for path in (tmp_path / "pipe", Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match="not a regular file"):
            read_regular(path, limit_bytes=4)
