"""What each recipe makes loads, is called as its source is, and answers nearly the same."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from headrace.core import Array, Tensors
from headrace.optimize.candidate import (
    Candidate,
    CannotBuildError,
    ModelClass,
    Recipe,
    RecipeContext,
)
from headrace.optimize.recipes import recipes_for
from headrace.optimize.recipes.onnx_int8 import HALF, static_int8
from headrace.runtimes import LoadOptions, load_model
from headrace.testing.models import FLOAT, build, mlp, strings, typed, write_external
from tests.network_models import conv_net, encoder_layer, images, sentences, write

pytest.importorskip("nncf", reason="needs the extra `optimize`")
pytestmark = pytest.mark.slow

FEATURES = ("avx512_vnni", "avx512_bf16", "avx512_fp16")
EXAMPLES = 8
CPU = LoadOptions(device="cpu")
NETWORKS: dict[ModelClass, tuple[Callable[[], bytes], Callable[[int], list[Tensors]]]] = {
    ModelClass.TRANSFORMER: (encoder_layer, sentences),
    ModelClass.CONV_NET: (conv_net, images),
}
NAMES = [
    (model_class, recipe.name)
    for model_class in NETWORKS
    for recipe in recipes_for(model_class, "onnx", FEATURES)
    if "gpu" not in recipe.name and "tensorrt" not in recipe.name
]


def recipe_of(model_class: ModelClass, name: str) -> Recipe:
    return next(one for one in recipes_for(model_class, "onnx", FEATURES) if one.name == name)


def context(
    folder: Path,
    model: bytes | Path,
    calibration: Sequence[Tensors],
    model_class: ModelClass = ModelClass.OTHER,
) -> RecipeContext:
    made = folder / "made"
    made.mkdir(exist_ok=True)
    return RecipeContext(
        source=write(folder, model) if isinstance(model, bytes) else model,
        runtime="onnx",
        model_class=model_class,
        folder=made,
        calibration=calibration,
        threads=1,
        seed=0,
        deadline=float("inf"),
    )


def answers(path: Path, runtime: str, requests: Sequence[Tensors]) -> Array:
    model = load_model(path, runtime, CPU)
    try:
        return np.concatenate([next(iter(model.run(one).values())) for one in requests])
    finally:
        model.close()


def agreement(candidate: Candidate, at: RecipeContext) -> float:
    """The correlation of its answers with the source's."""
    want = answers(at.source, at.runtime, at.calibration)
    got = answers(candidate.path, candidate.runtime, at.calibration)
    return float(np.corrcoef(want.ravel(), got.ravel())[0, 1])


Built = tuple[RecipeContext, Sequence[Candidate]]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[ModelClass, str], Built]:
    """What a recipe makes of a network, made once."""

    @cache
    def build_once(model_class: ModelClass, name: str) -> Built:
        model, requests = NETWORKS[model_class]
        folder = tmp_path_factory.mktemp("built")
        at = context(folder, model(), requests(EXAMPLES), model_class)
        recipe = recipe_of(model_class, name)
        assert recipe.inapplicable_reason(at) == ""
        return at, recipe.build(at)

    return build_once


@pytest.mark.parametrize(("model_class", "name"), NAMES)
def test_each_candidate_answers_nearly_as_its_source(
    built: Callable[[ModelClass, str], Built], model_class: ModelClass, name: str
) -> None:
    at, made = built(model_class, name)

    wanted = load_model(at.source, "onnx", CPU).signature
    for candidate in made:
        found = load_model(candidate.path, candidate.runtime, CPU).signature
        assert candidate.name.startswith(name)
        assert {one.name for one in found.inputs} == {one.name for one in wanted.inputs}
        assert {one.name for one in found.outputs} == {one.name for one in wanted.outputs}
        assert candidate.recipe["what"]
        assert agreement(candidate, at) > (0.9 if "int8" in name else 0.999)
    beside = sorted(file.name for file in at.source.parent.iterdir())
    assert beside == ["made", "source.onnx"]


