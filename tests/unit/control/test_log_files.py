"""Logs: the last lines, one stream, bounded files."""

import json
from pathlib import Path

import pytest

from headrace.control.base.log_files import (
    LogFiles,
    LogFilter,
    LogFollower,
    LogLevel,
    LogLine,
    cut_large,
    last_line,
    level_of,
    merged_tail,
    render_line,
    tail,
)

NOON = 12 * 3600.0

DEEP = '{"a":' + "[" * 100_000
"""A line that a model may print; whoever reads the log goes on."""


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def texts(lines: list[LogLine]) -> list[str]:
    return [line.text for line in lines]


def test_a_tail_reads_back_over_blocks(tmp_path: Path) -> None:
    lines = [f"line {i} {'x' * 100}" for i in range(3000)]
    path = write(tmp_path / "a.log", *lines)

    assert tail(path, 2000) == lines[-2000:]
    assert tail(path, 0) == []
    assert tail(tmp_path / "absent.log", 5) == []


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("12:00:00.123 ERROR   headrace.serving.replica  cannot load: no op", "cannot load: no op"),
        ('{"time": "2026-01-01T12:00:00.000+00:00", "message": "cannot load"}', "cannot load"),
        ("{broken", "{broken"),
        ("Segmentation fault", "Segmentation fault"),
        ("x" * 1000, "x" * 500),
    ],
)
def test_the_last_line_is_told_without_time_and_level(tmp_path: Path, line: str, said: str) -> None:
    assert last_line(write(tmp_path / "a.log", "earlier", line, "", " ")) == said


def test_a_log_without_a_line_says_nothing(tmp_path: Path) -> None:
    assert last_line(write(tmp_path / "a.log", "", "")) == ""


def test_all_logs_are_merged_by_time_and_tracebacks_stay_together(tmp_path: Path) -> None:
    write(
        tmp_path / "a.log", "11:00:00.000 INFO    a  one", "Traceback", "11:59:59.000 INFO    a  4"
    )
    write(tmp_path / "b.log", '{"time": "2026-01-01T11:30:00.000Z", "message": "two"}')
    write(tmp_path / "c.log", "[2026-01-01 11:45:00.000][info] three")
    merged = merged_tail(LogFiles(directory=tmp_path), 10, now_of_day_s=NOON)

    assert [line.source for line in merged] == ["a", "a", "b", "c", "a"]
    assert texts(merged)[1] == "Traceback"


def test_a_time_later_than_now_was_yesterday(tmp_path: Path) -> None:
    write(tmp_path / "a.log", "23:00:00.000 INFO    a  yesterday")
    write(tmp_path / "b.log", "01:00:00.000 INFO    b  today")
    merged = merged_tail(LogFiles(directory=tmp_path), 1, now_of_day_s=NOON)

    assert merged == [LogLine("b", "01:00:00.000 INFO    b  today")]
    assert merged_tail(LogFiles(directory=tmp_path), 0, now_of_day_s=NOON) == []


def test_sources_are_looked_up_and_noisy_ones_seen_on_request(tmp_path: Path) -> None:
    other = write(tmp_path / "envoy.txt", "gateway line")
    noisy = write(tmp_path / "access.txt", "GET /")
    (tmp_path / "logs").mkdir()
    write(tmp_path / "logs" / "m.log", "m line")
    files = LogFiles(
        directory=tmp_path / "logs",
        others={"gateway": other, "absent": tmp_path / "none"},
        on_request={"access": noisy},
    )

    assert list(files.paths()) == ["m", "gateway"]
    assert list(files.paths("access")) == ["access"]
    assert files.paths("../envoy") == {}
    assert files.names() == ["access", "gateway", "m"]


def test_following_gives_whole_lines_as_they_come(tmp_path: Path) -> None:
    path = write(tmp_path / "a.log", "before")
    follower = LogFollower(LogFiles(directory=tmp_path))
    with path.open("a") as file:
        file.write("one\ntw")
    first = list(follower.read_new())
    with path.open("a") as file:
        file.write("o\n")
    write(tmp_path / "new.log", "fresh")
    second = list(follower.read_new())

    assert first == [LogLine("a", "one")]
    assert second == [LogLine("a", "two"), LogLine("new", "fresh")]
    assert list(follower.read_new()) == []


