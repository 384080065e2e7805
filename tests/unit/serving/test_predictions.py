"""What counts as a prediction, and which bucket a score is in."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Array, Datatype, ModelSignature, TensorSpec
from headrace.serving.telemetry.observation import MAX_CLASSES, PredictionCounter, bucket

FP32, INT64, BYTES, BOOL = Datatype.FP32, Datatype.INT64, Datatype.BYTES, Datatype.BOOL


Counted = tuple[str, dict[str, int], int]


def signature(
    *outputs: tuple[str, Datatype, tuple[int, ...]],
    batched: bool = True,
    labels: dict[str, tuple[str, ...]] | None = None,
) -> ModelSignature:
    specs = tuple(TensorSpec(name=n, datatype=d, shape=s) for n, d, s in outputs)
    return ModelSignature(inputs=(), outputs=specs, batched=batched, labels=labels or {})


def counted(array: Array, *, batched: bool = True, labels: tuple[str, ...] = ()) -> Counted:
    spec = signature(("y", FP32, (-1,)), batched=batched, labels={"y": labels})
    counter = PredictionCounter(spec)
    counter.count({"y": array})
    counts = counter.counts()
    return counts.kind, counts.counts, counts.skipped


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([3, 9], np.int64), ("class", {"3": 1}, 0)),
        (np.array([[3], [9]], np.int32), ("class", {"3": 1}, 0)),
        (np.array([True]), ("class", {"True": 1}, 0)),
        (np.array([b"cat", b"dog"], np.object_), ("class", {"cat": 1}, 0)),
        (np.array([[b"cat"]], np.object_), ("class", {"cat": 1}, 0)),
        (np.array([[0.1, 0.7, 0.2], [1, 0, 0]], np.float32), ("class", {"1": 1}, 0)),
        (np.array([0.3, 9], np.float32), ("score", {"0.3125": 1}, 0)),
        (np.array([[0.3]], np.float16), ("score", {"0.3125": 1}, 0)),
        (np.array([[1, 2]], np.int64), ("", {}, 1)),
        (np.zeros((1, 2, 3), np.float32), ("", {}, 1)),
        (np.zeros((0, 3), np.float32), ("", {}, 1)),
        (np.array([[b"a", b"b"]], np.object_), ("", {}, 1)),
        (np.array([1 + 2j]), ("", {}, 1)),
    ],
)
def test_the_first_row_is_a_class_or_a_score(array: Array, expected: Counted) -> None:
    assert counted(array) == expected


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([0.1, 0.7], np.float32), ("class", {"1": 1}, 0)),
        (np.array([[0.1, 0.7]], np.float32), ("class", {"1": 1}, 0)),
        (np.array(0.3, np.float64), ("score", {"0.3125": 1}, 0)),
        (np.array([7], np.int64), ("class", {"7": 1}, 0)),
        (np.array(b"cat", np.object_), ("class", {"cat": 1}, 0)),
    ],
)
def test_a_model_without_a_batch_answers_one_row(array: Array, expected: Counted) -> None:
    assert counted(array, batched=False) == expected


def test_a_class_is_called_by_its_label() -> None:
    scores = np.array([[0.1, 0.7, 0.2]], np.float32)

    assert counted(scores, labels=("cat", "dog", "eel"))[1] == {"dog": 1}
    assert counted(scores, labels=("cat", ""))[1] == {"1": 1}
    assert counted(scores, labels=("cat",))[1] == {"1": 1}


def test_a_prediction_is_a_class_by_its_name_or_a_score_as_it_is() -> None:
    labels: dict[str, tuple[str, ...]] = {"y": ("cat", "dog")}
    classes = PredictionCounter(signature(("y", FP32, (-1, 2)), labels=labels))
    scores = PredictionCounter(signature(("y", FP32, (-1,))))

    assert classes.prediction({"y": np.array([[0.1, 0.9]], np.float32)}) == "dog"
    assert scores.prediction({"y": np.array([0.3])}) == 0.3
    assert scores.prediction({"y": np.array([math.inf])}) is None
    assert scores.prediction({}) is None
    assert classes.counts().counts == {}


def test_labels_of_the_same_name_are_one_class() -> None:
    spec = signature(("y", FP32, (-1, 3)), labels={"y": ("cat", "dog", "cat")})
    counter = PredictionCounter(spec)
    for index in (0, 1, 2):
        counter.count({"y": np.eye(3, dtype=np.float32)[index : index + 1]})

    assert counter.counts().counts == {"cat": 2, "dog": 1}


def test_the_output_that_holds_one_class_a_row_is_taken_by_itself() -> None:
    scores, label = ("probabilities", FP32, (-1, 3)), ("label", INT64, (-1,))
    text, flag = ("text", BYTES, (-1, 1)), ("flag", BOOL, (-1,))

    assert PredictionCounter(signature(scores, label)).output == "label"
    assert PredictionCounter(signature(scores, text)).output == "text"
    assert PredictionCounter(signature(scores, flag)).output == "flag"
    assert PredictionCounter(signature(scores)).output == "probabilities"
    assert PredictionCounter(signature(scores, label), "probabilities").output == "probabilities"
    assert PredictionCounter(signature()).output == ""


def test_an_answer_without_the_output_is_skipped() -> None:
    counter = PredictionCounter(signature(("y", FP32, (-1,)), ("z", FP32, (-1,))), "z")

    counter.count({"y": np.zeros(1, np.float32)})

    assert counter.counts().skipped == 1


def test_classes_beyond_the_bound_are_skipped_and_known_ones_are_not() -> None:
    counter = PredictionCounter(signature(("y", INT64, (-1,))))
    for value in [*range(MAX_CLASSES + 5), 0, 1]:
        counter.count({"y": np.array([value])})

    counts = counter.counts()
    assert len(counts.counts) == MAX_CLASSES
    assert counts.skipped == 5
    assert counts.counts["0"] == 2


@given(st.lists(st.integers(0, 3), max_size=50))
def test_counts_add_up_to_the_requests(answers: list[int]) -> None:
    counter = PredictionCounter(signature(("y", INT64, (-1,))))
    for answer in answers:
        counter.count({"y": np.array([answer, 99])})

    assert counter.counts().counts == {str(n): answers.count(n) for n in set(answers)}


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_a_larger_score_is_in_no_lower_bucket(one: float, other: float) -> None:
    low, high = sorted((one, other))

    assert bucket(low) <= bucket(high)


@given(st.floats(min_value=2.0**-10, max_value=2.0**20, exclude_max=True))
def test_an_edge_is_above_its_scores_and_at_most_a_quarter_above(score: float) -> None:
    assert score < bucket(score) <= score * 1.25 or bucket(score) - score <= score / 4


@given(st.floats(min_value=2.0**-10, max_value=2.0**20, exclude_max=True))
def test_below_zero_the_edge_is_in_its_bucket(score: float) -> None:
    edge = bucket(-score)

    assert -score <= edge <= -score / 1.25
    assert bucket(edge) == edge


@pytest.mark.parametrize(
    ("score", "edge"),
    [
        (0.0, 2.0**-10),
        (-1e-9, 2.0**-10),
        (1e-9, 2.0**-10),
        (2.0**-10, 1.25 * 2.0**-10),
        (-(2.0**-10), -(2.0**-10)),
        (0.95, 1.0),
        (1.0, 1.25),
        (-0.6, -0.5),
        (1e9, math.inf),
        (-1e9, -(2.0**20)),
        (math.inf, math.inf),
        (-math.inf, -(2.0**20)),
        (math.nan, math.inf),
    ],
)
def test_scores_at_the_edges(score: float, edge: float) -> None:
    assert bucket(score) == edge


def test_there_are_few_buckets() -> None:
    scores = [sign * 2.0**power for sign in (1, -1) for power in np.arange(-12, 22, 0.01)]

    assert len({bucket(score) for score in scores}) < 256
