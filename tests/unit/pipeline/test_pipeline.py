"""What a pipeline answers, and how it says that its steps do not fit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from headrace.core import (
    Datatype,
    InvalidArgumentError,
    RuntimeFailedError,
    TensorSpec,
    UnsupportedModelError,
)
from headrace.pipeline import Pipeline, load_pipeline
from headrace.pipeline import tokenize as tokenizing
from headrace.runtimes import detect_runtime, inspect_model, load_model, runs_code
from headrace.testing import models
from tests.unit.pipeline.conftest import tokenizer_json

Write = Callable[..., Path]

_MODEL = "{kind: model, path: model.onnx"

SCALE = """\
steps:
  - kind: python
    function: steps.py:scale
    inputs: {price: [FP32, [-1]], rooms: [FP32, [-1]]}
    outputs: {x: [FP32, [-1, 4]]}
  - {kind: model, path: model.onnx}
  - kind: python
    name: choose
    function: steps.py:choose
    inputs: {y: [FP32, [-1, 3]]}
    outputs: {best: [INT64, [-1]], name: [BYTES, [-1]]}
"""
STEPS = """\
import numpy as np

def scale(inputs):
    one = np.ones_like(inputs["price"])
    return {"x": np.stack([inputs["price"] / 100, inputs["rooms"], one, one], axis=1)}

def choose(inputs):
    best = inputs["y"].argmax(axis=1)
    return {"best": best, "name": np.array(["low", "mid", "high"])[best]}
