"""Several models give one answer; those that do not fit together are refused."""

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Array, InvalidArgumentError, RuntimeFailedError, UnsupportedModelError
from headrace.pipeline import load_pipeline
from headrace.pipeline.members import EnsembleStep, MemberModel, Members
from headrace.pipeline.spec import EnsembleSpec
from headrace.runtimes import detect_runtime, load_model, runs_code
from headrace.testing import models
from tests.unit.pipeline.answering import Answering
from tests.unit.pipeline.elements import elements, one_by_one

Write = Callable[..., Path]

X = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)


def step(given: Sequence[Answering], **settings: object) -> EnsembleStep:
    paths = [f"m{i}" for i in range(len(given))]
    spec = EnsembleSpec.model_validate({"kind": "ensemble", "models": paths, **settings})
    members = Members([MemberModel(name=n, model=m) for n, m in zip(paths, given, strict=True)])
    return EnsembleStep(members, spec, members.agreed(spec.combined))


def numbers(*answers: float) -> list[Answering]:
    return [Answering({"y": _always(answer)}) for answer in answers]


def _always(answer: float) -> Callable[[Array], Array]:
    return lambda x: np.full((len(x), 2), answer, np.float32)


@pytest.mark.parametrize(
    ("settings", "want"),
    [
        ({}, 3.0),
        ({"combine": "weighted", "weights": [1, 1, 2]}, 3.75),
        ({"combine": "weighted", "weights": [0, 5, 0]}, 2.0),
        ({"combine": "max"}, 6.0),
    ],
)
def test_numbers_are_combined(settings: dict[str, object], want: float) -> None:
    answer = step(numbers(1.0, 2.0, 6.0), **settings).run({"x": np.zeros((2, 1), np.float32)})

    assert answer["y"].dtype == np.float32
    assert answer["y"].tolist() == [[want, want], [want, want]]


def test_a_model_without_weight_cannot_spoil_the_answer() -> None:
    made = step(numbers(1.0, np.inf, np.nan), combine="weighted", weights=[1, 0, 0])

    assert made.run({"x": np.zeros((1, 1), np.float32)})["y"].tolist() == [[1.0, 1.0]]


@given(st.lists(st.lists(st.sampled_from("abc"), min_size=4, max_size=4), min_size=2, max_size=6))
def test_most_votes_win_and_of_equals_the_first_model(votes: list[list[str]]) -> None:
    def says(given: list[str]) -> Callable[[Array], Array]:
        return lambda x: elements(*given)[: len(x)]

    made = step([Answering({"label": says(one)}) for one in votes], combine="vote")

    answer = made.run({"x": np.zeros((4, 1), np.float32)})["label"]

    for row in range(4):
        said = [one[row] for one in votes]
        most = max(map(said.count, said))
        want = next(label for label in said if said.count(label) == most)
        assert answer[row] == want.encode()


def test_whole_numbers_vote_too() -> None:
    def says(*given: int) -> Answering:
        return Answering({"class": lambda x: np.array(given, np.int64)[: len(x)]})

    made = step([says(1, 2, 3), says(2, 2, 1), says(2, 0, 5)], combine="vote")

    assert made.run({"x": np.zeros((3, 1), np.float32)})["class"].tolist() == [2, 2, 3]


def test_only_outputs_that_are_named_are_combined() -> None:
    both = {"y": _always(1.0), "label": lambda x: elements("a", "b")[: len(x)]}
    made = step([Answering(both), Answering(both)], combined=["y"])

    assert [spec.name for spec in made.signature.outputs] == ["y"]
    assert list(made.run({"x": np.zeros((2, 1), np.float32)})) == ["y"]


def test_models_that_answer_with_other_shapes_fail() -> None:
    wide = Answering({"y": lambda x: np.zeros((len(x), 3), np.float32)})
    with pytest.raises(RuntimeFailedError, match=r"shape of 'y': 'm0' \[2, 2\], 'm1' \[2, 3\]"):
        step([*numbers(1.0), wide]).run({"x": np.zeros((2, 1), np.float32)})


def test_a_model_that_loses_rows_fails_by_its_name() -> None:
    short = Answering({"y": lambda x: np.zeros((len(x) - 1, 2), np.float32)})
    with pytest.raises(RuntimeFailedError, match=r"'m1' answered 2 rows with 'y' of the shape"):
        step([*numbers(1.0), short]).run({"x": np.zeros((2, 1), np.float32)})


