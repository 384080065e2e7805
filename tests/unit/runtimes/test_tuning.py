import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from headrace.core import UnsupportedModelError
from headrace.runtimes import LoadOptions, load_model
from headrace.runtimes.base import UNTUNED, Tuning, check_tuning
from headrace.runtimes.onnx.runtime import _disabled, open_session, session_options
from headrace.runtimes.openvino import OpenvinoModel, open_openvino, shortest_name
from headrace.testing import models
from tests import openvino_models

WIDTH = 64


def residual(path: Path) -> Path:
    """LayerNormalization(x + MatMul(x, w)): two nodes that ONNX Runtime makes one of."""
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(WIDTH, WIDTH)).astype(np.float32)
    ones = np.ones(WIDTH, np.float32)
    shape: list[str | int | None] = ["batch", "words", WIDTH]
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"]),
            helper.make_node("Add", ["x", "m"], ["s"]),
            helper.make_node("LayerNormalization", ["s", "scale", "bias"], ["y"], axis=-1),
        ],
        "residual",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(array, name)
            for name, array in (("w", weights), ("scale", ones), ("bias", ones))
        ],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path
    )
    return path


def run_as(path: Path, tuning: Tuning) -> list[str]:
    """The kinds of nodes that ONNX Runtime makes of a model, loaded as the runtime loads it."""
    options = session_options(LoadOptions(tuning=tuning))
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    options.log_severity_level = 4
    ort.InferenceSession(
        str(path),
        options,
        providers=["CPUExecutionProvider"],
        disabled_optimizers=_disabled(tuning, on_cpu=True),
    )
    graph = onnx.load(options.optimized_model_filepath).graph
    return [node.op_type for node in graph.node]


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    (path,) = models.write(tmp_path, "mlp")
    return path


def test_an_untuned_model_is_run_as_ever(mlp: Path) -> None:
    settings = open_session(mlp, LoadOptions()).session.get_session_options()

    assert settings.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert settings.get_session_config_entry("session.inter_op.allow_spinning") == "0"
    assert not settings.enable_cpu_mem_arena
    assert settings.intra_op_num_threads == 1
    assert _disabled(UNTUNED, on_cpu=True) == ["SkipLayerNormFusion"]
    assert _disabled(UNTUNED, on_cpu=False) is None


def test_a_session_is_opened_as_tuned(mlp: Path) -> None:
    tuning = Tuning(graph_optimizations="basic", arena=True, spinning=True, intra_op_threads=2)
    options = LoadOptions(intra_op_threads=1, tuning=tuning)
    settings = open_session(mlp, options).session.get_session_options()

    assert settings.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    assert settings.get_session_config_entry("session.intra_op.allow_spinning") == "1"
    assert settings.get_session_config_entry("session.inter_op.allow_spinning") == "0"
    assert settings.enable_cpu_mem_arena
    assert settings.intra_op_num_threads == 2


def test_the_fusion_that_is_slow_on_a_cpu_is_left_out_unless_tuned_otherwise(
    tmp_path: Path,
) -> None:
    path = residual(tmp_path / "residual.onnx")

    assert "SkipLayerNormalization" not in run_as(path, UNTUNED)
    assert "SkipLayerNormalization" in run_as(path, Tuning(disabled_optimizers=()))
    others = Tuning(disabled_optimizers=("GeluFusionL2",))
    assert "SkipLayerNormalization" in run_as(path, others)
    plain = Tuning(disabled_optimizers=(), graph_optimizations="none")
    assert run_as(path, plain) == ["MatMul", "Add", "LayerNormalization"]


def test_tuning_changes_no_answer(tmp_path: Path) -> None:
    path = residual(tmp_path / "residual.onnx")
    rows = np.random.default_rng(1).normal(size=(2, 3, WIDTH)).astype(np.float32)
    plain = load_model(path).run({"x": rows})["y"]

    for tuning in (
        Tuning(disabled_optimizers=(), arena=True),
        Tuning(graph_optimizations="none", spinning=True, intra_op_threads=2),
    ):
        model = load_model(path, options=LoadOptions(tuning=tuning))
        assert np.allclose(model.run({"x": rows})["y"], plain, atol=1e-5)
        model.close()


def opened(path: Path, tuning: Tuning) -> OpenvinoModel:
    return open_openvino(path, LoadOptions(device="cpu", tuning=tuning), named=shortest_name)


def prop(model: OpenvinoModel, name: str) -> Any:  # noqa: ANN401  # ships no types
    return model._compiled.get_property(name)


def test_openvino_computes_in_what_it_was_tuned_for(tmp_path: Path) -> None:
    ov: Any = openvino_models.library()
    asking = openvino_models.perceptron(tmp_path, precision="bf16")

    model = opened(asking, Tuning(precision="f32"))
    assert prop(model, "INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        plain = opened(openvino_models.perceptron(tmp_path / "plain"), Tuning(precision="bf16"))
        assert prop(plain, "INFERENCE_PRECISION_HINT").get_type_name() == "bf16"


def test_a_precision_that_the_processor_lacks_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ov: Any = openvino_models.library()
    path = openvino_models.perceptron(tmp_path)
    can = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    with caplog.at_level(logging.WARNING):
        opened(path, Tuning(precision="f16"))
    told = "was tuned to compute in f16, which this processor does not support" in caplog.text

    assert told is ("FP16" not in can)


def test_openvino_takes_as_many_threads_as_tuned(tmp_path: Path) -> None:
    openvino_models.library()
    model = opened(openvino_models.perceptron(tmp_path), Tuning(intra_op_threads=2))

    assert prop(model, "INFERENCE_NUM_THREADS") % 2 == 0
    assert prop(model, "INFERENCE_NUM_THREADS") == 2 * prop(model, "NUM_STREAMS")


@pytest.mark.parametrize(
    ("tuning", "said"),
    [
        (Tuning(precision="int3"), "unknown precision 'int3'; allowed values: f32, bf16"),
        (Tuning(precision="f32 "), "precision 'f32 '"),
        (Tuning(graph_optimizations="max"), "'max'; allowed values: all, extended"),
        (Tuning(graph_optimizations=""), "graph_optimizations ''"),
        (Tuning(disabled_optimizers=("a b",)), "the optimizer 'a b', which is not a valid name"),
        (Tuning(disabled_optimizers=("Good", "")), "the optimizer ''"),
        (Tuning(disabled_optimizers=("x" * 10_000,)), "x{40}\\.\\.\\.'"),
        (Tuning(disabled_optimizers=("F",) * 257), "disables 257 optimizers; the limit is 256"),
        (Tuning(intra_op_threads=0), "0 threads inside a run; allowed are 1 to 1024"),
        (Tuning(intra_op_threads=-3), "-3 threads"),
        (Tuning(intra_op_threads=10**9), "1000000000 threads"),
    ],
)
def test_what_no_engine_knows_is_refused(mlp: Path, tuning: Tuning, said: str) -> None:
    with pytest.raises(UnsupportedModelError, match=said):
        check_tuning(tuning)
    with pytest.raises(UnsupportedModelError, match=said):
        load_model(mlp, "onnx", LoadOptions(tuning=tuning))


def test_openvino_refuses_it_too(tmp_path: Path) -> None:
    path = openvino_models.perceptron(tmp_path)
    with pytest.raises(UnsupportedModelError, match="int3"):
        opened(path, Tuning(precision="int3"))


def test_the_tuning_that_nobody_made_is_fine() -> None:
    check_tuning(UNTUNED)
    check_tuning(Tuning(precision="bf16", disabled_optimizers=("SkipLayerNormFusion",)))
