"""A row stops at the first model that is sure of it, whoever else is asked with it."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Array, RuntimeFailedError, Tensors, UnsupportedModelError
from headrace.pipeline import load_pipeline
from headrace.pipeline.members import CascadeStep, MemberModel, Members
from headrace.pipeline.spec import CascadeSpec
from headrace.runtimes import detect_runtime, load_model, runs_code
from headrace.testing import models
from tests.unit.pipeline.answering import Answering
from tests.unit.pipeline.elements import elements, one_by_one

Write = Callable[..., Path]


def step(
    given: Sequence[Answering], confidence: str = "sure", threshold: float = 0.5
) -> CascadeStep:
    paths = [f"m{i}" for i in range(len(given))]
    spec = CascadeSpec.model_validate(
        {"kind": "cascade", "models": paths, "confidence": confidence, "threshold": threshold}
    )
    members = Members([MemberModel(name=n, model=m) for n, m in zip(paths, given, strict=True)])
    return CascadeStep(members, spec, members.agreed(None))


def knows(name: str, *values: float) -> Answering:
    """Is sure of these values only."""
    known = np.array(values, np.float32)

    def label(x: Array) -> Array:
        return elements(*(f"{name}{value:g}" for value in x[:, 0]))

    def sure(x: Array) -> Array:
        return np.isin(x[:, 0], known).astype(np.float32) * np.float32(0.9)

    return Answering({"label": label, "sure": sure})


def rows(*values: float) -> Tensors:
    return {"x": np.array(values, np.float32).reshape(-1, 1)}


def test_only_rows_that_nobody_is_sure_of_go_on() -> None:
    a, b, c = knows("a", 1, 2), knows("b", 3), knows("c")

    answer = step([a, b, c]).run(rows(3, 1, 9, 2, 1))

    assert answer["stage"].tolist() == [1, 0, 2, 0, 0]
    assert answer["stage"].dtype == np.int64
    assert answer["label"].tolist() == [b"b3", b"a1", b"c9", b"a2", b"a1"]
    assert (a.asked, b.asked, c.asked) == ([[3, 1, 9, 2, 1]], [[3, 9]], [[9]])


def test_models_that_nobody_needs_are_not_asked() -> None:
    a, b = knows("a", 1), knows("b")

    assert step([a, b]).run(rows(1, 1))["stage"].tolist() == [0, 0]
    assert b.asked == []


def test_a_row_that_all_are_unsure_of_gets_the_last_ones_answer() -> None:
    answer = step([knows("a"), knows("b")]).run(rows(4))

    assert (answer["label"].tolist(), answer["stage"].tolist()) == ([b"b4"], [1])
    assert answer["sure"].tolist() == [0.0]


@given(
    asked=st.lists(st.integers(0, 9), min_size=0, max_size=12),
    known=st.lists(st.frozensets(st.integers(0, 9)), min_size=2, max_size=4),
)
def test_rows_answer_together_as_alone(asked: list[int], known: list[frozenset[int]]) -> None:
    made = step([knows(f"m{i}-", *values) for i, values in enumerate(known)])

    together = made.run(rows(*asked))

    assert together["stage"].tolist() == [
        next((i for i, values in enumerate(known[:-1]) if one in values), len(known) - 1)
        for one in asked
    ]
    if asked:
        alone = one_by_one(made, rows(*asked))
        assert {n: a.tolist() for n, a in together.items()} == {
            n: a.tolist() for n, a in alone.items()
        }


def test_of_probabilities_the_largest_counts_up_to_the_threshold_itself() -> None:
    def prob(x: Array) -> Array:
        return np.concatenate((x, 1 - x), axis=1)

    made = step([Answering({"prob": prob})] * 2, confidence="prob", threshold=0.75)

    assert made.run(rows(0.5, 0.75, 0.25, 1.0, 0.3))["stage"].tolist() == [1, 0, 0, 0, 1]


def test_a_model_whose_confidence_is_no_number_is_not_sure() -> None:
    lost = Answering({"sure": lambda x: np.full(len(x), np.nan, np.float32)})
    found = Answering({"sure": lambda x: np.full(len(x), 0.75, np.float32)})

    answer = step([lost, found]).run(rows(1, 2))

    assert answer["stage"].tolist() == [1, 1]
    assert answer["sure"].tolist() == [0.75, 0.75]


def test_outputs_that_are_not_asked_for_are_not_computed_but_the_confidence() -> None:
    asked: list[str] = []

    def noted(name: str) -> Callable[[Array], Array]:
        def answer(x: Array) -> Array:
            asked.append(name)
            return x[:, 0]

        return answer

    model = Answering({name: noted(name) for name in ("y", "z", "sure")})
    made = step([model, model])
    asked.clear()

    assert list(made.run(rows(0.1), ["y"])) == ["y"]
    assert list(made.run(rows(0.9), ["stage"])) == ["stage"]
    assert asked == ["y", "sure"] * 2 + ["sure"]


def test_models_that_answer_with_other_shapes_fail() -> None:
    def wide(size: int, sure: float) -> Answering:
        return Answering(
            {
                "y": lambda x: np.zeros((len(x), size), np.float32),
                "sure": lambda x: np.where(x[:, 0] > 0, sure, 0).astype(np.float32),
            }
        )

    with pytest.raises(RuntimeFailedError, match=r"'m1' returned 'y' with \[3\] per row.*\[2\]"):
        step([wide(2, 1.0), wide(3, 1.0)]).run(rows(1, -1))


YAML = "steps: [{{kind: cascade, models: [a.onnx, b.onnx], confidence: {0}, threshold: 0.6}}]"


def test_real_models_answer_the_rows_they_are_sure_of(write: Write) -> None:
    a, b = models.mlp(seed=1), models.mlp(seed=2)
    directory = write(YAML.format("prob"), a__onnx=a, b__onnx=b)
    pipeline = load_pipeline(directory)
    x = np.random.default_rng(5).normal(size=(40, 32)).astype(np.float32)

    got = pipeline.run({"input": x})

    each = [load_model(directory / name).run({"input": x})["prob"] for name in ("a.onnx", "b.onnx")]
    sure = each[0].max(axis=1) >= 0.6
    assert 5 < sure.sum() < 35
    assert got["stage"].tolist() == (~sure).astype(int).tolist()
    np.testing.assert_allclose(
        got["prob"], np.where(sure[:, None], each[0], each[1]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("confidence", "other", "said"),
    [
        ("sure", models.mlp(), "'a.onnx' has no output 'sure'; it has: prob"),
        ("prob", models.mlp(classes=3), r"'b.onnx' outputs 'prob' as FP32 \[-1, 3\], but 'a.onnx'"),
        ("prob", models.matmul(), "'b.onnx' takes x, but 'a.onnx' input"),
    ],
)
def test_models_that_do_not_fit_are_refused(
    write: Write, confidence: str, other: bytes, said: str
) -> None:
    directory = write(YAML.format(confidence), a__onnx=models.mlp(), b__onnx=other)
    with pytest.raises(UnsupportedModelError, match=f"step 'cascade': .*{said}"):
        load_pipeline(directory)


def test_a_cascade_knows_no_better_example_than_its_models(write: Write) -> None:
    directory = write(YAML.format("prob"), a__onnx=models.mlp(), b__onnx=models.mlp(seed=2))
    pipeline = load_pipeline(directory)

    made = pipeline.run(pipeline.example_inputs(rows=3))

    assert made["prob"].shape == (3, 2)
    pipeline.close()
    with pytest.raises(RuntimeFailedError):
        pipeline.run(pipeline.example_inputs(rows=1))


def test_a_confidence_that_is_no_float_is_refused(write: Write) -> None:
    data = models.wrong_declaration()
    directory = write(YAML.format("label"), a__onnx=data, b__onnx=data)
    with pytest.raises(
        UnsupportedModelError, match=r"'label' is INT64 .* a confidence must be floats"
    ):
        load_pipeline(directory)


def test_a_cascade_cannot_be_a_model_of_a_cascade(write: Write, tmp_path: Path) -> None:
    inner = write(YAML.format("prob"), a__onnx=models.mlp(), b__onnx=models.mlp(seed=3))
    outer = tmp_path / "outer"
    outer.mkdir()
    for name in ("one", "two"):
        (outer / name).mkdir()
        for file in inner.iterdir():
            (outer / name / file.name).write_bytes(file.read_bytes())
    (outer / "pipeline.yaml").write_text(
        "steps: [{kind: cascade, models: [one, two], confidence: prob, threshold: 1}]"
    )
    with pytest.raises(UnsupportedModelError, match="an output 'stage'"):
        load_pipeline(outer)


def test_a_model_that_runs_code_needs_the_explicit_allow(write: Write) -> None:
    yaml = "steps: [{kind: cascade, models: [a.py, b.py], confidence: y, threshold: 3}]"
    directory = write(yaml, a__py=models.python_double(), b__py=models.python_double())

    assert runs_code(detect_runtime(directory), directory)
    answer = load_pipeline(directory).run({"x": np.array([[1, 1], [2, 0]], np.float32)})
    assert answer["stage"].tolist() == [1, 0]
