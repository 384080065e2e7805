"""What Keras, TensorFlow and TFLite saved is converted to ONNX that answers as they do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.core import Array, CodeNotAllowedError, Tensors, UnsupportedModelError
from headrace.optimize import Conversion
from headrace.optimize.child import run_in_child
from headrace.optimize.convert.convert import convert
from headrace.optimize.sources import open_source, source_runtime
from headrace.runtimes import inspect_model, load_model
from tests import tflite_models, wheels
from tests.savedmodels import Exported, keras_images, tensorflow

pytestmark = [
    pytest.mark.tensorflow,
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]

pytest.importorskip("tf2onnx", reason="no tf2onnx: make test SUITE=all installs it")
tensorflow()
ROUNDING = 2e-5
"""Of a probability: other kernels sum in another order."""
SAMPLES = 43844


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return keras_images(tmp_path_factory.mktemp("keras"))


def made(path: Path, folder: Path, *, allow_code: bool = False) -> tuple[Path, Conversion]:
    source = open_source(path, source_runtime(path), allow_code=allow_code)
    target = folder / "made.onnx"
    return target, convert(source, target, max_changed_ratio=0.001)


def test_keras_answers_as_it_does_in_process(images: Exported, tmp_path: Path) -> None:
    target, conversion = made(images.path, tmp_path)
    rows = np.random.default_rng(6).random((5, 12, 12, 3)).astype(np.float32)

    model = load_model(target)
    (answer,) = model.run({"image": rows}).values()

    assert np.abs(answer - images.expected(rows)).max() < ROUNDING
    assert model.signature == inspect_model(images.path).signature
    assert conversion.converter.startswith("tf2onnx ")
    assert conversion.library == f"tensorflow {tensorflow().__version__}"
    assert conversion.differences.largest_relative < conversion.tolerance == 1e-4


def saved(folder: Path, serve: Any, *inputs: Any) -> Path:  # noqa: ANN401  # ships no types
    tf: Any = tensorflow()
    module = tf.Module()
    module.serve = tf.function(serve, input_signature=inputs)
    path = folder / "saved"
    tf.saved_model.save(module, str(path), signatures=module.serve)
    return path


def test_sizes_that_vary_stay_open_and_names_stay(tmp_path: Path) -> None:
    tf: Any = tensorflow()

    def serve(ids: Any, scale: Any) -> dict[str, Any]:  # noqa: ANN401  # as above
        places = tf.cast(tf.range(tf.shape(ids)[1]), tf.float32)
        scaled = tf.cast(ids, tf.float32) * scale
        return {"sums": tf.reduce_sum(scaled * places, 1), "again": scaled}

    inputs = (
        tf.TensorSpec([None, None], tf.int64, name="ids"),
        tf.TensorSpec([None, 1], tf.float32, name="scale"),
    )
    path = saved(tmp_path, serve, *inputs)
    target, conversion = made(path, tmp_path)
    ids = np.random.default_rng(1).integers(0, 9, (4, 11))
    asked: Tensors = {"ids": ids, "scale": np.full((4, 1), 0.5, np.float32)}

    model = load_model(target)
    answers = model.run(asked)

    assert model.signature == load_model(path).signature
    assert np.allclose(answers["again"], ids * 0.5)
    assert np.allclose(answers["sums"], (ids * 0.5 * np.arange(11)).sum(1))
    assert conversion.differences.inputs.endswith(
        "rows of size 1 and 1024 generated rows of size 8"
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_tensorflow_1_saved_is_converted(tmp_path: Path) -> None:
    v1: Any = tensorflow().compat.v1
    path = tmp_path / "first"
    with v1.Session(graph=tensorflow().Graph()) as session:
        x = v1.placeholder(v1.float32, [None, 3], name="ask")
        weights = v1.get_variable(
            "w", initializer=np.eye(3, dtype=np.float32) * 2, use_resource=False
        )
        y = v1.matmul(x, weights)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, str(path), inputs={"x": x}, outputs={"y": y})
    rows = np.random.default_rng(4).normal(size=(6, 3)).astype(np.float32)

    answers = load_model(made(path, tmp_path)[0]).run({"x": rows})

    assert np.array_equal(answers["y"], rows * 2)


def test_a_state_is_refused_with_its_operators(tmp_path: Path) -> None:
    tf: Any = tensorflow()
    module = tf.Module()
    module.seen = tf.Variable(0.0)
    x = tf.TensorSpec([None], tf.float32, name="x")
    module.serve = tf.function(
        lambda x: {"seen": module.seen.assign_add(tf.reduce_sum(x))}, input_signature=[x]
    )
    tf.saved_model.save(module, str(tmp_path / "state"), signatures=module.serve)

    with pytest.raises(UnsupportedModelError, match=r"state: keeps state .*AssignAddVariableOp"):
        made(tmp_path / "state", tmp_path)


@pytest.fixture(scope="module")
def pitch(request: pytest.FixtureRequest) -> Path:
    inside = "basic_pitch/saved_models/icassp_2022/"
    return wheels.fetch(request.config.cache.mkdir("wheels"), "basic-pitch==0.4.0", inside)


def _converted(_: Callable[[str], None], path: str, folder: str) -> Conversion:
    return made(Path(path), Path(folder))[1]


def test_a_network_of_2022_is_converted_as_its_authors_did(pitch: Path, tmp_path: Path) -> None:
    # As `headrace optimize` does: there TensorFlow is not imported before the conversion.
    paths = str(pitch / "nmp"), str(tmp_path)
    conversion = run_in_child(_converted, *paths, returns=Conversion, raises=UnsupportedModelError)
    target = tmp_path / "made.onnx"
    sound = np.random.default_rng(2).normal(size=(2, SAMPLES, 1)).astype(np.float32)
    want = load_model(pitch / "nmp.onnx").run({"serving_default_input_2:0": sound})

    answers = load_model(target).run({"input_2": sound})

    assert list(answers) == ["contour", "note", "onset"]
    # Their file lost the names, and kept the order.
    for got, expected in zip(answers.values(), [want[key] for key in sorted(want)], strict=True):
        assert np.abs(got - expected).max() < ROUNDING
    assert conversion.differences.changed_rows == 0


def test_outputs_of_a_tflite_file_keep_their_names(tmp_path: Path) -> None:
    tf: Any = tensorflow()
    x = tf.TensorSpec([None, 4], tf.float32, name="x")
    path = saved(tmp_path, lambda x: {"b": tf.sin(x), "a": tf.cos(x), "c": x * x}, x)
    file = tmp_path / "several.tflite"
    file.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(path)).convert())
    rows = np.random.default_rng(3).normal(size=(7, 4)).astype(np.float32)

    answers = load_model(made(file, tmp_path)[0]).run({"x": rows})

    assert np.allclose(answers["a"], np.cos(rows), atol=1e-6)
    assert np.allclose(answers["b"], np.sin(rows), atol=1e-6)
    assert np.allclose(answers["c"], np.square(rows), atol=1e-6)


def test_a_tflite_file_answers_as_litert_does(tmp_path: Path) -> None:
    path = tflite_models.write(tmp_path / "small.tflite", tflite_models.perceptron())
    rows: Array = np.random.default_rng(3).normal(size=(7, 4)).astype(np.float32)
    target, conversion = made(path, tmp_path)

    model = load_model(target)

    assert model.signature == load_model(path).signature
    assert np.abs(model.run({"x": rows})["y"] - tflite_models.expected(rows)).max() < ROUNDING
    assert conversion.library.startswith("ai-edge-litert ")


def test_eight_bits_stay_eight_bits(tmp_path: Path) -> None:
    path = tflite_models.write(tmp_path / "eight.tflite", tflite_models.quantised())
    target, conversion = made(path, tmp_path)

    model = load_model(target)

    assert model.signature == load_model(path).signature
    assert [spec.datatype for spec in model.signature.inputs] == ["INT8"]
    assert conversion.differences.changed_rows == 0
    assert conversion.differences.rows == 1024


def test_operators_that_onnx_has_not_are_named(tmp_path: Path) -> None:
    tf: Any = tensorflow()
    text = tf.TensorSpec([None], tf.string, name="text")
    path = saved(tmp_path, lambda text: {"length": tf.strings.length(text)}, text)

    with pytest.raises(UnsupportedModelError, match="its operators StringLength"):
        made(path, tmp_path)
    assert not (tmp_path / "made.onnx").exists()


def test_a_graph_that_reads_files_is_not_opened(tmp_path: Path) -> None:
    tf: Any = tensorflow()
    text = tf.TensorSpec([], tf.string, name="text")
    path = saved(tmp_path, lambda text: {"content": tf.io.read_file(text)}, text)

    with pytest.raises(CodeNotAllowedError, match="ReadFile"):
        made(path, tmp_path)
    with pytest.raises(UnsupportedModelError, match="ReadFile"):
        made(path, tmp_path, allow_code=True)
