"""MLflow's scoring protocol: which inputs the data frames and tensors of a request become."""

import csv
import io
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Datatype, InvalidArgumentError, ModelSignature, TensorSpec
from headrace.core.predictions import (
    PredictionForm,
    PredictionLayout,
    layout_of,
    parse_csv,
    parse_inputs,
)


def _signature(*inputs: TensorSpec, columns: tuple[str, ...] = ()) -> ModelSignature:
    output = TensorSpec(name="prediction", datatype=Datatype.FP64, shape=(-1,))
    names = {inputs[0].name: columns} if columns else {}
    return ModelSignature(inputs=inputs, outputs=(output,), batched=True, columns=names)


def _column(name: str, datatype: Datatype = Datatype.FP64) -> TensorSpec:
    return TensorSpec(name=name, datatype=datatype, shape=(-1,))


MATRIX = TensorSpec(name="input", datatype=Datatype.FP32, shape=(-1, 2))
TABLE = _signature(_column("a"), _column("b", Datatype.INT64), _column("c", Datatype.BYTES))
ROWS = {"a": [1.5, None], "b": [1, 2], "c": ["x", ""]}


def _parsed(document: object, signature: ModelSignature = TABLE) -> dict[str, Any]:
    return dict(parse_inputs(document, signature, layout_of(signature)).values)


@pytest.mark.parametrize(
    "document",
    [
        {
            "dataframe_split": {
                "columns": ["c", "a", "b"],
                "data": [["x", 1.5, 1], [None, None, 2.0]],
            }
        },
        {"dataframe_records": [{"a": 1.5, "b": 1, "c": "x"}, {"a": None, "b": 2, "c": None}]},
        {"instances": [{"a": 1.5, "b": 1, "c": "x"}, {"b": 2, "c": ""}]},
        {"inputs": {"a": [1.5, None], "b": [1, 2], "c": ["x", None], "unused": [0, 0]}},
    ],
)
def test_each_format_gives_the_same_inputs(document: object) -> None:
    assert _parsed(document) == ROWS


def test_csv_gives_the_same_inputs_as_json() -> None:
    text = ",a,b,c\n0,1.5,1,x\n1,NaN,2,\n"
    parsed = parse_csv(text, TABLE, layout_of(TABLE))
    assert dict(parsed.values) == ROWS
    assert parsed.is_table


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([1, 2], "must be a JSON object"),
        ({}, "it holds no field"),
        ({"data": 1}, "it holds 'data'"),
        ({"inputs": [], "instances": []}, "must hold one of"),
        ({"dataframe_split": {"columns": ["a"]}}, "with 'data'"),
        ({"dataframe_split": {"data": [], "more": 1}}, "with 'data'"),
        ({"dataframe_split": {"columns": ["a"], "data": [[1, 2]]}}, "another number of values"),
        ({"dataframe_split": {"data": [[1, 1, "x"]]}}, "has no 'columns'"),
        ({"dataframe_split": {"columns": ["a", "a"], "data": [[1, 2]]}}, "the same name"),
        ({"dataframe_split": {"columns": ["a"], "data": [[1]]}}, "lacks the columns 'b', 'c'"),
        ({"dataframe_records": {"a": 1}}, "list of objects"),
        ({"instances": {"a": 1}}, "must be a list"),
        ({"instances": [[1, 2, "x"]]}, "several inputs"),
        ({"inputs": {"a": [1]}, "params": {"n": 1}}, "'params' of a request"),
    ],
)
def test_document_that_is_not_a_request_is_refused_with_the_reason(
    document: object, reason: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        _parsed(document)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no rows"),
        ("a,b,c\n1,2\n", "another number of values"),
        ('a,b,c\n"1,2,3\n', "is not CSV"),
        ("a,b,c\n1,x,y\n", "column 'b' has the value 'x'"),
        ("a,b,c\n1,,y\n", "column 'b' has the value ''"),
    ],
)
def test_invalid_csv_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(InvalidArgumentError, match=reason):
        parse_csv(text, TABLE, layout_of(TABLE))


def test_columns_become_the_rows_of_a_matrix_in_the_order_of_training() -> None:
    signature = _signature(MATRIX, columns=("width", "height"))
    frame = {"dataframe_split": {"columns": ["height", "width", "id"], "data": [[1, 2, 3]]}}
    assert _parsed(frame, signature) == {"input": [[2, 1]]}
    with pytest.raises(InvalidArgumentError, match="lacks the columns 'width'"):
        _parsed({"dataframe_records": [{"height": 1}]}, signature)


def test_columns_of_an_unnamed_matrix_stay_in_their_order() -> None:
    signature = _signature(MATRIX)
    assert _parsed({"dataframe_split": {"data": [[1, 2], [3, 4]]}}, signature) == {
        "input": [[1, 2], [3, 4]]
    }
    assert _parsed({"dataframe_records": [{"x": 1, "y": 2}]}, signature) == {"input": [[1, 2]]}
    with pytest.raises(InvalidArgumentError, match="has 1 columns, but the model takes 2"):
        _parsed({"dataframe_records": [{"x": 1}]}, signature)


def test_optional_columns_may_be_absent() -> None:
    optional = PredictionLayout(
        outputs=("prediction",),
        of_table=PredictionForm.VALUES,
        of_tensors=PredictionForm.VALUES,
        optional=frozenset({"a", "c"}),
    )
    values = parse_inputs({"dataframe_records": [{"b": 1}]}, TABLE, optional).values
    assert values == {"a": [None], "b": [1], "c": [""]}


def test_prediction_or_label_is_what_a_model_of_another_origin_answers() -> None:
    names = ("label", "probabilities")
    outputs = tuple(TensorSpec(name=n, datatype=Datatype.FP32, shape=(-1,)) for n in names)
    layout = layout_of(ModelSignature(inputs=(MATRIX,), outputs=outputs, batched=True))
    assert (layout.outputs, layout.of_table) == (("label",), PredictionForm.VALUES)


@given(
    st.lists(
        st.tuples(
            st.floats(allow_nan=False, allow_infinity=False) | st.none(),
            st.integers(-(2**31), 2**31),
            st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=5).filter(
                lambda text: (
                    text.strip() == text
                    and text.lower() not in {"na", "nan", "null", "none", "n/a"}
                )
            ),
        ),
        min_size=1,
    )
)
def test_csv_and_records_of_the_same_rows_are_equal(rows: list[tuple[Any, int, str]]) -> None:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow("abc")
    writer.writerows(rows)
    values = parse_csv(file.getvalue(), TABLE, layout_of(TABLE)).values
    records = [dict(zip("abc", row, strict=True)) for row in rows]
    expected = _parsed({"dataframe_records": records})
    assert values["b"] == expected["b"]
    assert values["c"] == expected["c"]
    for value, number in zip(values["a"], expected["a"], strict=True):
        assert value == number or (value is not None and math.isclose(value, number))