def test_an_error_says_which_model_it_is_of() -> None:
    def refuse(_: Array) -> Array:
        raise InvalidArgumentError("no such town")

    with pytest.raises(InvalidArgumentError, match="no such town") as caught:
        step([*numbers(1.0), Answering({"y": refuse})]).run({"x": np.zeros((1, 1), np.float32)})
    assert caught.value.__notes__ == ["in 'm1'"]


YAML = "steps: [{{kind: ensemble, models: [a.onnx, b.onnx]{0}}}]"


def test_real_models_are_averaged_and_answer_together_as_alone(write: Write) -> None:
    a, b = models.matmul(seed=1), models.matmul(seed=2)
    directory = write(YAML.format(""), a__onnx=a, b__onnx=b)
    pipeline = load_pipeline(directory)

    got = pipeline.run({"x": X})["y"]

    each = [load_model(directory / name).run({"x": X})["y"] for name in ("a.onnx", "b.onnx")]
    np.testing.assert_allclose(got, (each[0] + each[1]) / 2, rtol=1e-6)
    np.testing.assert_allclose(got, one_by_one(pipeline, {"x": X})["y"], rtol=1e-5, atol=1e-6)
    assert pipeline.concurrent


@pytest.mark.parametrize(
    ("settings", "other", "said"),
    [
        ("", models.two_outputs(), r"'b.onnx' takes a, b, but 'a.onnx' x: .* the same input names"),
        ("", models.matmul(features=5), r"'b.onnx' takes 'x' as FP32 \[-1, 5\], but 'a.onnx' 'x'"),
        ("", models.matmul(columns=2), r"'b.onnx' outputs 'y' as FP32 \[-1, 2\], but 'a.onnx'"),
        ("", models.unbatched(), "'b.onnx' has no batch axis"),
        ("", b"nonsense", "b.onnx"),
        (", combined: [z]", models.matmul(), "'a.onnx' has no output 'z'; it has: y"),
        (", combine: vote", models.matmul(), "'y' is FP32, and combine: vote needs labels"),
    ],
)
def test_models_that_do_not_fit_are_refused(
    write: Write, settings: str, other: bytes, said: str
) -> None:
    directory = write(YAML.format(settings), a__onnx=models.matmul(), b__onnx=other)
    with pytest.raises(UnsupportedModelError, match=f"step 'ensemble': .*{said}"):
        load_pipeline(directory)


def test_labels_have_no_maximum(write: Write) -> None:
    data = models.strings()
    directory = write(YAML.format(", combine: max"), a__onnx=data, b__onnx=data)
    with pytest.raises(UnsupportedModelError, match="'echo' is BYTES, and combine: max needs num"):
        load_pipeline(directory)


def test_pipelines_vote_and_their_examples_are_known(text_pipeline: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    for name in ("a", "b"):
        shutil.copytree(text_pipeline, outer / name)
    (outer / "pipeline.yaml").write_text("steps: [{kind: ensemble, models: [a, b]}]")
    pipeline = load_pipeline(outer)

    example = pipeline.example_inputs(rows=2, variable=8)
    got = pipeline.run({"text": elements("the sea", "a river runs")})["embedding"]

    assert example["text"].tolist() == [b"a word " * 4] * 2
    alone = load_pipeline(text_pipeline)
    want = alone.run({"text": elements("the sea", "a river runs")})["embedding"]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_models_are_closed_when_a_later_one_cannot_be_opened() -> None:
    first, second = numbers(1.0, 2.0)
    made = step([first, second])

    made.close()

    assert (first.closed, second.closed) == (1, 1)


def test_a_model_that_runs_code_needs_the_explicit_allow(write: Write) -> None:
    yaml = "steps: [{kind: ensemble, models: [a.py, b.py]}]"
    source = models.python_double()
    directory = write(yaml, a__py=source, b__py=source)

    assert runs_code(detect_runtime(directory), directory)
    answer = load_pipeline(directory).run({"x": np.ones((1, 2), np.float32)})
    assert answer["y"].tolist() == [[2.0, 2.0]]
