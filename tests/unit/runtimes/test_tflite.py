import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core import (
    Array,
    Datatype,
    FailedPreconditionError,
    RuntimeFailedError,
    UnsupportedModelError,
)
from headrace.runtimes import LoadOptions, detect_runtime, load_model
from headrace.runtimes.tensorflow.tflite import (
    TfliteModel,
    TfliteRuntime,
    looks_like_tflite,
    read_tflite,
)
from tests import tflite_models
from tests.tflite_models import write

ROUNDING = 1e-6


def asked(rows: int = 5) -> Array:
    made: Array = np.random.default_rng(9).normal(size=(rows, 4))
    return made.astype(np.float32)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write(tmp_path / "net.tflite", tflite_models.perceptron())


def test_answers_are_those_of_the_same_sums_in_numpy(path: Path) -> None:
    model = load_model(path)

    for rows in (5, 1, 7, 5):
        answer = model.run({"x": asked(rows)})["y"]
        assert np.abs(answer - tflite_models.expected(asked(rows))).max() < ROUNDING


def test_it_is_found_by_name_and_first_bytes(path: Path) -> None:
    assert detect_runtime(path).name == "tflite"
    assert detect_runtime(path.parent).name == "tflite"

    path.with_name("other.tflite").write_bytes(b"hello")
    assert not looks_like_tflite(path.parent)
    assert not looks_like_tflite(path.with_name("other.tflite"))
    with pytest.raises(UnsupportedModelError, match=r"holds 2 \.tflite files"):
        TfliteRuntime().load(path.parent, LoadOptions())


def test_the_signature_names_inputs_and_outputs(path: Path, tmp_path: Path) -> None:
    named = read_tflite(path)
    bare = tflite_models.perceptron(signature=False)
    unnamed = read_tflite(write(tmp_path / "bare.tflite", bare))

    assert [one.spec.name for one in named.inputs + named.outputs] == ["x", "y"]
    assert [one.spec.name for one in unnamed.inputs + unnamed.outputs] == ["ask_x:0", "call:0"]


def test_a_model_of_one_row_takes_any_number_if_it_is_proved_to(tmp_path: Path) -> None:
    model = load_model(write(tmp_path / "one.tflite", tflite_models.perceptron(rows=1)))

    assert model.signature.batched
    assert model.signature.inputs[0].shape == (-1, 4)
    assert model.run({"x": asked(9)})["y"].shape == (9, 3)


def test_a_model_of_two_rows_keeps_them(tmp_path: Path) -> None:
    made = tflite_models.perceptron()
    for tensor in made.subgraphs[0].tensors:
        tensor.shapeSignature = None
        if tensor.buffer == 0:
            tensor.shape = [2, *tensor.shape[1:]]
    model = load_model(write(tmp_path / "two.tflite", made))

    assert not model.signature.batched
    assert model.run({"x": asked(2)})["y"].shape == (2, 3)


def test_quantised_values_are_their_integers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "headrace")
    model = load_model(write(tmp_path / "eight.tflite", tflite_models.quantised()))
    rows = np.array([[-128, 0, 3, 100]], np.int8)

    assert model.signature.inputs[0].datatype is Datatype.INT8
    assert model.run({"x": rows})["y"].tolist() == [[3, 3, 3, 100]]  # 3 stands for zero
    assert "'x' is quantised: (value - 3) * 0.05" in caplog.text


def test_each_run_at_once_has_its_own_interpreter(path: Path) -> None:
    model = load_model(path)
    assert isinstance(model, TfliteModel)
    with ThreadPoolExecutor(4) as pool:
        requests = [asked(1 + i % 5) for i in range(200)]
        answers = list(pool.map(lambda rows: model.run({"x": rows})["y"], requests))

    assert 1 <= len(model._idle) <= 4
    for rows, answer in zip(requests, answers, strict=True):
        assert np.abs(answer - tflite_models.expected(rows)).max() < ROUNDING


def test_a_run_that_fails_says_so_and_the_next_one_does_not(path: Path) -> None:
    model = load_model(path)
    with pytest.raises(RuntimeFailedError, match="the model failed"):
        model.run({"x": np.ones((2, 5), np.float32)})

    assert model.run({"x": asked(2)})["y"].shape == (2, 3)


def test_a_closed_model_says_so(path: Path) -> None:
    model = load_model(path)
    model.close()

    with pytest.raises(RuntimeFailedError, match="closed"):
        model.run({"x": asked(1)})


def test_without_the_library_it_says_what_to_install(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)

    with pytest.raises(FailedPreconditionError, match=r"pip install 'headrace\[tflite\]'"):
        TfliteRuntime().load(path, LoadOptions())


def _put(place: Callable[[Any], Any], name: str, value: Any) -> Callable[[Any], None]:  # noqa: ANN401
    return lambda made: setattr(place(made), name, value)