def test_following_survives_a_cut_and_a_line_without_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.log", "x" * 100)
    follower = LogFollower(LogFiles(directory=tmp_path))
    write(path, "after")
    cut = list(follower.read_new())
    path.write_bytes(b"y" * (3 << 20))
    parts = [*follower.read_new(), *follower.read_new()]

    assert texts(cut) == ["after"]
    assert len(parts) == 2


def test_large_logs_are_moved_aside_and_their_writers_go_on(tmp_path: Path) -> None:
    with (tmp_path / "a.log").open("ab", buffering=0) as writer:
        writer.write(b"x" * 100 + b"\n")
        write(tmp_path / "small.log", "x")
        cut = cut_large(tmp_path, limit_bytes=50)
        writer.write(b"next\n")

    assert cut == [tmp_path / "a.log"]
    assert (tmp_path / "a.log").read_text() == "next\n"
    assert (tmp_path / "a.log.1").read_text() == "x" * 100 + "\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"message": "hi", "level": "info"}', {"source": "m", "message": "hi", "level": "info"}),
        ("plain", {"source": "m", "level": "info", "message": "plain"}),
        ("{broken", {"source": "m", "level": "info", "message": "{broken"}),
        (DEEP, {"source": "m", "level": "info", "message": DEEP}),
    ],
)
def test_a_json_stream_holds_objects_only(text: str, expected: dict[str, str]) -> None:
    assert json.loads(render_line(LogLine("m", text), log_format="json")) == expected


def test_a_text_stream_names_the_source() -> None:
    assert render_line(LogLine("m", "hi"), log_format="text") == "m                | hi"


@pytest.mark.parametrize(
    ("line", "level"),
    [
        ("12:00:00.123 WARNING headrace.control  slow", LogLevel.WARNING),
        ("12:00:00.123 warning envoy.main  slow", LogLevel.WARNING),
        ("12:00:00.123 critical envoy.main  gone", LogLevel.ERROR),
        ('{"time":"2026-01-01T12:00:00","level":"error","message":"x"}', LogLevel.ERROR),
        ("Traceback (most recent call last):", None),
        ("", None),
    ],
)
def test_the_level_of_a_line_is_read_in_every_format(line: str, level: LogLevel | None) -> None:
    assert level_of(line) is level


def test_a_filter_keeps_the_lines_of_a_traceback_with_their_error(tmp_path: Path) -> None:
    noise = [f"11:00:00.{i:03} INFO    m  fine" for i in range(900)]
    error = ["11:00:01.000 ERROR   m  cannot load", "Traceback:", "  ValueError: no op"]
    write(tmp_path / "a.log", *error, *noise)
    write(tmp_path / "b.log", "11:00:02.000 WARNING m  slow")
    logs = LogFiles(directory=tmp_path)

    def lines(only: LogFilter) -> list[str]:
        return texts(merged_tail(logs, 10, now_of_day_s=NOON, only=only))

    assert lines(LogFilter(level=LogLevel.ERROR)) == error
    assert lines(LogFilter(level=LogLevel.WARNING, source="b")) == ["11:00:02.000 WARNING m  slow"]
    assert lines(LogFilter(text="valueerror")) == ["  ValueError: no op"]
    assert len(lines(LogFilter())) == 10


def test_a_follower_yields_selected_lines_only(tmp_path: Path) -> None:
    path = write(tmp_path / "a.log", "11:00:00.000 ERROR   m  before")
    follower = LogFollower(LogFiles(directory=tmp_path), only=LogFilter(level=LogLevel.ERROR))
    with path.open("a") as log:
        log.write("11:00:01.000 INFO    m  fine\n11:00:02.000 ERROR   m  bad\n  detail\n")

    assert texts(list(follower.read_new())) == ["11:00:02.000 ERROR   m  bad", "  detail"]
