"""Small OpenVINO models, made by OpenVINO; skips the test where it is not installed."""

from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import pytest

from headrace.core import Array, FailedPreconditionError
from headrace.runtimes.openvino import import_openvino

WEIGHTS: Final[Array] = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)


def library() -> ModuleType:
    """OpenVINO."""
    try:
        return import_openvino()
    except FailedPreconditionError as error:
        pytest.skip(str(error))


def expected(rows: Array) -> Array:
    """What `perceptron` answers, in doubles."""
    powers = np.exp(rows.astype(np.float64) @ WEIGHTS)
    answer: Array = powers / powers.sum(axis=1, keepdims=True)
    return answer


def perceptron(folder: Path, *, rows: int = -1, precision: str = "") -> Path:
    """softmax(x @ WEIGHTS), and the largest class; an IR with the suffix `.xml`."""
    ov: Any = library()
    x = _input(ov, [rows, 16], ov.Type.f32, "x")
    op = ov.opset13
    soft = op.softmax(op.matmul(x, op.constant(WEIGHTS), transpose_a=False, transpose_b=False), 1)
    best = op.topk(soft, op.constant(1), 1, "max", "value").output(1)
    best = op.squeeze(best, op.constant([1]))
    model = ov.Model([_output(ov, soft, "y"), _output(ov, best, "label")], [x], "perceptron")
    if precision:
        model.set_rt_info(precision, ["runtime_options", "INFERENCE_PRECISION_HINT"])
    return _save(ov, model, folder, "perceptron")


def eight_bits(folder: Path) -> Path:
    """x @ ones in eight bits, whose sums are larger than what a processor without VNNI can hold."""
    ov: Any = library()
    op = ov.opset13
    x = _input(ov, [-1, 64], ov.Type.f32, "x")

    def quantised(value: Any, low: float, levels: int) -> Any:  # noqa: ANN401  # ships no types
        bounds = [op.constant(np.float32(bound)) for bound in (low, 1.0, low, 1.0)]
        return op.fake_quantize(value, *bounds, levels)

    weights = quantised(op.constant(np.ones((64, 8), np.float32)), -1.0, 255)
    y = op.matmul(quantised(x, 0.0, 256), weights, transpose_a=False, transpose_b=False)
    return _save(ov, ov.Model([_output(ov, y, "y")], [x], "eight_bits"), folder, "eight_bits")


def total(folder: Path) -> Path:
    """A running sum over axis 0: rows depend on each other."""
    ov: Any = library()
    x = _input(ov, [-1, 2], ov.Type.f32, "x")
    summed = ov.opset13.cumsum(x, ov.opset13.constant(0))
    return _save(ov, ov.Model([_output(ov, summed, "y")], [x], "total"), folder, "total")


def counter(folder: Path) -> Path:
    """Adds what came before to its input: a model that keeps a state between runs."""
    ov: Any = library()
    x = _input(ov, [1, 2], ov.Type.f32, "x")
    op = ov.opset13
    kept = op.read_value(op.constant(np.zeros((1, 2), np.float32)), "kept")
    summed = op.add(x, kept)
    store = op.assign(summed, "kept")
    model = ov.Model([_output(ov, summed, "y")], [store], [x], "counter")
    return _save(ov, model, folder, "counter")


def attention(folder: Path) -> Path:
    """Two heads of attention over sequences of any length."""
    ov: Any = library()
    op = ov.opset13
    x = _input(ov, [-1, -1, 16], ov.Type.f32, "x")
    rng = np.random.default_rng(0)

    def heads() -> Any:  # noqa: ANN401  # ships no types
        weights = op.constant(rng.normal(size=(16, 16)).astype(np.float32))
        split = op.reshape(
            op.matmul(x, weights, transpose_a=False, transpose_b=False),
            op.constant([0, 0, 2, 8]),
            special_zero=True,
        )
        return op.transpose(split, op.constant([0, 2, 1, 3]))

    scores = op.multiply(
        op.matmul(heads(), heads(), transpose_a=False, transpose_b=True),
        op.constant(np.float32(0.35)),
    )
    mixed = op.matmul(op.softmax(scores, 3), heads(), transpose_a=False, transpose_b=False)
    y = op.transpose(mixed, op.constant([0, 2, 1, 3]))
    return _save(ov, ov.Model([_output(ov, y, "y")], [x], "attention"), folder, "attention")


def twice(folder: Path, *sizes: int) -> Path:
    """x + x of any shape; without sizes, of a constant, and so without an input."""
    ov: Any = library()
    x = _input(ov, list(sizes), ov.Type.f32, "x") if sizes else ov.opset13.constant(np.ones(2))
    model = ov.Model([_output(ov, ov.opset13.add(x, x), "y")], [x] if sizes else [], "twice")
    return _save(ov, model, folder, "twice")


TYPES: Final = ("boolean", "u8", "i8", "i32", "i64", "f16", "f64")


def kinds(folder: Path, *types: str) -> Path:
    """One input and output of each of several types."""
    ov: Any = library()
    types = types or TYPES
    inputs = [_input(ov, [-1, 2], getattr(ov.Type, one), f"in_{one}") for one in types]
    results = [
        _output(ov, ov.opset13.concat([x, x], 1), f"out_{one}")
        for x, one in zip(inputs, types, strict=True)
    ]
    return _save(ov, ov.Model(results, inputs, "kinds"), folder, "kinds")


def _input(ov: Any, shape: list[int], kind: Any, name: str) -> Any:  # noqa: ANN401  # ships no types
    node = ov.opset13.parameter(shape, kind, name=name)
    node.output(0).set_names({name})
    return node


def _output(ov: Any, value: Any, name: str) -> Any:  # noqa: ANN401  # ships no types
    result = ov.opset13.result(value)
    result.output(0).set_names({name})
    return result


def _save(ov: Any, model: Any, folder: Path, name: str) -> Path:  # noqa: ANN401  # ships no types
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.xml"
    ov.save_model(model, path, compress_to_fp16=False)
    return path
