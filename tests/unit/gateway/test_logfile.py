import json
from pathlib import Path

from headrace.core.files import size_of
from headrace.gateway.binary import last_lines, log_pattern, read_from, reason_in, truncate

TEXT = """01:04:45.920 info envoy.main  starting
01:04:46.000 warning envoy.config  delta config for Cluster rejected: unknown field x
01:04:46.000 warning envoy.config  delta config for Cluster rejected: unknown field x
01:04:46.100 info envoy.main  rejected, but only informally
"""


def test_the_reason_is_what_envoy_warned_of_once() -> None:
    assert reason_in(TEXT) == "delta config for Cluster rejected: unknown field x"


def test_the_reason_is_found_in_a_json_log_too() -> None:
    line = json.dumps({"level": "critical", "message": "cannot bind '127.0.0.1:80'"})

    assert reason_in(f'{line}\n{{"level": "warn') == "cannot bind '127.0.0.1:80'"


def test_a_log_without_warnings_has_no_reason() -> None:
    assert reason_in("01:04:45.920 info envoy.main  starting\n\n") == ""


def test_the_last_lines_stand_in_one() -> None:
    assert last_lines("a\nb\nc\n", 2) == "b | c"


def test_a_log_is_read_from_where_it_ended_before(tmp_path: Path) -> None:
    log = tmp_path / "envoy.log"
    assert (size_of(log), read_from(log, 0)) == (0, "")
    log.write_text("old\nnew\n")

    assert read_from(log, 4) == "new\n"


def test_a_log_that_grew_too_large_moves_to_its_predecessor(tmp_path: Path) -> None:
    log = tmp_path / "envoy.log"
    with log.open("a") as writer:
        writer.write("x" * 100)
        writer.flush()
        assert not truncate(log, max_bytes=100)
        assert truncate(log, max_bytes=99)
        writer.write("later")
        writer.flush()

    assert log.read_text() == "later"
    assert (tmp_path / "envoy.log.1").read_text() == "x" * 100


def test_each_log_format_has_its_pattern() -> None:
    assert json.loads(log_pattern("json"))["message"] == "%j"
    assert "%_" in log_pattern("text")
