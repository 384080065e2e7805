"""Reading the log of arms: by position, through renamed files and cut lines."""

import json
from pathlib import Path

import pytest

from headrace.gateway import RoutedRequest, read_arms
from headrace.gateway.access_log import rotate_arms


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "arms.log"


def append(path: Path, *ids: str, end: str = "\n") -> None:
    with path.open("a") as file:
        for name in ids:
            line = {"answer_id": name, "unit": None, "split_id": "r1", "weights": "1=50 2=50"}
            file.write(json.dumps({**line, "cluster": "m~1"}) + end)


def ids(requests: list[RoutedRequest]) -> list[str]:
    return [request.answer_id for request in requests]


def test_each_line_is_read_once_and_an_incomplete_one_when_it_is_complete(log: Path) -> None:
    assert read_arms(log, (0, 0)) == ([], (0, 0))
    append(log, "a", "b")
    append(log, "c", end="")
    first, position = read_arms(log, (0, 0))
    append(log, "", end="\n")

    assert ids(first) == ["a", "b"]
    assert read_arms(log, (0, 0))[1] > position
    assert read_arms(log, position)[0] == []  # two lines in one, as a killed Envoy leaves them
    append(log, "d")
    assert ids(read_arms(log, position)[0]) == ["d"]


def test_a_renamed_file_is_read_to_its_end_before_the_new_one(log: Path) -> None:
    append(log, "a")
    _, position = read_arms(log, (0, 0))
    append(log, "b")
    rotate_arms(log)
    second, position = read_arms(log, position)
    log.touch()
    append(log.with_name("arms.log.1"), "c")  # Envoy has not opened the new file yet
    third, position = read_arms(log, position)
    append(log, "d")
    append(log.with_name("arms.log.1"), "last")
    fourth, position = read_arms(log, position)
    fifth, position = read_arms(log, position)

    assert [ids(part) for part in (second, third, fourth, fifth)] == [["b"], ["c"], ["last"], ["d"]]
    assert read_arms(log, position) == ([], position)


def test_a_reader_whose_file_is_gone_begins_with_the_oldest_one(log: Path) -> None:
    append(log, "a")
    rotate_arms(log)
    append(log, "b")

    for gone in ((0, 10_000), (9, 10_000)):
        first, position = read_arms(log, gone)
        second, _ = read_arms(log, position)

        assert ids(first) + ids(second) == ["a", "b"]


def test_lines_are_removed_by_the_second_rotation_though_no_more_come(log: Path) -> None:
    read, position = list[str](), (0, 0)
    removed = []
    for name in ("a", "", "", "b", "c", "", "d", "e"):
        log.touch()
        if name:
            append(log, name)
        removed.append(rotate_arms(log))
        requests, position = read_arms(log, position)
        read += ids(requests)
        files = sorted(log.parent.iterdir())
        assert sum(file.stat().st_size > 0 for file in files) == (name != "")
        assert len(files) <= 2

    assert read == ["a", "b", "c", "d", "e"]
    assert removed == [True, True, False, True, True, True, True, True]


def test_a_long_file_is_read_in_parts(log: Path) -> None:
    names = [f"{i:0250}" for i in range(20_000)]
    append(log, *names)

    read, position, parts = list[str](), (0, 0), 0
    while True:
        requests, position = read_arms(log, position)
        if not requests:
            break
        read += ids(requests)
        parts += 1

    assert read == names
    assert parts == 2
