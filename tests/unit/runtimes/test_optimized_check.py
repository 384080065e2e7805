"""What counts as an answer that differs?"""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import (
    Array,
    Datatype,
    ModelSignature,
    RuntimeFailedError,
    Tensors,
    TensorSpec,
)
from headrace.runtimes.optimized.file import VerificationRequests
from headrace.runtimes.optimized.runtime import repeat_request


class Recorded:
    """Gives the answers that it was made with, one after the other; None fails."""

    concurrent = False

    def __init__(self, answers: Sequence[Array | None], *, batched: bool = True) -> None:
        self.answers = list(answers)
        spec = TensorSpec(name="y", datatype=Datatype.FP32, shape=(-1, -1))
        self.signature = ModelSignature(inputs=(), outputs=(spec,), batched=batched)

    def run(self, _inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        assert outputs == ("y",)
        answer = self.answers.pop(0)
        if answer is None:
            raise RuntimeFailedError("the model failed: out of luck")
        return {"y": answer}

    def close(self) -> None:
        pass


def compared(
    want: Sequence[Array],
    got: Sequence[Array | None],
    *,
    tolerance: float = 0.1,
    max_changed_ratio: float = 0.0,
    batched: bool = True,
) -> str:
    check = VerificationRequests(path="", tolerance=tolerance, max_changed_ratio=max_changed_ratio)
    asked: list[tuple[Tensors, Tensors]] = [({}, {"y": array}) for array in want]
    return repeat_request(Recorded(got, batched=batched), asked, check)


def scores(*rows: Sequence[float]) -> Array:
    return np.array(rows, np.float32)


def text(*items: bytes) -> Array:
    array = np.empty(len(items), np.object_)
    array[:] = items
    return array


def test_equal_answers_are_fine() -> None:
    one = scores([1, math.nan], [math.inf, -math.inf])

    assert compared([one], [one.copy()]) == ""


def test_what_is_off_is_measured_by_the_outputs_largest_value() -> None:
    want = [scores([1, 0]), scores([-10, 0])]
    got = [scores([1.5, 0]), scores([-10, 0])]

    assert not compared(want, got)
    assert compared(want, got, tolerance=0.04) == (
        "1 of 2 answers differ, by up to 0.05 of the largest value"
    )


def test_one_row_that_is_far_is_one_too_many() -> None:
    want = scores(*[[1, 0]] * 50)
    got = want.copy()
    got[17, 0] = 2

    problem = compared([want], [got], max_changed_ratio=1.0)
    assert problem.startswith("1 of 50 answers differ, by up to 1 of")


def test_a_few_classes_may_tip_over() -> None:
    want = scores(*[[1, 1.01]] * 10)
    got = want.copy()
    got[3] = [1.01, 1]

    assert not compared([want], [got], max_changed_ratio=0.1)
    assert compared([want], [got], max_changed_ratio=0.09) == "1 of 10 answers differ"


@pytest.mark.parametrize(
    ("want", "got"),
    [
        (np.array([1, 2, 3]), np.array([1, 2, 4])),
        (np.array([True, False, True]), np.array([True, False, False])),
        (text(b"a", b"b", b"c"), text(b"a", b"b", b"")),
    ],
)
def test_what_is_no_float_is_equal_or_changed(want: Array, got: Array) -> None:
    assert compared([want], [got]) == "1 of 3 answers differ"
    assert not compared([want], [want.copy()])
    assert not compared([want], [got], max_changed_ratio=0.34)


@pytest.mark.parametrize(
    "got",
    [
        scores([1, math.nan]),
        scores([1, math.inf]),
        scores([1, 2, 3]),
        scores([1], [2]),
        np.array([[1, 2]], np.float64),
    ],
)
def test_what_cannot_be_compared_is_far(got: Array) -> None:
    problem = compared([scores([1, 2])], [got], tolerance=1.0, max_changed_ratio=1.0)

    assert problem == "1 of 1 answers differ, by up to inf of the largest value"


def test_a_row_that_differs_in_both_ways_is_one() -> None:
    problem = compared([scores([0, 1])], [scores([1, 0])])

    assert problem == "1 of 1 answers differ, by up to 1 of the largest value"


def test_a_request_that_fails_is_told() -> None:
    problem = compared([scores([1, 2])] * 2, [scores([1, 2]), None])

    assert (
        problem
        == "request 1, which it answered at verification, fails: the model failed: out of luck"
    )


def test_answers_of_a_model_without_a_batch_are_one_row_each() -> None:
    want = np.ones((3, 2), np.float32)
    got = want.copy()
    got[1, 1] = 9

    problem = compared([want, want], [got, want], batched=False)
    assert problem == "1 of 2 answers differ, by up to 8 of the largest value"


def test_answers_without_a_value_are_alike() -> None:
    for shape in ((2, 0), (2, 0, 3)):
        empty = np.zeros(shape, np.float32)
        assert not compared([empty], [empty.copy()])
    nothing = np.full((2, 2), math.nan, np.float32)
    assert not compared([nothing], [nothing.copy()])


@given(
    st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=20),
    st.just(0.0) | st.floats(1e-12, 1),  # below, the sum rounds beyond the tolerance
    st.integers(0, 2**32 - 1),
)
def test_noise_within_the_tolerance_passes_and_beyond_it_fails(
    values: list[float], tolerance: float, seed: int
) -> None:
    want = np.array(values, np.float64)[:, np.newaxis] + 1.0
    scale = np.abs(want).max()
    noise = np.random.default_rng(seed).uniform(-1, 1, want.shape)

    assert not compared([want], [want + 0.99 * tolerance * scale * noise], tolerance=tolerance)
    beyond = want + np.sign(noise) * scale * (tolerance + 0.01)
    problem = compared([want], [beyond], tolerance=tolerance)
    assert problem.startswith(f"{len(values)} of {len(values)} answers differ")
