"""What becomes of an earlier export in the same folder."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.cli.export.helm import RECORD, plan, write_over

PATHS = st.sampled_from(["a", "b/c", "b/d", "e"])
FILES = st.dictionaries(PATHS, st.sampled_from(["1", "2", "3"]))


def there(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != RECORD
    }


@given(recorded=FILES, found=FILES, files=FILES)
def test_nothing_is_lost_but_what_an_export_wrote_and_nobody_changed(
    recorded: dict[str, str], found: dict[str, str], files: dict[str, str]
) -> None:
    done = plan(recorded, found, files)

    lost = {*done.removed, *(files.keys() & found.keys())} - set(done.moved)
    assert all(found[path] in (recorded.get(path), files.get(path)) for path in lost)
    assert set(done.removed).isdisjoint(files)
    assert {*done.removed, *done.edited} == (recorded.keys() - files.keys()) & found.keys()


@given(before=FILES, after=FILES)
def test_an_export_over_another_leaves_what_it_would_have_made_alone(
    before: dict[str, str], after: dict[str, str]
) -> None:
    done = plan(before, before, after)

    assert not done.edited
    assert not done.moved
    assert set(done.removed) == before.keys() - after.keys()


def test_a_file_that_is_no_more_goes_with_its_empty_folder(tmp_path: Path) -> None:
    assert write_over(tmp_path, {"a": b"1", "b/c/d": b"2"}) == []

    notes = write_over(tmp_path, {"a": b"3"})

    assert there(tmp_path) == {"a": "3"}
    assert not (tmp_path / "b").exists()
    assert notes == ["removed, not part of this export: b/c/d"]


def test_what_a_person_changed_or_added_stays_and_is_named(tmp_path: Path) -> None:
    write_over(tmp_path, {"values": b"1", "templates/old": b"2"})
    (tmp_path / "templates" / "old").write_text("mine")
    (tmp_path / "templates" / "own").write_text("mine too")

    for round_, values in enumerate(("edited", "again")):
        (tmp_path / "values").write_text(values)
        notes = write_over(tmp_path, {"values": f"new {round_}".encode()})

        assert "values was not written by an export" in notes[0]
        assert ("templates/old is not part of this export" in notes[-1]) is (round_ == 0)
    assert there(tmp_path) == {
        "values": "new 1",
        "values.orig": "edited",
        "values.2.orig": "again",
        "templates/old": "mine",
        "templates/own": "mine too",
    }


def test_without_a_record_nothing_is_removed_and_unknown_templates_are_named(
    tmp_path: Path,
) -> None:
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "older").write_text("1")
    (tmp_path / "a").write_text("1")

    first = write_over(tmp_path, {"a": b"2"})
    second = write_over(tmp_path, {"a": b"2"})

    assert len(first) == 2
    assert "templates/older" in first[1]
    assert second == []
    assert there(tmp_path) == {"a": "2", "a.orig": "1", "templates/older": "1"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": []}', '{"files": {"a": 1}}', "\0"])
def test_a_damaged_record_is_none(tmp_path: Path, text: str) -> None:
    write_over(tmp_path, {"a": b"1", "b": b"2"})
    (tmp_path / RECORD).write_text(text)

    write_over(tmp_path, {"a": b"1"})

    assert there(tmp_path) == {"a": "1", "b": "2"}
    assert list(json.loads((tmp_path / RECORD).read_text())["files"]) == ["a"]


def test_a_record_leads_to_nothing_outside_the_folder(tmp_path: Path) -> None:
    folder, outside = tmp_path / "chart", tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("2")
    write_over(folder, {"a": b"2"})
    digest = json.loads((folder / RECORD).read_text())["files"]["a"]
    (folder / "link").symlink_to(outside)
    paths = ["../outside/file", str(outside / "file"), "link/file", "b/../../outside/file", "", "."]
    (folder / RECORD).write_text(json.dumps({"files": dict.fromkeys(paths, digest)}))

    assert write_over(folder, {"a": b"2"}) == []

    assert (outside / "file").read_text() == "2"