def test_int8_by_nncf_is_run_in_two_ways_where_there_is_bf16(
    built: Callable[[ModelClass, str], Built],
) -> None:
    _, (plain, mixed) = built(ModelClass.TRANSFORMER, "openvino-int8")

    assert (plain.name, plain.tuning.precision) == ("openvino-int8", "f32")
    assert (mixed.name, mixed.tuning.precision) == ("openvino-int8-bf16", "bf16")
    assert plain.path == mixed.path


def test_nncf_is_told_of_a_transformer_but_in_the_trap(
    built: Callable[[ModelClass, str], Built],
) -> None:
    told = {
        (model_class, name): built(model_class, name)[1][0].recipe["model_type"]
        for model_class, name in NAMES
        if name in {"openvino-int8", "openvino-int8-no-model-type"}
    }

    assert told == {
        (ModelClass.TRANSFORMER, "openvino-int8"): "transformer",
        (ModelClass.TRANSFORMER, "openvino-int8-no-model-type"): "not told",
        (ModelClass.CONV_NET, "openvino-int8"): "not told",
    }


def test_int8_is_made_the_same_each_time(
    tmp_path: Path, built: Callable[[ModelClass, str], Built]
) -> None:
    _, (before, *_) = built(ModelClass.CONV_NET, "openvino-int8")

    at = context(tmp_path, conv_net(), images(EXAMPLES), ModelClass.CONV_NET)
    again, *_ = recipe_of(ModelClass.CONV_NET, "openvino-int8").build(at)

    # Beside its numbers an IR has layers' names, which OpenVINO counts up through a process.
    one, two = (made.path.with_suffix(".bin").read_bytes() for made in (before, again))
    assert one == two


