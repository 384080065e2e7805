"""Pushed rows are written whole, or all that is wrong with them is told."""

import math
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core import Datatype, InvalidArgumentError
from headrace.features import Feature
from headrace.features.online_writers import push_rows
from tests.unit.features.stores import MemoryStore
from tests.unit.features.tables import at, view
from tests.unit.features.test_materializing import stored

KINDS = {
    "f32": Datatype.FP32,
    "f64": Datatype.FP64,
    "i": Datatype.INT64,
    "b": Datatype.BOOL,
    "s": Datatype.BYTES,
}
VIEW = view(Path("none.parquet"), *(Feature(name=n, datatype=d) for n, d in KINDS.items()))


def row(**changes: object) -> dict[str, Any]:
    values = {"f32": 0.5, "f64": 1, "i": np.int64(3), "b": True, "s": "é"}
    return {"customer_id": 1, "event_timestamp": at(5), **values, **changes}


def told(*rows: dict[str, Any]) -> str:
    store = MemoryStore()
    with pytest.raises(InvalidArgumentError) as caught:
        push_rows(VIEW, store, rows)
    assert store.records == {}
    return str(caught.value)


def test_rows_are_written() -> None:
    store = MemoryStore()

    assert push_rows(VIEW, store, [row(), row(customer_id=2, s=b"\xff")]) == 2

    assert stored(store, VIEW, 1) == (at(5), 0.5, 1.0, 3, True, "é".encode())
    assert stored(store, VIEW, 2) == (at(5), 0.5, 1.0, 3, True, b"\xff")


def test_missing_values_nan_and_infinity_are_kept() -> None:
    store = MemoryStore()

    push_rows(VIEW, store, [row(f32=math.inf, f64=math.nan, i=None, b=None, s=None)])

    found = stored(store, VIEW)
    assert found is not None
    assert found[1] == math.inf
    assert math.isnan(found[2])  # type: ignore[arg-type]  # a float
    assert found[3:] == (None, None, None)


def test_no_rows_are_no_mistake() -> None:
    assert push_rows(VIEW, MemoryStore(), []) == 0


def test_an_older_row_is_not_written() -> None:
    store = MemoryStore()
    push_rows(VIEW, store, [row()])

    assert push_rows(VIEW, store, [row(event_timestamp=at(4))]) == 0
    assert push_rows(VIEW, store, [row(f32=0.25)]) == 1
    assert (stored(store, VIEW) or ())[1] == 0.25


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("f32", 1e39, "takes numbers in its range"),
        ("f32", True, "takes numbers"),
        ("f64", "1", "takes numbers"),
        ("f64", 10**400, "takes numbers"),
        ("i", 1.0, "64-bit integers"),
        ("i", 1 << 63, "64-bit integers"),
        ("i", True, "64-bit integers"),
        ("b", 1, "true or false"),
        ("s", 1, "text"),
        ("s", "\ud800", "text"),
        ("event_timestamp", "2026-01-01", "is not a datetime"),
        ("event_timestamp", None, "is not a datetime"),
        ("event_timestamp", datetime(2026, 1, 1), "no time zone"),  # noqa: DTZ001  # on purpose
        ("customer_id", "1", "is not a valid customer"),
        ("nobody", 1, "is not a column of the view; it has: customer_id"),
    ],
)
def test_a_wrong_value_is_told(name: str, value: object, words: str) -> None:
    said = told(row(customer_id=7), row(**{name: value}))

    assert words in said
    assert name in said
    assert "[1]" in said


def test_all_mistakes_of_all_rows_are_told_up_to_a_bound() -> None:
    said = told({"customer_id": 1}, *[row(b=1)] * 100)

    assert "rows[0]: 'event_timestamp' is missing" in said
    assert "rows[0]: 's' is missing" in said
    assert "rows[1]: 'b' is BOOL" in said
    assert said.endswith("and 86 more")
