"""How requests that were logged, and payloads that were kept, look to a person."""

import json

import pytest

from headrace.cli.events import cells, is_about, request_line, trace_of

ENTRY = {
    "time": "2026-11-25T12:00:03.123Z",
    "code": 200,
    "cluster": "fraud~3",
    "endpoint": "fraud",
    "duration_ms": 12,
    "replica_us": 3400,
    "caller": "shop",
    "trace_id": "a" * 32,
    "method": "POST",
    "path": "/v2/models/fraud/infer",
    "flags": "-",
}


def line(**changes: object) -> str:
    return request_line(json.dumps({**ENTRY, **changes}))


def test_a_request_is_one_line_of_columns() -> None:
    assert line().split() == [
        *("12:00:03.123", "200", "fraud", "v3", "12.0", "ms", "3.4", "ms", "shop", "a" * 32),
        *("POST", "/v2/models/fraud/infer"),
    ]


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"code": 0, "flags": "DC"}, "left DC"),
        ({"grpc_status": "NotFound"}, "200 NotFound"),
        ({"grpc_status": "OK"}, "200"),
        ({"code": 503, "flags": "UH"}, "503 UH"),
    ],
)
def test_an_outcome_says_what_matters(changes: dict[str, object], shown: str) -> None:
    assert line(**changes).partition("  ")[2].startswith(f"{shown} ")


def test_what_never_reached_a_replica_has_no_version() -> None:
    assert line(cluster=None, replica_us=None).split()[2:7] == ["fraud", "-", "12.0", "ms", "-"]


def test_what_a_caller_sent_stays_on_its_line_and_off_the_terminal() -> None:
    shown = line(path="/a\n12:00:00.000  200 forged\x1b[2J")

    assert shown.isprintable()
    assert "\\n12:00" in shown


@pytest.mark.parametrize("text", ["no json\x07", "[1]", ""])
def test_other_lines_are_shown_as_they_are(text: str) -> None:
    assert request_line(text).isprintable()


def test_the_trace_is_the_gateways_or_the_callers() -> None:
    assert trace_of({"traceparent": f"00-{'b' * 32}-{'c' * 16}-01"}) == "b" * 32
    assert not trace_of({"traceparent": "nonsense"})
    assert not trace_of({})


def test_lines_of_one_endpoint_can_be_told() -> None:
    text = json.dumps(ENTRY)

    assert is_about(text, "")
    assert is_about(text, "fraud")
    assert not is_about(text, "fra")
    assert not is_about("no json", "fraud")


def test_rows_of_unlike_columns_share_a_table() -> None:
    rows: list[dict[str, object]] = [
        {"request_id": "a", "trace_id": "t", "input.x": [0.5, 1], "input.x.shape": [1, 2]},
        {"request_id": "b\n", "output.y": ["x" * 90]},
    ]

    lines, *names = cells(rows)

    assert names == ["request_id", "input.x", "output.y"]
    assert lines[0] == ["a", "[0.5, 1]", "-"]
    assert lines[1][0] == "b\\n"
    assert len(lines[1][2]) == 40