def test_quantizers_say_nothing_and_leave_logging_as_it_was(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    at = context(tmp_path, conv_net(), images(EXAMPLES), ModelClass.CONV_NET)
    before = (logging.getLoggerClass(), list(logging.getLogger().handlers))

    for name in ("openvino-int8", "openvino-int8-weights", "onnxruntime-int8-static"):
        recipe_of(ModelClass.CONV_NET, name).build(at)

    assert capfd.readouterr() == ("", "")
    assert not [one for one in caplog.records if one.name in {"root", "nncf"}]
    assert before == (logging.getLoggerClass(), list(logging.getLogger().handlers))


def test_int8_makes_the_file_a_quarter_as_large(tmp_path: Path) -> None:
    at = context(tmp_path, mlp(hidden=256), [])

    (made,) = recipe_of(ModelClass.OTHER, "onnxruntime-int8-dynamic").build(at)

    assert made.path.stat().st_size < 0.3 * at.source.stat().st_size


def test_weights_in_another_file_are_taken_along(tmp_path: Path) -> None:
    source = write_external(tmp_path / "model")
    rng = np.random.default_rng(0)
    rows: list[Tensors] = [{"x": rng.normal(size=(1, 64)).astype(np.float32)} for _ in range(4)]
    for name in ("onnxruntime-int8-dynamic", "openvino-fp32"):
        at = context(tmp_path, source, rows)
        (made,) = recipe_of(ModelClass.OTHER, name).build(at)

        assert agreement(made, at) > 0.9


def rows_of(size: int) -> list[Tensors]:
    rng = np.random.default_rng(2)
    return [{"x": rng.normal(size=(1, size)).astype(np.float32)} for _ in range(EXAMPLES)]


def test_a_bias_of_one_row_is_no_obstacle(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.normal(size=(8, 4)), "b": rng.normal(size=(1, 4))}
    model = build(
        [("Gemm", ["x", "w", "b"], ["y"], {})],
        [("x", FLOAT, ["N", 8])],
        [("y", FLOAT, ["N", 4])],
        {name: array.astype(np.float32) for name, array in weights.items()},
    )
    at = context(tmp_path, model, rows_of(8))

    (made,) = recipe_of(ModelClass.OTHER, "onnxruntime-int8-static").build(at)

    assert agreement(made, at) > 0.9


def test_operators_of_2018_are_brought_up_to_date(tmp_path: Path) -> None:
    import onnx  # noqa: PLC0415

    model = onnx.load_model_from_string(conv_net())
    model.opset_import[0].version = 11
    at = context(tmp_path, model.SerializeToString(), images(EXAMPLES), ModelClass.CONV_NET)

    (made,) = recipe_of(ModelClass.CONV_NET, "onnxruntime-int8-static").build(at)

    assert agreement(made, at) > 0.9
    assert [file.name for file in at.folder.iterdir()] == ["model.onnx"]


def test_what_is_made_for_a_gpu_is_called_as_its_source(tmp_path: Path) -> None:
    at = context(tmp_path, encoder_layer(), sentences(EXAMPLES), ModelClass.TRANSFORMER)
    signed = static_int8("signed", "Signed", ("MatMul",), signed=True)

    (half,) = HALF.build(at)
    assert agreement(half, at) > 0.999
    (rounded,) = signed.build(at)
    assert agreement(rounded, at) > 0.9


INT8 = [
    "onnxruntime-int8-dynamic",
    "onnxruntime-int8-static",
    "openvino-int8",
    "openvino-int8-weights",
]


@pytest.mark.parametrize("name", INT8)
def test_what_is_quantized_is_not_quantized_again(tmp_path: Path, name: str) -> None:
    at = context(tmp_path, mlp(), [])
    (made,) = recipe_of(ModelClass.OTHER, "onnxruntime-int8-dynamic").build(at)
    rows: list[Tensors] = [{"input": np.zeros((1, 32), np.float32)}]
    again = replace(at, source=made.path, calibration=rows)

    with pytest.raises(CannotBuildError, match="is already quantized"):
        recipe_of(ModelClass.OTHER, name).build(again)


@pytest.mark.parametrize("name", INT8)
def test_what_holds_numbers_of_16_bits_is_refused(tmp_path: Path, name: str) -> None:
    at = context(tmp_path, mlp(), [{"input": np.zeros((1, 32), np.float32)}])
    (half,) = HALF.build(at)

    with pytest.raises(CannotBuildError, match="32-bit weights; export it as FP32"):
        recipe_of(ModelClass.OTHER, name).build(replace(at, source=half.path))


@pytest.mark.parametrize("name", ["openvino-fp32", "openvino-int8", "openvino-int8-weights"])
def test_openvino_is_not_asked_for_text(tmp_path: Path, name: str) -> None:
    at = context(tmp_path, strings(), [])

    with pytest.raises(CannotBuildError, match="takes text"):
        recipe_of(ModelClass.OTHER, name).build(at)


@pytest.mark.parametrize("name", ["onnxruntime-int8-dynamic", "onnxruntime-int8-static"])
def test_a_model_without_anything_to_round_is_refused(tmp_path: Path, name: str) -> None:
    at = context(tmp_path, typed(FLOAT), [{"x": np.zeros((1, 2), np.float32)}])

    with pytest.raises(CannotBuildError, match="no operators that the quantizer supports"):
        recipe_of(ModelClass.OTHER, name).build(at)


@pytest.mark.parametrize("name", [*INT8, "openvino-fp32"])
def test_a_damaged_file_is_a_reason_and_no_crash(tmp_path: Path, name: str) -> None:
    at = context(tmp_path, encoder_layer()[:-9], sentences(2))

    with pytest.raises(CannotBuildError, match=r"source\.onnx: ") as caught:
        recipe_of(ModelClass.OTHER, name).build(at)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [*INT8, "openvino-fp32"])
def test_an_operator_that_nobody_knows_is_a_reason(tmp_path: Path, name: str) -> None:
    model = build(
        [("Strange", ["x"], ["y"], {})], [("x", FLOAT, ["N", 2])], [("y", FLOAT, ["N", 2])]
    )
    at = context(tmp_path, model, [{"x": np.zeros((1, 2), np.float32)}])

    with pytest.raises(CannotBuildError, match="Strange"):
        recipe_of(ModelClass.OTHER, name).build(at)


@pytest.mark.parametrize("name", ["openvino-int8", "onnxruntime-int8-static"])
def test_examples_that_the_model_does_not_take_are_a_reason(tmp_path: Path, name: str) -> None:
    at = context(tmp_path, conv_net(), [{"picture": np.zeros((1, 3, 4, 4), np.float32)}])

    with pytest.raises(CannotBuildError, match="the model failed"):
        recipe_of(ModelClass.CONV_NET, name).build(at)
