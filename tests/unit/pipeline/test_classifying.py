"""Numbers become names of classes; what is no number becomes no class."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from headrace.core import Array, Datatype, RuntimeFailedError, TensorSpec, UnsupportedModelError
from headrace.pipeline import load_pipeline
from headrace.pipeline.classify import ClassifyStep
from headrace.pipeline.spec import ClassifySpec
from headrace.testing import models
from tests.unit.pipeline.elements import one_by_one

Write = Callable[..., Path]

LABELS = ("cat", "dog", "bird")


def step(
    labels: tuple[str, ...] = LABELS,
    *,
    classes: int = -1,
    datatype: str = "FP32",
    **settings: object,
) -> ClassifyStep:
    spec = ClassifySpec.model_validate({"kind": "classify", "labels": labels, **settings})
    shape = (-1,) if classes == 0 else (-1, classes)
    return ClassifyStep(
        spec, labels, TensorSpec(name="logits", datatype=Datatype(datatype), shape=shape)
    )


def softmax(logits: Array) -> Array:
    """Slow and obvious, in doubles."""
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    found: Array = powers / powers.sum(axis=1, keepdims=True)
    return found


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.just(3)),
        elements=st.floats(-200, 200, width=32),
    )
)
def test_the_largest_wins_with_its_softmax(logits: Array) -> None:
    answer = step().run({"logits": logits})

    want = softmax(logits)
    assert answer["label"].tolist() == [LABELS[i].encode() for i in logits.argmax(axis=1)]
    np.testing.assert_allclose(answer["score"], want.max(axis=1), rtol=2e-6)
    assert answer["score"].dtype == np.float32


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
@given(arrays(np.float32, (5, 3), elements=st.floats(-(2.0**126), 2.0**126, width=32)))
def test_rows_answer_together_as_alone(activation: str, logits: Array) -> None:
    made = step(activation=activation, top_k=2, threshold=0.4)

    together = made.run({"logits": logits})

    alone = one_by_one(made, {"logits": logits})
    assert np.array_equal(together["scores"], alone["scores"])
    assert together["labels"].tolist() == alone["labels"].tolist()


@given(st.integers(1, 40), st.integers(0, 99))
def test_the_best_k_come_best_first_and_of_equals_the_first_listed(k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = tuple(f"c{i}" for i in range(40))
    values = rng.integers(0, 6, (4, 40)).astype(np.float32) / 8

    answer = step(labels, activation="none", top_k=k).run({"logits": values})

    for row, scores, names in zip(values, answer["scores"], answer["labels"], strict=True):
        order = sorted(range(40), key=lambda i: (-row[i], i))[:k]
        assert names.tolist() == [labels[i].encode() for i in order]
        assert scores.tolist() == [row[i] for i in order]


def test_numbers_of_any_size_give_probabilities() -> None:
    most = np.finfo(np.float32).max
    logits = np.array([[most, -most, 0], [-np.inf, 1, 2], [np.inf, 0, 1]], np.float32)

    answer = step(top_k=3).run({"logits": logits})

    np.testing.assert_allclose(answer["scores"].sum(axis=1), 1, rtol=1e-6)
    assert answer["labels"][:, 0].tolist() == [b"cat", b"bird", b"cat"]
    sure = step(activation="sigmoid").run({"logits": np.array([[-1e4, 0, 1e4]], np.float32)})
    assert sure["score"].tolist() == [1.0]


def test_all_that_a_mask_hides_is_equally_likely() -> None:
    hidden = np.full((1, 3), -np.inf, np.float32)

    np.testing.assert_allclose(step(top_k=3).run({"logits": hidden})["scores"], 1 / 3)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "none"])
def test_a_row_that_is_no_number_fails_with_its_place(activation: str) -> None:
    logits = np.array([[0, 1, 2], [0, np.nan, 0]], np.float32)

    with pytest.raises(RuntimeFailedError, match=r"returned NaN for row 1"):
        step(activation=activation).run({"logits": logits})


@pytest.mark.parametrize("datatype", ["FP16", "FP32", "FP64"])
def test_floats_of_each_width_are_taken(datatype: str) -> None:
    logits = np.array([[0, 1, 2]], Datatype(datatype).dtype)

    answer = step(datatype=datatype).run({"logits": logits})

    assert answer["score"].dtype == np.float32
    assert answer["score"][0] == pytest.approx(softmax(logits).max())


def test_below_the_threshold_stands_the_other_label() -> None:
    values = np.array([[0.5, 0.3, 0.2], [0.4, 0.35, 0.25]], np.float32)

    one = step(activation="none", threshold=0.5, other_label="?").run({"logits": values})
    many = step(activation="none", threshold=0.3, top_k=3).run({"logits": values})

    assert one["label"].tolist() == [b"cat", b"?"]
    assert one["score"].tolist() == [np.float32(0.5), np.float32(0.4)]
    assert many["labels"][0].tolist() == [b"cat", b"dog", b"other"]


@pytest.mark.parametrize("classes", [0, 1])
def test_one_number_and_two_labels_are_both_sides(classes: int) -> None:
    logits = np.array([2.0, -3.0], np.float32).reshape((2,) if classes == 0 else (2, 1))

    answer = step(("no", "yes"), classes=classes, activation="sigmoid").run({"logits": logits})

    assert answer["label"].tolist() == [b"yes", b"no"]
    np.testing.assert_allclose(answer["score"], [1 / (1 + np.exp(-2)), 1 / (1 + np.exp(-3))])


def test_other_classes_than_labels_fail() -> None:
    with pytest.raises(RuntimeFailedError, match="returned 4 classes, but there are 3 labels"):
        step().run({"logits": np.zeros((1, 4), np.float32)})


def test_no_rows_give_no_labels() -> None:
    answer = step().run({"logits": np.zeros((0, 3), np.float32)})

    assert answer["label"].shape == answer["score"].shape == (0,)


MODEL = "steps:\n  - {kind: model, path: model.onnx}\n"


def test_labels_stand_in_a_file_one_on_each_line(write: Write) -> None:
    yaml = MODEL + "  - {kind: classify, labels_file: labels.txt, inputs: {logits: y}}"
    directory = write(yaml, model__onnx=models.matmul(), labels__txt="\ufeffEié\r\n b \nc\n\n")

    pipeline = load_pipeline(directory)

    x = np.eye(4, dtype=np.float32)
    best = load_pipeline(write(MODEL)).run({"x": x})["y"].argmax(axis=1)
    assert pipeline.run({"x": x})["label"].tolist() == [
        ["Eié".encode(), b"b", b"c"][i] for i in best
    ]
    assert [spec.name for spec in pipeline.signature.outputs] == ["label", "score"]


@pytest.mark.parametrize(
    ("settings", "labels", "said"),
    [
        ("labels: [a, b]", "", r"'y' is FP32 .* so it needs 3 labels, but there are 2"),
        ("labels: [a, b, c], top_k: 4", "", "top_k is 4, but there are only 3 labels"),
        ("labels_file: labels.txt", "a\n\nb\n", "labels.txt: line 2 is empty"),
        ("labels_file: labels.txt", b"\xff\xfe", r"labels.txt: is not valid UTF-8 \(byte 0\)"),
        ("labels_file: labels.txt", "", "labels.txt: line 1 is empty"),
        ("labels_file: gone.txt", "", "'gone.txt' does not exist beside"),
        ("labels_file: .", "", "Is a directory"),
        ("labels_file: ../../up.txt", "", "is outside the pipeline's directory"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    write: Write, settings: str, labels: str | bytes, said: str
) -> None:
    yaml = MODEL + f"  - {{kind: classify, {settings}, inputs: {{logits: y}}}}"
    directory = write(yaml, model__onnx=models.matmul(), labels__txt=labels)
    with pytest.raises(UnsupportedModelError, match=f"step 'classify': .*{said}"):
        load_pipeline(directory)


def test_what_is_no_matrix_of_floats_is_refused(write: Write) -> None:
    yaml = "steps: [{kind: tokenizer},{kind: classify, labels: [a], inputs: {logits: input_ids}}]"
    from tests.unit.pipeline.conftest import tokenizer_json  # noqa: PLC0415

    with pytest.raises(UnsupportedModelError, match=r"'input_ids' is INT64.*must be floats"):
        load_pipeline(write(yaml, tokenizer__json=tokenizer_json()))
