"""Values of JSON lines, which are the same whether all lines are sound or one is not."""

import json
import math
from typing import Any, Final

import polars as pl
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from polars.testing import assert_frame_equal

from headrace.jobs.sources.json_lines import parse

TYPES: Final[dict[str, Any]] = {
    "x": pl.Float64(),
    "n": pl.Int64(),
    "ok": pl.Boolean(),
    "t": pl.String(),
    "l": pl.List(pl.Float64),
}
floats = st.floats(allow_nan=False, allow_infinity=False).map(repr) | st.sampled_from(
    ["null", "1", "-0", "1E5", "NaN", "Infinity", "-Infinity", '"NaN"', '"-Infinity"', "1e999"]
)
values = {
    "x": floats,
    "n": st.integers().map(str) | st.sampled_from(["null", "1.0", "NaN"]),
    "ok": st.sampled_from(["true", "false", "null", "1"]),
    "t": st.text(max_size=3).map(json.dumps) | st.sampled_from(["null", "5", '"NaN"']),
    "l": st.lists(floats, max_size=3).map(lambda items: f"[{','.join(items)}]") | st.just("null"),
    "other": st.sampled_from(["[1]", "{}", "NaN", '"\\ud800"', '"é"', '"\xff"', '{"x": 3}']),
}


@st.composite
def lines(draw: st.DrawFn) -> bytes:
    keys = draw(st.lists(st.sampled_from(list(values)), max_size=7))
    members = [f"{json.dumps(key)}: {draw(values[key])}" for key in keys]
    return f"{{{', '.join(members)}}}".encode(draw(st.sampled_from(["utf-8", "utf-8", "latin-1"])))


@pytest.mark.slow
@given(
    st.lists(lines(), min_size=1, max_size=4) | st.just([b'{"x":', b'1}{"x": 2}']),
    st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \n "]),
)
@example([b'{"x": 1, "x": 2}'], b"\n")
def test_a_damaged_line_changes_no_other(rows: list[bytes], end: bytes) -> None:
    frame, broken = parse(end.join(rows), TYPES)
    beside, broken_beside = parse(end.join([*rows, b"[]"]), TYPES)

    assert_frame_equal(frame, beside.head(len(rows)))
    assert broken_beside == broken | {len(rows): "is no JSON object"}


@given(st.lists(st.floats() | st.none(), min_size=1, max_size=5))
def test_floats_survive_json_lines(numbers: list[float | None]) -> None:
    data = "\n".join(json.dumps({"x": number, "l": [number]}) for number in numbers).encode()

    frame, broken = parse(data, {"x": TYPES["x"], "l": TYPES["l"]})

    assert broken == {}
    for number, x, (item,) in zip(numbers, frame["x"], frame["l"], strict=True):
        for got in (x, item):
            assert got == number or (number is not None and math.isnan(number) and math.isnan(got))


def test_the_last_of_equal_keys_counts() -> None:
    frame, broken = parse(b'{"x": 1, "x": 2.5}\n{"x": "a", "x": 3}\n{"x": 4, "x": null}', TYPES)

    assert frame["x"].to_list() == [2.5, 3.0, None]
    assert broken == {}
