"""How many examples are worth their time, and what a library's failure is called."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import UnsupportedModelError
from headrace.optimize.candidate import CannotBuildError
from headrace.optimize.recipes.building import (
    MAX_EXAMPLES,
    how_many,
    library_errors,
    missing_package,
    versions,
)


def test_a_slow_model_sees_fewer_examples() -> None:
    assert how_many(0.125, runs=6, left_s=60) == 40


@given(
    run_s=st.floats(0, 1e3),
    runs=st.floats(1, 10),
    left_s=st.floats(-1e3, math.inf, allow_nan=False),
)
def test_there_are_always_some_examples_and_never_too_many(
    run_s: float, runs: float, left_s: float
) -> None:
    assert 16 <= how_many(run_s, runs=runs, left_s=left_s) <= MAX_EXAMPLES


def test_a_failure_is_one_line_with_its_kind() -> None:
    with (
        pytest.raises(CannotBuildError, match=r"^NNCF failed: KeyError: 'a b'$"),
        library_errors("NNCF"),
    ):
        raise KeyError("a b")


def test_a_failure_without_a_kind_is_told_without_places_in_the_source() -> None:
    text = "Exception from src/core/a.cpp:84:\nCheck 'false' failed at src/b.cpp:12:\nno Conv-16"

    with (
        pytest.raises(CannotBuildError, match=r"^OpenVINO failed: no Conv-16$"),
        library_errors("OpenVINO"),
    ):
        raise RuntimeError(text)


def test_our_own_refusals_keep_their_words() -> None:
    with (
        pytest.raises(CannotBuildError, match=r"^model.onnx: is empty$"),
        library_errors("reading it"),
    ):
        raise UnsupportedModelError("model.onnx: is empty")


def test_a_missing_package_says_how_to_get_it() -> None:
    assert missing_package("json", "headrace") == ""
    assert missing_package("json", "not_there_at_all") == (
        "needs the package 'not_there_at_all': pip install 'headrace[optimize]'"
    )
    assert versions("not_there_at_all") == {"not_there_at_all": "unknown"}