"""


@pytest.fixture
def priced(write: Write) -> Path:
    return write(SCALE, steps__py=STEPS, model__onnx=models.matmul())


def texts(*values: str | bytes) -> np.ndarray:
    made = np.empty(len(values), np.object_)
    made[:] = [v.encode() if isinstance(v, str) else v for v in values]
    return made


def test_steps_pass_on_what_they_give(priced: Path) -> None:
    pipeline = load_pipeline(priced)
    price = np.array([120, 900, 40], np.float32)
    rooms = np.array([1, 5, 0], np.float32)

    answers = pipeline.run({"price": price, "rooms": rooms})

    x = np.stack([price / 100, rooms, price * 0 + 1, price * 0 + 1], axis=1)
    want = load_model(priced / "model.onnx").run({"x": x})["y"].argmax(axis=1)
    assert answers["best"].tolist() == want.tolist()
    assert answers["name"].tolist() == [[b"low", b"mid", b"high"][i] for i in want]


def test_what_no_step_gives_is_asked_of_the_caller(priced: Path) -> None:
    signature = load_pipeline(priced).signature

    assert signature.inputs == (
        TensorSpec(name="price", datatype=Datatype.FP32, shape=(-1,)),
        TensorSpec(name="rooms", datatype=Datatype.FP32, shape=(-1,)),
    )
    assert [spec.name for spec in signature.outputs] == ["best", "name"]
    assert signature.batched


def test_a_pipeline_is_a_model_to_every_runtime_call(priced: Path) -> None:
    assert detect_runtime(priced).name == "pipeline"
    with pytest.raises(Exception, match="allow"):
        inspect_model(priced)
    inspected = inspect_model(priced, allow_code=True)
    assert (inspected.runtime, inspected.runs_code) == ("pipeline", True)


def test_a_pipeline_without_functions_runs_no_code(text_pipeline: Path) -> None:
    assert not runs_code(detect_runtime(text_pipeline), text_pipeline)
    assert not inspect_model(text_pipeline).runs_code


def test_a_pipeline_may_be_a_step(text_pipeline: Path, tmp_path: Path) -> None:
    outer = tmp_path / "outer"
    outer.mkdir()
    text_pipeline.rename(outer / "inner")
    (outer / "pipeline.yaml").write_text("steps: [{kind: model, path: inner}]")

    answer = load_pipeline(outer).run({"text": texts("the sea")})

    assert np.linalg.norm(answer["embedding"]) == pytest.approx(1)


@pytest.mark.parametrize(
    "step",
    [
        "{kind: model, path: %s}",
        "{kind: ensemble, models: [%s, %s]}",
        "{kind: cascade, models: [%s, %s], confidence: y, threshold: 1}",
    ],
)
@pytest.mark.parametrize("name", [".", "loop"])
def test_a_pipeline_is_no_step_of_itself(write: Write, step: str, name: str) -> None:
    directory = write(f"steps: [{step.replace('%s', name)}]")
    (directory / "loop").symlink_to(directory)

    for check in (load_pipeline, inspect_model):
        with pytest.raises(UnsupportedModelError, match="cannot be a step of a pipeline"):
            check(directory)


def test_each_step_is_timed(text_pipeline: Path) -> None:
    pipeline = load_pipeline(text_pipeline)
    pipeline.run({"text": texts("a river")})
    pipeline.run({"text": texts("a river", "runs")})

    assert [(step.name, step.seconds.count) for step in pipeline.steps] == [
        ("tokenizer", 2),
        ("model", 2),
        ("pool", 2),
    ]


def test_texts_of_any_length_answer_together_as_alone(text_pipeline: Path) -> None:
    pipeline = load_pipeline(text_pipeline)
    some = [" ".join(["river", "sea", "rain", "not"] * n) for n in (4, 1, 3, 0, 1, 2)]
    some += ["snow " * 400, "one", "qwertz"]

    together = pipeline.run({"text": texts(*some)})["embedding"]

    alone = [pipeline.run({"text": texts(one)})["embedding"][0] for one in some]
    np.testing.assert_allclose(together, np.stack(alone), atol=1e-6)


def test_a_text_that_is_none_is_told_with_its_row(text_pipeline: Path) -> None:
    pipeline = load_pipeline(text_pipeline)
    with pytest.raises(InvalidArgumentError, match="text 1 is not UTF-8"):
        pipeline.run({"text": texts("a", b"\xff\xfe")})


def test_a_step_that_fails_is_named_and_told_from_a_wrong_input(write: Write) -> None:
    source = STEPS.replace("    one =", "    raise KeyError('no such town')\n    one =")
    pipeline = load_pipeline(write(SCALE, steps__py=source, model__onnx=models.matmul()))

    with pytest.raises(RuntimeFailedError, match=r"no such town.*steps\.py, line 4") as caught:
        pipeline.run({"price": np.ones(1, np.float32), "rooms": np.ones(1, np.float32)})
    assert "in step 'python' of the pipeline" in caught.value.__notes__


@pytest.mark.parametrize(
    ("yaml", "said"),
    [
        ("steps: []", "at least 1"),
        ("[1, 2]", "must be a mapping with 'steps'"),
        ("steps: [{kind: mode, path: x}]", r"steps\[0\].kind.*is a str; did you mean 'model'"),
        ("steps: [{path: x}]", r"steps\[0\] \(line 1\): needs 'kind', which selects its kind"),
        ("steps: [{kind: model, pth: x}]", r"steps\[0\].\* \(line 1\): is not a setting.*'path'"),
        ("steps: [{kind: model, path: ../up.onnx}]", "is outside the pipeline's directory"),
        ("steps: [{kind: model, path: /etc/passwd}]", "is outside the pipeline's directory"),
        ("steps: [{kind: model, path: gone.onnx}]", "'gone.onnx' does not exist beside"),
        ("steps: [{kind: model, path: .}]", "a pipeline cannot be a step of a pipeline"),
        ("steps: [{kind: pool}]", "no earlier step outputs 'last_hidden_state'"),
        (
            "steps: [{kind: model, path: model.onnx, inputs: {z: x}}]",
            "inputs maps 'z', which is unknown; the step has: x",
        ),
        (
            "steps: [{kind: model, path: model.onnx}]\noutputs: [x]",
            "no step outputs 'x'; there are: y",
        ),
        (
            f"steps: [{_MODEL}}}, {_MODEL}, inputs: {{x: y}}, outputs: {{y: z}}}}]",
            r"step 'model-2' takes 'y' with the shape \[-1, 4\], but it has \[-1, 3\]",
        ),
        (
            f"steps: [{_MODEL}}}, {_MODEL}, outputs: {{y: x}}}}]",
            "outputs 'x', which an earlier step already reads",
        ),
        ("steps: [{kind: tokenizer, file: model.onnx}]", "is not a readable tokenizer.json"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_step(write: Write, yaml: str, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        load_pipeline(write(yaml, model__onnx=models.matmul()))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("def other(inputs): pass", "defines no function 'scale'"),
        ("def scale(inputs): return (", "SyntaxError"),
        ("import sys; sys.exit(3)", "cannot be run"),
    ],
)
def test_a_file_without_the_function_is_refused(write: Write, source: str, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        load_pipeline(write(SCALE, steps__py=source, model__onnx=models.matmul()))


@pytest.mark.parametrize(
    ("returns", "said"),
    [
        ("None", "returned NoneType, not a dict"),
        ("{'x': [1]}", "is a list, not a NumPy array"),
        ("{'x': np.ones((1, 4))}", "has the dtype float64"),
        ("{'x': np.ones((2, 4), 'f4')}", "has 2 rows for 1 rows"),
        ("{'x': np.ones((1, 5), 'f4')}", "has the shape"),
    ],
)
def test_what_a_function_returns_is_checked(write: Write, returns: str, said: str) -> None:
    source = f"import numpy as np\ndef scale(inputs): return {returns}\ndef choose(i): return {{}}"
    pipeline = load_pipeline(write(SCALE, steps__py=source, model__onnx=models.matmul()))
    with pytest.raises(RuntimeFailedError, match=said):
        pipeline.run({"price": np.ones(1, np.float32), "rooms": np.ones(1, np.float32)})


def test_steps_are_closed_when_a_later_one_cannot_be_opened(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []

    def close(step: object) -> None:
        closed.append(step)

    monkeypatch.setattr(tokenizing.TokenizerStep, "close", close)
    yaml = "steps: [{kind: tokenizer}, {kind: model, path: gone}]"
    with pytest.raises(UnsupportedModelError):
        load_pipeline(write(yaml, tokenizer__json=tokenizer_json()))
    assert len(closed) == 1


def test_close_is_called_on_all_steps_whatever_one_does(text_pipeline: Path) -> None:
    pipeline: Pipeline = load_pipeline(text_pipeline)
    pipeline.close()
    pipeline.close()
    with pytest.raises(RuntimeFailedError):
        pipeline.run({"text": texts("a")})
