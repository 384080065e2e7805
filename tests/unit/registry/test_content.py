import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import InvalidArgumentError
from headrace.registry import copy_content, read_content


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
    return root


def test_a_lone_file_has_its_own_sha256(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_text("abc")

    digest = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert read_content(file).digest == digest


@given(
    files=st.dictionaries(
        st.text("ab", min_size=1, max_size=2), st.text("xy", max_size=3), min_size=1, max_size=4
    )
)
def test_a_copied_tree_has_the_same_digest(
    tmp_path_factory: pytest.TempPathFactory, files: dict[str, str]
) -> None:
    directory = tmp_path_factory.mktemp("t")
    source = tree(directory / "source", files)

    copied = copy_content(source, directory / "copy")
    assert copied == read_content(source) == read_content(directory / "copy")


@pytest.mark.parametrize(
    "other",
    [
        {"a": "1", "b": "3"},
        {"a": "2", "b": "1"},
        {"a": "1", "c": "2"},
        {"a": "1"},
        {"a": "1", "b": "2", "c": ""},
        {"d/a": "1", "d/b": "2"},
    ],
)
def test_a_changed_renamed_moved_or_missing_file_changes_the_digest(
    tmp_path: Path, other: dict[str, str]
) -> None:
    one = tree(tmp_path / "one", {"a": "1", "b": "2"})
    two = tree(tmp_path / "two", other)

    assert read_content(one).digest != read_content(two).digest


def test_modes_times_and_empty_directories_do_not_count(tmp_path: Path) -> None:
    one = tree(tmp_path / "one", {"a": "1"})
    two = tree(tmp_path / "two", {"a": "1"})
    (two / "empty").mkdir()
    (two / "a").chmod(0o755)
    os.utime(two / "a", (1, 1))

    assert read_content(one) == read_content(two)


def test_a_link_that_leaves_the_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("s")
    source = tree(tmp_path / "dir", {"a": "1"})
    (source / "b").symlink_to("../secret")

    with pytest.raises(InvalidArgumentError, match=r"dir/b: the link leaves the directory"):
        read_content(source)


@pytest.mark.parametrize(
    ("target", "reason"), [("nowhere", "link is broken"), ("sub", "links to directories")]
)
def test_a_link_that_is_no_file_is_refused(tmp_path: Path, target: str, reason: str) -> None:
    source = tree(tmp_path / "dir", {"sub/a": "1"})
    (source / "b").symlink_to(target)

    with pytest.raises(InvalidArgumentError, match=reason):
        read_content(source)


def test_a_pipe_is_refused(tmp_path: Path) -> None:
    source = tree(tmp_path / "dir", {"a": "1"})
    os.mkfifo(source / "pipe")

    with pytest.raises(InvalidArgumentError, match="not a regular file"):
        read_content(source)
    with pytest.raises(InvalidArgumentError, match="neither a file nor a directory"):
        read_content(source / "pipe")


def test_what_holds_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="holds no file"):
        read_content(tmp_path)
    with pytest.raises(InvalidArgumentError, match="does not exist"):
        read_content(tmp_path / "nothing")
