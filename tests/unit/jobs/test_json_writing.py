"""JSON lines that jobs write: NaN is null, and an infinity is a text."""

import io
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.jobs.messages import FileFormat
from headrace.jobs.writers import open_writer
from headrace.protocol.values import SPELLED

floats = st.none() | st.floats(width=32) | st.sampled_from(["inf", "-inf"]).map(float)
cells = st.fixed_dictionaries(
    {
        "id": st.text(max_size=3),
        "y": floats,
        "z": st.none() | st.lists(floats, min_size=2, max_size=2),
        "v": st.none() | st.lists(st.lists(floats, max_size=2), max_size=2),
    }
)
SCHEMA = pa.schema(
    {
        "id": pa.large_string(),
        "y": pa.float32(),
        "z": pa.list_(pa.float64(), 2),
        "v": pa.large_list(pa.large_list(pa.float32())),
    }
)


def read(value: Any) -> Any:  # noqa: ANN401  # JSON
    """Return a written value, with texts as the floats that they stand for."""
    if isinstance(value, list):
        return [read(item) for item in value]
    return SPELLED.get(value, value) if value is None or isinstance(value, str) else value


def same(got: Any, expected: Any) -> bool:  # noqa: ANN401  # as above
    if isinstance(got, list) and isinstance(expected, list):
        return len(got) == len(expected) and all(map(same, got, expected))
    if expected is None:
        return bool(np.isnan(got))
    return bool(np.float32(got) == np.float32(expected) or (np.isnan(got) and np.isnan(expected)))


@given(st.lists(cells, min_size=1, max_size=5))
def test_every_float_can_be_told_from_what_is_written(rows: list[dict[str, Any]]) -> None:
    file = io.BytesIO()
    writer = open_writer(file, SCHEMA, FileFormat.JSONL, buffer_bytes=1000)
    writer.write(pa.Table.from_pylist(rows, SCHEMA))
    writer.write(pa.Table.from_pylist(rows[:1], SCHEMA))
    writer.close()

    lines = file.getvalue().split(b"\n")
    assert lines.pop() == b""
    written = [json.loads(line, parse_constant=pytest.fail) for line in lines]
    for got, row in zip(written, [*rows, rows[0]], strict=True):
        assert got["id"] == row["id"]
        for name in ("y", "z", "v"):
            assert same(read(got[name]), row[name])
