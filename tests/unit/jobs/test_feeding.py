"""Columns become the tensors that the model takes, and a row that cannot be one says why."""

from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Datatype, ModelSignature, NullPolicy
from headrace.jobs.columns import TensorWindow, feed
from headrace.jobs.messages import ColumnPlan, InputColumns
from tests.unit.jobs.parts import signature, spec


def fed(
    frame: pl.DataFrame,
    datatype: Datatype,
    *shape: int,
    nulls: NullPolicy = NullPolicy.ERROR,
    batched: bool = True,
) -> TensorWindow:
    described: ModelSignature = signature([spec("x", datatype, *shape)], [], batched=batched)
    plan = ColumnPlan(inputs=[InputColumns(input="x", columns=frame.columns)], keys={}, outputs=[])
    return feed(frame, plan, described, broken={}, nulls=nulls)


def test_scalars_beside_each_other_are_rows() -> None:
    found = fed(pl.DataFrame({"a": [1, 2], "b": [0.5, 1.5]}), Datatype.FP32, -1, 2)
    x = found.dense["x"]
    assert (x.dtype, x.flags.c_contiguous) == (np.float32, True)
    assert x.tolist() == [[1.0, 0.5], [2.0, 1.5]]
    assert found.bad == {}


@pytest.mark.parametrize(("shape", "want"), [((-1,), (2,)), ((-1, 1), (2, 1)), ((-1, -1), (2, 1))])
def test_one_scalar_has_the_shape_of_the_input(
    shape: tuple[int, ...], want: tuple[int, ...]
) -> None:
    assert fed(pl.DataFrame({"a": [1, 2]}), Datatype.INT64, *shape).dense["x"].shape == want


def test_values_that_do_not_fit_are_told_by_row() -> None:
    frame = pl.DataFrame({"a": [1, 300, None, -1]})
    found = fed(frame, Datatype.UINT8, -1)
    assert found.bad == {
        1: "column 'a': 300 does not fit UINT8",
        2: "column 'a' is null",
        3: "column 'a': -1 does not fit UINT8",
    }


def test_a_double_too_large_for_a_float_is_told_and_infinity_is_not() -> None:
    frame = pl.DataFrame({"a": [1e300, float("inf"), float("nan")]})
    found = fed(frame, Datatype.FP32, -1)
    assert found.bad == {0: "column 'a': 1e+300 does not fit FP32"}


@pytest.mark.parametrize("datatype", [Datatype.FP32, Datatype.FP64])
def test_nulls_of_floats_are_missing_values_unless_they_are_errors(datatype: Datatype) -> None:
    scalars = pl.DataFrame({"a": [1.0, None]})
    lists = pl.DataFrame({"a": [[1.0, 2.0], [None, 2.0]]})

    got = fed(scalars, datatype, -1, nulls=NullPolicy.NAN)
    assert got.bad == {}
    assert np.isnan(got.dense["x"]).tolist() == [False, True]
    got = fed(lists, datatype, -1, 2, nulls=NullPolicy.NAN)
    assert got.bad == {}
    assert np.isnan(got.dense["x"]).tolist() == [[False, False], [True, False]]
    assert fed(scalars, datatype, -1, nulls=NullPolicy.ERROR).bad.keys() == {1}
    assert fed(lists, datatype, -1, 2, nulls=NullPolicy.ERROR).bad.keys() == {1}


@pytest.mark.parametrize("nulls", NullPolicy)
def test_nulls_of_integers_are_errors(nulls: NullPolicy) -> None:
    assert fed(pl.DataFrame({"a": [1, None]}), Datatype.INT64, -1, nulls=nulls).bad.keys() == {1}
    lists = pl.DataFrame({"a": [[1, 2], [None, 2]]})
    assert fed(lists, Datatype.INT64, -1, 2, nulls=nulls).bad.keys() == {1}


def test_texts_are_bytes() -> None:
    found = fed(pl.DataFrame({"a": ["é", None, ""]}), Datatype.BYTES, -1)
    assert found.dense["x"].tolist() == ["é".encode(), b"", b""]
    assert found.bad == {1: "column 'a' is null"}


@given(
    rows=st.lists(
        st.one_of(
            st.none(), st.lists(st.one_of(st.none(), st.floats(-9, 9, width=32)), max_size=5)
        ),
        min_size=1,
        max_size=12,
    )
)
def test_lists_of_the_right_size_are_rows_and_no_other_is(rows: list[Any]) -> None:
    frame = pl.DataFrame({"a": rows}, schema={"a": pl.List(pl.Float32)})
    found = fed(frame, Datatype.FP32, -1, 3)
    for place, row in enumerate(rows):
        good = row is not None and len(row) == 3 and None not in row
        assert (place not in found.bad) == good
        if good:
            assert found.dense["x"][place].tolist() == row


@given(rows=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=5), min_size=1, max_size=12))
def test_lists_of_any_length_are_a_tensor_each(rows: list[list[int]]) -> None:
    frame = pl.DataFrame({"a": rows}, schema={"a": pl.List(pl.Int32)})
    found = fed(frame, Datatype.INT64, -1, -1)
    assert [row.tolist() for row in found.ragged["x"]] == rows
    assert {row.dtype for row in found.ragged["x"]} == {np.dtype(np.int64)}


def test_nested_lists_and_fixed_ones_are_pictures() -> None:
    picture = np.arange(12, dtype=np.uint8).reshape(2, 3, 2)
    nested = pl.DataFrame({"a": [picture.tolist()] * 2})
    fixed = pl.DataFrame(
        {"a": [picture.ravel().tolist()] * 2}, schema={"a": pl.Array(pl.Int64, 12)}
    )
    for frame in (nested, fixed):
        found = fed(frame, Datatype.UINT8, -1, 2, 3, 2)
        assert found.bad == {}
        assert found.dense["x"].tolist() == [picture.tolist()] * 2


def test_a_model_without_rows_gets_each_row_as_it_is() -> None:
    found = fed(pl.DataFrame({"a": [1.0], "b": [2.0]}), Datatype.FP32, 1, 2, batched=False)
    assert found.dense["x"].shape == (1, 2)