def _graph(made: Any) -> Any:  # noqa: ANN401  # ships no types
    return made.subgraphs[0]


def _beyond(made: Any) -> None:  # noqa: ANN401  # ships no types
    made.buffers[1].offset, made.buffers[1].size = 10**6, 48


CHANGES: dict[str, tuple[Callable[[Any], object], str]] = {
    "input beyond": (
        _put(lambda m: _graph(m).operators[0], "inputs", [0, 99, 2]),
        "an unknown tensor",
    ),
    "input below": (
        _put(lambda m: _graph(m).operators[0], "inputs", [0, -2, 2]),
        "an unknown tensor",
    ),
    "output beyond": (_put(lambda m: _graph(m).operators[1], "outputs", [99]), "an unknown tensor"),
    "operator beyond": (_put(lambda m: _graph(m).operators[0], "opcodeIndex", 9), "IndexError"),
    "buffer beyond": (_put(lambda m: _graph(m).tensors[1], "buffer", 9), "IndexError"),
    "short buffer": (_put(lambda m: m.buffers[1], "data", [0] * 8), "of 48 bytes holds 8"),
    "an input without a source": (
        lambda m: _graph(m).operators.pop(0),
        "has an input without a source",
    ),
    "no output": (_put(_graph, "operators", []), "one of its outputs has no source"),
    "huge": (_put(lambda m: _graph(m).tensors[3], "shape", [2147483647] * 2), "would take"),
    "negative": (_put(lambda m: _graph(m).tensors[3], "shape", [-5, 3]), r"the shape \[-5, 3\]"),
    "many dimensions": (_put(lambda m: _graph(m).tensors[3], "shape", [1] * 9), "the shape"),
    "huge input": (
        _put(lambda m: _graph(m).tensors[0], "shapeSignature", [-1, 10**9]),
        "too large",
    ),
    "two shapes": (_put(lambda m: _graph(m).tensors[0], "shapeSignature", [4]), "has two shapes"),
    "graph's input": (_put(_graph, "inputs", [77]), "an unknown tensor"),
    "no inputs": (_put(_graph, "inputs", []), "has an input without a source"),
    "signature": (
        _put(lambda m: m.signatureDefs[0].inputs[0], "tensorIndex", 3),
        "names unknown inputs",
    ),
    "other graph": (_put(lambda m: m.signatureDefs[0], "subgraphIndex", 1), "IndexError"),
    "text": (_put(lambda m: _graph(m).tensors[0], "type", 5), "input 'x' is text"),
    "complex": (_put(lambda m: _graph(m).tensors[0], "type", 8), "input 'x' is of the type 8"),
    "no graph": (_put(lambda m: m, "subgraphs", []), "has no graph"),
    "unknown operator": (
        _put(lambda m: m.operatorCodes[0], "builtinCode", 32),
        "LiteRT refuses it",
    ),
    "assigns": (_put(lambda m: m.operatorCodes[1], "builtinCode", 144), "assigns variables"),
    "external": (_beyond, "a buffer ends beyond the file"),
}


@pytest.mark.parametrize(("change", "reason"), CHANGES.values(), ids=CHANGES)
def test_what_is_damaged_is_refused_with_the_reason(
    change: Callable[[Any], object], reason: str, tmp_path: Path
) -> None:
    made = tflite_models.perceptron()
    change(made)
    path = write(tmp_path / "odd.tflite", made)

    with pytest.raises(UnsupportedModelError, match=rf"odd\.tflite: .*{reason}"):
        TfliteRuntime().load(path, LoadOptions())


@pytest.mark.parametrize("body", [0, 2])
def test_graphs_that_call_each_other_in_a_circle_are_refused(body: int, tmp_path: Path) -> None:
    path = write(tmp_path / "loop.tflite", tflite_models.looping(body=body))

    with pytest.raises(UnsupportedModelError, match="a graph calls itself"):
        read_tflite(path)


def test_an_operator_that_consists_of_itself_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "composite.tflite", tflite_models.composite())

    with pytest.raises(UnsupportedModelError, match="a graph calls itself"):
        read_tflite(path)


def test_a_graph_that_is_not_there_is_not_called(tmp_path: Path) -> None:
    path = write(tmp_path / "loop.tflite", tflite_models.looping(body=7))

    with pytest.raises(UnsupportedModelError, match="calls an unknown graph"):
        read_tflite(path)


def test_a_file_that_is_cut_off_is_refused(path: Path) -> None:
    data = path.read_bytes()

    for size in range(0, len(data) - 4, 7):
        path.write_bytes(data[:size])
        with pytest.raises(UnsupportedModelError, match=r"net\.tflite"):
            TfliteRuntime().load(path, LoadOptions())
