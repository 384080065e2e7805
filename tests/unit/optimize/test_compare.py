"""Differences are told as they are, and what is rounding is not called one."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from headrace.core import Array, Datatype, ModelSignature, TensorSpec
from headrace.optimize import Comparison, DifferenceLimits, compare
from headrace.optimize.compare import worst

BATCHED = ModelSignature(
    inputs=(TensorSpec(name="x", datatype=Datatype.FP32, shape=(-1, 2)),),
    outputs=(TensorSpec(name="p", datatype=Datatype.FP32, shape=(-1, 2)),),
    batched=True,
)


def of(want: Array, got: Array, tolerance: float = 1e-4) -> Comparison:
    return compare(BATCHED, {"p": want}, {"p": got}, inputs="rows", tolerance=tolerance)


@given(
    arrays.arrays(
        np.float64,
        st.tuples(st.integers(1, 8), st.integers(1, 3)),
        elements=st.floats(allow_nan=True, allow_infinity=True),
    )
)
def test_equal_answers_differ_by_nothing(values: Array) -> None:
    found = of(values, values.copy(), tolerance=0.0)

    assert (found.largest_absolute, found.largest_relative, found.beyond_rows) == (0.0, 0.0, 0)
    assert found.problem(DifferenceLimits(tolerance=0.0, max_changed_ratio=0.0)) == ""


@given(
    arrays.arrays(np.float64, (4, 2), elements=st.floats(-1e6, 1e6)),
    st.integers(0, 3),
    st.integers(0, 1),
)
def test_one_answer_that_is_no_number_is_never_overlooked(
    values: Array, row: int, column: int
) -> None:
    got = values.copy()
    got[row, column] = math.nan

    found = of(values, got)

    assert found.largest_absolute == math.inf
    assert found.beyond_rows == 1
    assert "differs by up to inf" in found.problem(
        DifferenceLimits(tolerance=1e9, max_changed_ratio=1.0)
    )


def test_a_relative_difference_of_a_tiny_value_is_one_of_the_usual_value() -> None:
    want = np.array([[1e-9], [0.5], [0.5]])
    got = np.array([[2e-9], [0.5], [0.5]])

    found = of(want, got)

    assert found.largest_relative == pytest.approx(2e-9)
    assert found.largest_absolute == pytest.approx(1e-9)


def test_rows_with_another_class_are_counted_once() -> None:
    want = {"label": np.array([1, 2, 3, 4]), "p": np.eye(4)}
    got = {"label": np.array([1, 2, 3, 0]), "p": np.eye(4)}

    found = compare(BATCHED, want, got, inputs="4 rows", tolerance=1e-4)

    assert (found.changed_rows, found.changed_ratio) == (1, 0.25)
    assert found.problem(DifferenceLimits(tolerance=1e-4, max_changed_ratio=0.25)) == ""
    problem = found.problem(DifferenceLimits(tolerance=1e-4, max_changed_ratio=0.2))
    assert problem == "on 4 rows, 1 of 4 rows (25.00%) get another class; the limit is 20.00%"


def test_another_one_of_classes_that_tie_is_no_change() -> None:
    """As a forest of 20 trees whose votes are even: rounding decides."""
    want = {"label": np.array([0, 0, 1]), "p": np.array([[0.5, 0.5], [0.6, 0.4], [0.5, 0.5]])}
    got = {
        "label": np.array([1, 1, 1]),
        "p": np.array([[0.49999997, 0.50000003], [0.59, 0.61], [0.5, 0.5]]),
    }

    found = compare(BATCHED, want, got, inputs="3 rows", tolerance=1e-4)

    assert found.changed_rows == 1  # where one class is likelier


def test_a_class_that_ties_with_none_is_a_change_beside_two_that_tie() -> None:
    want = {"label": np.array([0, 0]), "p": np.array([[0.4, 0.4, 0.2], [1.0, 0.0, 0.0]])}
    got = {"label": np.array([2, 0]), "p": np.array([[0.2, 0.2, 0.6], [1.0, 0.0, 0.0]])}

    assert compare(BATCHED, want, got, inputs="2 rows", tolerance=1e-4).changed_rows == 1


def test_without_a_label_the_likeliest_column_is_the_class() -> None:
    want = np.array([[0.4, 0.6], [0.9, 0.1]])
    got = np.array([[0.6, 0.4], [0.9, 0.1]])

    assert of(want, got).changed_rows == 1


def test_amounts_of_several_targets_are_no_classes() -> None:
    want = {"prediction": np.array([[0.4, 0.6], [0.9, 0.1]])}
    got = {"prediction": np.array([[0.6, 0.4], [0.9, 0.1]])}

    found = compare(BATCHED, want, got, inputs="rows", tolerance=1e-4)

    assert (found.changed_rows, found.beyond_rows) == (0, 1)


def test_an_answer_of_another_shape_is_infinitely_far_away() -> None:
    found = of(np.ones((3, 2)), np.ones((3, 1)))

    assert found.largest_relative == math.inf
    assert found.beyond_rows == 3


def test_comparisons_add_up_to_one() -> None:
    first = of(np.ones((3, 1)), np.full((3, 1), 1.5))
    second = of(np.ones((2, 1)), np.ones((2, 1)))

    together = worst([second, first])

    assert (together.rows, together.beyond_rows, together.largest_absolute) == (5, 3, 0.5)
    assert together.output == "p"
