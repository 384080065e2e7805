"""Files below a directory that somebody else changes while it is read."""

import contextlib
import hashlib
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from headrace.core import InvalidArgumentError
from headrace.registry import copy_content, copy_files, read_content

SECRET: Final = b"hrt_what_only_the_control_plane_may_read"
SECRET_DIGEST: Final = hashlib.sha256(SECRET).hexdigest()
COPIES: Final = 2000

Copy = Callable[[Path, Path], object]


def copy_and_compare(source: Path, target: Path) -> None:
    """Copy with digests, and compare these with the bytes that were copied."""
    for file in copy_content(source, target).files:
        copied = (target / file.path).read_bytes()
        assert (file.size_bytes, file.sha256) == (len(copied), hashlib.sha256(copied).hexdigest())


def hash_only(source: Path, _target: Path) -> None:
    assert SECRET_DIGEST not in {file.sha256 for file in read_content(source).files}


@contextmanager
def swapping(entry: Path, link_to: Path) -> Iterator[None]:
    """Replace `entry` by a link and by itself again, over and over in another thread."""
    aside = entry.parent.parent / "aside"
    link, parked, ends = aside / "link", aside / "parked", threading.Event()
    aside.mkdir()

    def swap() -> None:
        while not ends.is_set():
            link.symlink_to(link_to)
            entry.rename(parked)
            link.rename(entry)
            entry.unlink()
            parked.rename(entry)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


@pytest.mark.parametrize("swapped", ["file", "directory"])
@pytest.mark.parametrize("copy", [copy_and_compare, copy_files, hash_only])
def test_a_link_swapped_in_while_a_directory_is_copied_is_never_followed(
    tmp_path: Path, copy: Copy, swapped: str
) -> None:
    outside, source = tmp_path / "outside", tmp_path / "source"
    for folder, content in ((outside, SECRET), (source / "inner", b"mine")):
        folder.mkdir(parents=True)
        (folder / "weights").write_bytes(content)
    (source / "weights").write_bytes(b"mine")
    entry, link_to = {
        "file": (source / "weights", outside / "weights"),
        "directory": (source / "inner", outside),
    }[swapped]
    target, whole = tmp_path / "target", 0

    with swapping(entry, link_to):
        for _ in range(COPIES):
            # What vanishes or leads out while it is read ends the copy; the next may be whole.
            with contextlib.suppress(InvalidArgumentError, OSError):
                copy(source, target)
                whole += 1
            for file in target.rglob("*") if target.exists() else ():
                assert file.is_dir() or file.read_bytes() != SECRET
            shutil.rmtree(target, ignore_errors=True)

    assert 0 < whole <= COPIES


@pytest.mark.parametrize(
    "link",
    ["../secret", "inner/../../secret", "/etc/hostname", "up/secret", "inner/up2/secret", "self"],
)
def test_a_link_that_leads_out_on_any_way_is_refused(tmp_path: Path, link: str) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "link").symlink_to(link)
    (source / "up").symlink_to("..")
    (source / "inner" / "up2").symlink_to("../..")
    (source / "self").symlink_to("self")

    with pytest.raises(InvalidArgumentError, match=r"leaves the directory|link is broken"):
        copy_content(source, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_links_that_stay_inside_are_copied_as_files(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "blobs").mkdir(parents=True)
    (source / "snapshots" / "1").mkdir(parents=True)
    (source / "blobs" / "abc").write_bytes(b"weights")
    (source / "snapshots" / "1" / "model").symlink_to("../../blobs/abc")
    (source / "again").symlink_to("./snapshots//1/model")

    content = copy_content(source, tmp_path / "target")

    assert [file.path for file in content.files] == ["again", "blobs/abc", "snapshots/1/model"]
    assert {file.sha256 for file in content.files} == {hashlib.sha256(b"weights").hexdigest()}


def test_a_link_that_the_caller_names_is_followed(tmp_path: Path) -> None:
    """As in a cache of Hugging Face, whose snapshots link to blobs elsewhere."""
    (tmp_path / "blob").write_bytes(b"weights")
    (tmp_path / "model").symlink_to("blob")

    assert copy_files(tmp_path / "model", tmp_path / "copy").read_bytes() == b"weights"


@pytest.mark.parametrize("kind", ["FIFO", "socket", "device"])
def test_what_is_no_file_blocks_nobody_and_is_refused(tmp_path: Path, kind: str) -> None:
    source = tmp_path / "source"
    source.mkdir()
    odd = source / "odd"
    with socket.socket(socket.AF_UNIX) as listener:
        match kind:
            case "FIFO":
                os.mkfifo(odd)
            case "socket":
                listener.bind(str(odd))
            case _:
                odd = Path("/dev/zero")
        with pytest.raises(InvalidArgumentError, match="neither a file nor a directory"):
            copy_files(odd, tmp_path / "target")
        (source / "link").symlink_to(odd.name)
        with pytest.raises(InvalidArgumentError, match=r"not a regular file|link is broken"):
            copy_files(source, tmp_path / "target")


@pytest.mark.parametrize("below", ["../outside", "link", "link/model", "inner/../../outside"])
def test_a_path_beneath_a_directory_cannot_leave_it(tmp_path: Path, below: str) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "inner", outside):
        folder.mkdir(parents=True)
        (folder / "model").write_bytes(SECRET)
    (root / "link").symlink_to("../outside")

    with pytest.raises(InvalidArgumentError, match="leaves the directory"):
        copy_files(root / below, tmp_path / "target", beneath=root)
    with pytest.raises(InvalidArgumentError, match="is outside of"):
        copy_files(outside, tmp_path / "target", beneath=root)
    assert copy_files(root / "inner", tmp_path / "target", beneath=root).is_dir()


def test_more_bytes_than_allowed_are_not_copied(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"12345")

    with pytest.raises(InvalidArgumentError, match="larger than 4 bytes"):
        copy_files(tmp_path / "a", tmp_path / "b", max_bytes=4)


def test_directories_nested_too_deeply_are_refused(tmp_path: Path) -> None:
    tmp_path.joinpath(*["d"] * 70).mkdir(parents=True)

    with pytest.raises(InvalidArgumentError, match="nested deeper than 64"):
        read_content(tmp_path)
