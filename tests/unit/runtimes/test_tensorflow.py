"""What Keras and TensorFlow write answers as they do, with TensorFlow and without."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core import (
    Array,
    CodeNotAllowedError,
    Datatype,
    RuntimeFailedError,
    UnsupportedModelError,
)
from headrace.runtimes import LoadOptions, inspect_model, load_model
from headrace.runtimes.tensorflow.savedmodel import SavedmodelRuntime, TensorflowModel
from headrace.runtimes.tensorflow.savedmodel_file import read_savedmodel
from tests import openvino_models
from tests.savedmodels import Exported, keras_images, tensorflow

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]

ROUNDING = 2e-6
CONVERTED = 2e-5
"""Other kernels sum in another order."""
QUANTISED = 0.05
"""Of probabilities: eight bits a value."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return keras_images(tmp_path_factory.mktemp("keras"))


def pictures(rows: int = 5) -> Array:
    made: Array = np.random.default_rng(6).random((rows, 12, 12, 3)).astype(np.float32)
    return made


def saved(folder: Path, module: Any, serve: Any) -> Path:  # noqa: ANN401  # ships no types
    tf: Any = tensorflow()
    path = folder / "saved"
    tf.saved_model.save(module, str(path), signatures=serve)
    return path


def test_keras_answers_as_it_does_in_process(images: Exported) -> None:
    model = load_model(images.path)
    (output,) = model.signature.outputs
    (spec,) = model.signature.inputs
    answer = model.run({spec.name: pictures()})[output.name]

    assert isinstance(model, TensorflowModel)
    assert model.signature.batched
    assert np.abs(answer - images.expected(pictures())).max() < ROUNDING


def test_without_tensorflow_signature_and_answers_are_the_same(
    images: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    openvino_models.library()
    wanted, expected = load_model(images.path).signature, images.expected(pictures())
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    model = load_model(images.path)
    (answer,) = model.run({wanted.inputs[0].name: pictures()}).values()

    assert model.signature == wanted
    assert np.abs(answer - expected).max() < CONVERTED


@pytest.mark.parametrize("quantised", [False, True], ids=["floats", "eight bits"])
def test_a_tflite_conversion_answers_as_keras_does(
    quantised: bool,  # noqa: FBT001  # pytest passes it by name
    images: Exported,
    tmp_path: Path,
) -> None:
    tf: Any = tensorflow()
    interpreter: Any = pytest.importorskip("ai_edge_litert.interpreter", reason="needs litert")
    converter = tf.lite.TFLiteConverter.from_saved_model(str(images.path))
    if quantised:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
        converter.representative_dataset = lambda: ([row[None]] for row in pictures(50))
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
        converter.inference_input_type = converter.inference_output_type = tf.int8
    path = tmp_path / "images.tflite"
    path.write_bytes(converter.convert())
    model = load_model(path)
    (spec,), (output,) = model.signature.inputs, model.signature.outputs
    rows = pictures()
    if quantised:
        details = interpreter.Interpreter(model_path=str(path)).get_input_details()[0]
        scale, zero = details["quantization"]
        rows = np.clip(np.round(rows / scale + zero), -128, 127).astype(np.int8)
    answer = model.run({spec.name: rows})[output.name]
    if quantised:
        answer = (answer.astype(np.float32) + 128) / 256

    assert model.signature.batched
    assert spec.datatype is (Datatype.INT8 if quantised else Datatype.FP32)
    wrong = np.abs(answer - images.expected(pictures())).max()
    assert wrong < (QUANTISED if quantised else CONVERTED)


def test_text_goes_in_and_out(tmp_path: Path) -> None:
    tf: Any = tensorflow()
    module = tf.Module()
    module.serve = tf.function(
        lambda text: {"upper": tf.strings.upper(text), "length": tf.strings.length(text)},
        input_signature=[tf.TensorSpec([None], tf.string, name="text")],
    )
    model = load_model(saved(tmp_path, module, module.serve))
    text = np.array([b"abc", "größe".encode()], np.object_)
    answers = model.run({"text": text}, ["upper", "length"])

    assert [spec.datatype for spec in model.signature.outputs] == [Datatype.INT32, Datatype.BYTES]
    assert answers["upper"].tolist() == [b"ABC", "GRößE".encode()]
    assert answers["length"].tolist() == [3, 7]


def test_a_graph_that_reads_files_runs_only_where_code_is_allowed(tmp_path: Path) -> None:
    tf: Any = tensorflow()
    module = tf.Module()
    module.serve = tf.function(
        lambda text: {"content": tf.io.read_file(text)},
        input_signature=[tf.TensorSpec([], tf.string, name="text")],
    )
    path = saved(tmp_path, module, module.serve)
    with pytest.raises(CodeNotAllowedError, match="ReadFile"):
        inspect_model(path)

    assert inspect_model(path, allow_code=True).runs_code is True
    secret = tmp_path / "secret"
    secret.write_text("42")
    answer = load_model(path).run({"text": np.array(str(secret).encode(), np.object_)})
    assert answer["content"].item() == b"42"


def test_a_state_that_callers_share_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tf: Any = tensorflow()
    module = tf.Module()
    module.seen = tf.Variable(0.0)
    module.serve = tf.function(
        lambda x: {"seen": module.seen.assign_add(tf.reduce_sum(x))},
        input_signature=[tf.TensorSpec([None], tf.float32, name="x")],
    )
    load_model(saved(tmp_path, module, module.serve)).close()

    assert "keeps state that all callers share (AssignAddVariableOp)" in caplog.text


def test_what_fails_in_the_graph_is_the_models_failure(tmp_path: Path) -> None:
    tf: Any = tensorflow()
    module = tf.Module()
    module.table = tf.Variable(np.arange(6, dtype=np.float32).reshape(3, 2))
    module.serve = tf.function(
        lambda ids: {"rows": tf.gather(module.table, ids)},
        input_signature=[tf.TensorSpec([None], tf.int64, name="ids")],
    )
    path = saved(tmp_path, module, module.serve)
    model = load_model(path)
    with pytest.raises(RuntimeFailedError, match=r"indices.* = 99 is not in"):
        model.run({"ids": np.array([99])})

    assert model.run({"ids": np.array([2])})["rows"].tolist() == [[4.0, 5.0]]
    assert read_savedmodel(path).unsafe == ()
    model.close()
    with pytest.raises(RuntimeFailedError, match="closed"):
        model.run({"ids": np.array([2])})


def test_what_tensorflow_refuses_is_refused(images: Exported, tmp_path: Path) -> None:
    tensorflow()
    path = tmp_path / "odd"
    path.mkdir()
    data = (images.path / "saved_model.pb").read_bytes()
    (path / "saved_model.pb").write_bytes(data)

    with pytest.raises(UnsupportedModelError, match="odd: TensorFlow refuses it"):
        SavedmodelRuntime().load(path, LoadOptions())
