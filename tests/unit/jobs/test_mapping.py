"""Columns are checked against the model before a row is read; all mistakes come at once."""

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Datatype, InvalidArgumentError, ModelSignature, TensorSpec
from headrace.jobs.mapping import MappingError, parse_keys, parse_map, plan_columns

MATRIX = ModelSignature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 3)),),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 2)),),
    batched=True,
)
TWO = ModelSignature(
    inputs=(
        TensorSpec(name="text", datatype=Datatype.BYTES, shape=(-1,)),
        TensorSpec(name="count", datatype=Datatype.INT32, shape=(-1, 1)),
    ),
    outputs=(TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, 1)),),
    batched=True,
)


def schema(**kinds: pa.DataType) -> pa.Schema:
    return pa.schema(list(kinds.items()))


def fed(signature: ModelSignature, columns: pa.Schema, *texts: str) -> dict[str, list[str]]:
    plan = plan_columns(signature, columns, mapping=parse_map(texts), keys={}, outputs=[])
    return {one.input: one.columns for one in plan.inputs}


def mistakes(
    signature: ModelSignature, columns: pa.Schema, *texts: str, keys: str = "", output: str = ""
) -> tuple[str, ...]:
    with pytest.raises(MappingError) as caught:
        plan_columns(
            signature,
            columns,
            mapping=parse_map(texts),
            keys=parse_keys([keys]) if keys else {},
            outputs=[output] if output else [],
        )
    return caught.value.mistakes


@given(st.integers(0, 50), st.integers(0, 30))
def test_a_range_is_every_name_from_its_first_to_its_last(first: int, more: int) -> None:
    columns = parse_map([f"x=f{first}..f{first + more}"])["x"]
    assert columns == [f"f{i}" for i in range(first, first + more + 1)]


def test_ranges_keep_leading_zeros_and_stand_beside_names() -> None:
    assert parse_map(["x=age,f08..f10"]) == {"x": ["age", "f08", "f09", "f10"]}


@pytest.mark.parametrize("text", ["x", "x=", "=a", "x=a,,b", "x=f9..f3", "x=f0..f99999999"])
def test_what_is_no_mapping_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgumentError, match=r"mapping|range"):
        parse_map([text])


def test_an_input_takes_the_column_of_its_name_else_numbered_ones() -> None:
    floats = pa.float32()
    assert fed(MATRIX, schema(x=pa.list_(floats))) == {"x": ["x"]}
    assert fed(MATRIX, schema(f0=floats, f1=floats, f2=floats)) == {"x": ["f0", "f1", "f2"]}
    assert fed(MATRIX, schema(x_1=floats, x_0=floats, x_2=floats)) == {"x": ["x_0", "x_1", "x_2"]}


def test_columns_are_taken_by_the_names_of_training() -> None:
    trained = ModelSignature(
        inputs=MATRIX.inputs,
        outputs=MATRIX.outputs,
        batched=True,
        columns={"x": ("spend", "age", "hour")},
    )
    columns = schema(age=pa.int64(), hour=pa.int8(), spend=pa.float64(), more=pa.string())
    assert fed(trained, columns) == {"x": ["spend", "age", "hour"]}


def test_numbered_columns_of_a_wider_table_are_not_guessed() -> None:
    floats = pa.float32()
    (told,) = mistakes(MATRIX, schema(f0=floats, f1=floats, f2=floats, f3=floats))
    assert "input 'x' (FP32 [-1, 3]) has no column" in told
    assert "--map x=" in told


def test_all_mistakes_are_told_at_once_with_what_was_meant() -> None:
    columns = schema(txt=pa.string(), count=pa.float64(), customer_id=pa.int64())
    told = mistakes(TWO, columns, "txet=txt", keys="customerid", output="z")
    assert len(told) == 5
    assert "the model has no input 'txet'; did you mean 'text'?" in told
    assert any("input 'text' (BYTES [-1]) has no column" in one for one in told)
    assert any("'count' is double, which cannot become INT32" in one for one in told)
    assert "the model has no output 'z'; there are y" in told
    assert "--keys: there is no column 'customerid'; did you mean 'customer_id'?" in told


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        (pa.list_(pa.timestamp("us")), "cannot become FP32"),
        (pa.list_(pa.float32(), 4), "takes 3 values a row, and 'x' holds 4"),
        (pa.list_(pa.string()), "cannot become FP32"),
        (pa.float32(), "takes 3 values a row, and column 'x' is one"),
    ],
)
def test_a_column_of_a_wrong_kind_is_told(kind: pa.DataType, why: str) -> None:
    (told,) = mistakes(MATRIX, schema(x=kind))
    assert why in told


def test_several_columns_have_to_be_as_many_as_the_input_takes() -> None:
    (told,) = mistakes(MATRIX, schema(a=pa.float32(), b=pa.float32()), "x=a,b")
    assert "takes 3 values a row, and 2 columns are given" in told


def test_columns_of_text_stand_for_numbers_where_nothing_has_types() -> None:
    columns = schema(a=pa.string(), b=pa.string(), c=pa.string())
    plan = plan_columns(
        MATRIX, columns, mapping={"x": ["a", "b", "c"]}, keys={}, outputs=[], has_types=False
    )
    assert plan.columns == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ("y=id", "has a column 'y' already"),
        ("error=id", "already"),
        ("id=x", "a key must be a scalar"),
    ],
)
def test_keys_are_scalars_with_names_of_their_own(keys: str, why: str) -> None:
    (told,) = mistakes(MATRIX, schema(x=pa.list_(pa.float32()), id=pa.int64()), keys=keys)
    assert why in told


def test_only_what_is_needed_is_read_and_each_once() -> None:
    columns = schema(x=pa.list_(pa.float32()), id=pa.int64(), other=pa.string())
    plan = plan_columns(MATRIX, columns, mapping={}, keys={"id": "id", "again": "id"}, outputs=[])
    assert plan.columns == ["id", "x"]


def test_a_language_model_which_has_no_tensors_is_refused() -> None:
    signature = ModelSignature(inputs=(), outputs=(), batched=True)

    with pytest.raises(MappingError, match="send its requests by `headrace batch openai`"):
        plan_columns(signature, pa.schema([("x", pa.int64())]), mapping={}, keys={}, outputs=[])
