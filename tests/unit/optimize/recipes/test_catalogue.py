"""Which recipes there are for a model, and in which order."""

from pathlib import Path

import pytest

from headrace.core import Tensors
from headrace.optimize.candidate import BASELINE, ModelClass, RecipeContext
from headrace.optimize.recipes import recipes_for

AMX = ("avx2", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "avx512_fp16")
OLD = ("avx", "avx2", "fma")
NETWORKS = [ModelClass.TRANSFORMER, ModelClass.CONV_NET, ModelClass.OTHER]


def names(model_class: ModelClass, features: tuple[str, ...] = AMX) -> list[str]:
    return [recipe.name for recipe in recipes_for(model_class, "onnx", features)]


def context(folder: Path, calibration: tuple[Tensors, ...] = ()) -> RecipeContext:
    return RecipeContext(
        source=folder / "source.onnx",
        runtime="onnx",
        model_class=ModelClass.TRANSFORMER,
        folder=folder,
        calibration=calibration,
        threads=1,
        seed=0,
        deadline=0.0,
    )


def inapplicable_reason(folder: Path, name: str, features: tuple[str, ...] = AMX) -> str:
    recipes = recipes_for(ModelClass.TRANSFORMER, "onnx", features)
    return next(one for one in recipes if one.name == name).inapplicable_reason(context(folder))


@pytest.mark.parametrize("model_class", ModelClass)
def test_the_baseline_comes_first_and_no_name_twice(model_class: ModelClass) -> None:
    found = names(model_class)

    assert found[:2] == [BASELINE, "onnxruntime-fp32-served"]
    assert len(set(found)) == len(found)


def test_what_spoils_a_transformer_is_tried_like_everything_else() -> None:
    found = names(ModelClass.TRANSFORMER)

    assert "openvino-int8-no-model-type" in found
    assert "onnxruntime-int8-static-all-ops" in found
    assert "onnxruntime-int8-dynamic-per-tensor" in found
    assert found.index("openvino-int8") < found.index("openvino-int8-no-model-type")


@pytest.mark.parametrize("model_class", NETWORKS)
def test_dynamic_int8_is_tried_with_every_network(model_class: ModelClass) -> None:
    assert "onnxruntime-int8-dynamic" in names(model_class)


@pytest.mark.parametrize("model_class", NETWORKS)
def test_what_only_makes_a_file_smaller_comes_last(model_class: ModelClass) -> None:
    assert names(model_class)[-2:] == ["openvino-fp16-weights", "openvino-int8-weights"]


def test_trees_are_not_rounded() -> None:
    assert names(ModelClass.TREES) == [BASELINE, "onnxruntime-fp32-served"]


def test_a_model_that_is_no_onnx_has_none() -> None:
    assert recipes_for(ModelClass.OTHER, "torchscript", AMX) == ()


def test_weights_of_seven_bits_are_tried_where_eight_may_overflow() -> None:
    reduced = "onnxruntime-int8-dynamic-reduced"

    assert reduced in names(ModelClass.TRANSFORMER, OLD)
    assert reduced not in names(ModelClass.TRANSFORMER, AMX)
    assert reduced not in names(ModelClass.TRANSFORMER, ("asimd", "bf16", "i8mm"))


def test_a_precision_that_the_processor_lacks_says_so(tmp_path: Path) -> None:
    assert "no instructions for BF16" in inapplicable_reason(tmp_path, "openvino-bf16", OLD)
    assert "no instructions for FP16" in inapplicable_reason(tmp_path, "openvino-fp16", OLD)


@pytest.mark.parametrize(
    "name", ["openvino-int8", "onnxruntime-int8-static", "onnxruntime-int8-static-all-ops"]
)
def test_without_examples_nothing_is_calibrated(tmp_path: Path, name: str) -> None:
    pytest.importorskip("nncf", reason="needs the extra `optimize`")

    assert "needs calibration examples" in inapplicable_reason(tmp_path, name)


@pytest.mark.parametrize("name", ["onnxruntime-gpu-fp16", "onnxruntime-tensorrt-int8"])
def test_a_gpu_is_needed_for_what_is_made_for_one(tmp_path: Path, name: str) -> None:
    import onnxruntime  # noqa: PLC0415

    if set(onnxruntime.get_available_providers()) & {
        "CUDAExecutionProvider",
        "TensorrtExecutionProvider",
    }:
        pytest.skip("this ONNX Runtime is for GPUs")

    assert "which this build of ONNX Runtime lacks" in inapplicable_reason(tmp_path, name)
