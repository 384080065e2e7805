"""Small models built in code, each with one property that models can have.

Weights are seeded random numbers: the models are for tests and benchmarks, not for examples. Each
builder returns the bytes of an `.onnx` file, or the text of a Python model. Needs the `onnx`
package.

    python -m headrace.testing.models OUT_DIR [NAME ...]

writes `mlp.onnx`, or the named models.
"""

import sys
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headrace.core import Array

_OPSET: Final = 17
_IR_VERSION: Final = 8

FLOAT: Final[int] = TensorProto.FLOAT
INT64: Final[int] = TensorProto.INT64
STRING: Final[int] = TensorProto.STRING

Shape = Sequence[int | str | None]
Value = tuple[str, int, Shape]
"""Name, element type (an `onnx.TensorProto` number) and shape of an input or output."""
Node = tuple[str, Sequence[str], Sequence[str], dict[str, Any]]
"""Operator, inputs, outputs and attributes."""


def build(
    nodes: Sequence[Node],
    inputs: Sequence[Value],
    outputs: Sequence[Value],
    weights: dict[str, Array] | None = None,
) -> bytes:
    """Return an ONNX model of these nodes."""
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes],
        "model",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
    )
    opset = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())


def mlp(*, features: int = 32, hidden: int = 64, classes: int = 2, seed: int = 20240) -> bytes:
    """Return a perceptron of three layers (26 kB): `input` FP32 [N, 32] to `prob` FP32 [N, 2]."""
    rng = np.random.default_rng(seed)
    sizes = (features, hidden, hidden, classes)
    weights: dict[str, Array] = {}
    nodes: list[Node] = []
    before = "input"
    for i, (rows, columns) in enumerate(pairwise(sizes)):
        scale = np.float32(1 / np.sqrt(rows))
        weights[f"w{i}"] = rng.standard_normal((rows, columns), dtype=np.float32) * scale
        weights[f"b{i}"] = rng.standard_normal(columns, dtype=np.float32) * np.float32(0.1)
        nodes.append(("Gemm", [before, f"w{i}", f"b{i}"], [f"h{i}"], {}))
        before = f"h{i}"
        if columns != classes:
            nodes.append(("Relu", [before], [f"r{i}"], {}))
            before = f"r{i}"
    nodes.append(("Softmax", [before], ["prob"], {"axis": -1}))
    return build(
        nodes, [("input", FLOAT, ["N", features])], [("prob", FLOAT, ["N", classes])], weights
    )


def matmul(*, features: int = 4, columns: int = 3, seed: int = 1) -> bytes:
    """Return the smallest batched model: `x` FP32 [N, 4] to `y` FP32 [N, 3]."""
    w = np.random.default_rng(seed).standard_normal((features, columns), dtype=np.float32)
    return build(
        [("MatMul", ["x", "w"], ["y"], {})],
        [("x", FLOAT, ["N", features])],
        [("y", FLOAT, ["N", columns])],
        {"w": w},
    )


def two_outputs() -> bytes:
    """Return a model of two inputs and outputs: `a`, `b` [N, 2] to `sum`, `product` [N, 2]."""
    return build(
        [("Add", ["a", "b"], ["sum"], {}), ("Mul", ["a", "b"], ["product"], {})],
        [("a", FLOAT, ["N", 2]), ("b", FLOAT, ["N", 2])],
        [("sum", FLOAT, ["N", 2]), ("product", FLOAT, ["N", 2])],
    )


def encoder(
    *, vocabulary: int = 50, width: int = 8, uses_mask: bool = True, seed: int = 3
) -> bytes:
    """Return a small transformer layer with inputs of variable length.

    `input_ids` and `attention_mask` INT64 [N, S] to `tokens` FP32 [N, S, width] and `embedding`
    FP32 [N, width], the mean over tokens. With `uses_mask`, padding does not change the outputs of
    real tokens; without it, the mask is read and ignored, as in some incorrect exports.
    """
    rng = np.random.default_rng(seed)
    attend = "mask" if uses_mask else "ones"
    nodes: list[Node] = [
        ("Gather", ["table", "input_ids"], ["e"], {}),
        ("Cast", ["attention_mask"], ["mask"], {"to": FLOAT}),
        ("Mul", ["mask", "zero"], ["zeros"], {}),
        ("Add", ["zeros", "one"], ["ones"], {}),
        ("Sub", [attend, "one"], ["absent"], {}),  # 0 where attended, -1 where not
        ("Mul", ["absent", "large"], ["bias2"], {}),
        ("Unsqueeze", ["bias2", "axis1"], ["bias"], {}),  # [N, 1, S]
        ("Transpose", ["e"], ["et"], {"perm": [0, 2, 1]}),
        ("MatMul", ["e", "et"], ["scores"], {}),  # [N, S, S]
        ("Add", ["scores", "bias"], ["masked"], {}),
        ("Softmax", ["masked"], ["weights"], {"axis": -1}),
        ("MatMul", ["weights", "e"], ["context"], {}),
        ("Add", ["context", "e"], ["tokens"], {}),
        ("Unsqueeze", [attend, "axis2"], ["column"], {}),  # [N, S, 1]
        ("Mul", ["tokens", "column"], ["kept"], {}),
        ("ReduceSum", ["kept", "axis1"], ["total"], {"keepdims": 0}),
        ("ReduceSum", ["column", "axis1"], ["count"], {"keepdims": 0}),
        ("Div", ["total", "count"], ["embedding"], {}),
    ]
    return build(
        nodes,
        [("input_ids", INT64, ["N", "S"]), ("attention_mask", INT64, ["N", "S"])],
        [("tokens", FLOAT, ["N", "S", width]), ("embedding", FLOAT, ["N", width])],
        {
            "table": rng.standard_normal((vocabulary, width), dtype=np.float32),
            "zero": np.array(0, np.float32),
            "one": np.array(1, np.float32),
            "large": np.array(1e9, np.float32),
            "axis1": np.array([1], np.int64),
            "axis2": np.array([2], np.int64),
        },
    )


def image(*, classes: int = 5, size: int | None = None, seed: int = 5) -> bytes:
    """Return a small convolution net: `image` FP32 [N, 3, H, W] to `logits` FP32 [N, classes].

    `size` fixes H and W; the stride of 8 makes sizes under 8 fail, as real backbones do.
    """
    rng = np.random.default_rng(seed)
    sides: list[int | str | None] = ["H", "W"] if size is None else [size, size]
    return build(
        [
            ("Conv", ["image", "k"], ["c"], {"strides": [8, 8]}),
            ("Relu", ["c"], ["r"], {}),
            ("GlobalAveragePool", ["r"], ["p"], {}),
            ("Flatten", ["p"], ["f"], {}),
            ("Gemm", ["f", "w"], ["logits"], {}),
        ],
        [("image", FLOAT, ["N", 3, *sides])],
        [("logits", FLOAT, ["N", classes])],
        {
            "k": rng.standard_normal((4, 3, 8, 8), dtype=np.float32),
            "w": rng.standard_normal((4, classes), dtype=np.float32),
        },
    )


def strings() -> bytes:
    """Return a model that returns its text: `text` BYTES [N, 1] to `echo` BYTES [N, 1]."""
    return build(
        [("Identity", ["text"], ["echo"], {})],
        [("text", STRING, ["N", 1])],
        [("echo", STRING, ["N", 1])],
    )


def unbatched() -> bytes:
    """Return a model without a batch axis: `x` FP32 [3, 2] to `total` FP32 [2]."""
    return build(
        [("ReduceSum", ["x", "axis"], ["total"], {"keepdims": 0})],
        [("x", FLOAT, [3, 2])],
        [("total", FLOAT, [2])],
        {"axis": np.array([0], np.int64)},
    )


def scalar() -> bytes:
    """Return a model with a batched input and a scalar output: `x` [N, 2] to `total` FP32 []."""
    return build(
        [("ReduceSum", ["x"], ["total"], {"keepdims": 0})],
        [("x", FLOAT, ["N", 2])],
        [("total", FLOAT, [])],
    )


def cumulative() -> bytes:
    """Return a model with dependent rows: row i of `y` FP32 [N, 4] is the sum of `x` up to i."""
    return build(
        [("CumSum", ["x", "axis"], ["y"], {})],
        [("x", FLOAT, ["N", 4])],
        [("y", FLOAT, ["N", 4])],
        {"axis": np.array(0, np.int64)},
    )


def softmax_over_rows() -> bytes:
    """Return a model with dependent rows: a softmax along axis 0 of `x` FP32 [N, 4]."""
    return build(
        [("Softmax", ["x"], ["y"], {"axis": 0})],
        [("x", FLOAT, ["N", 4])],
        [("y", FLOAT, ["N", 4])],
    )


def two_lengths() -> bytes:
    """Return a model with two distinct variable axes: `a` [N, 3], `b` [M, 3] to `y` [N, M]."""
    return build(
        [("Transpose", ["b"], ["bt"], {"perm": [1, 0]}), ("MatMul", ["a", "bt"], ["y"], {})],
        [("a", FLOAT, ["N", 3]), ("b", FLOAT, ["M", 3])],
        [("y", FLOAT, ["N", "M"])],
    )


def lookup(*, entries: int = 4) -> bytes:
    """Return a model that fails for `index` INT64 [N] from `entries` on: to `value` FP32 [N, 2]."""
    table = np.arange(entries * 2, dtype=np.float32).reshape(entries, 2)
    return build(
        [("Gather", ["table", "index"], ["value"], {})],
        [("index", INT64, ["N"])],
        [("value", FLOAT, ["N", 2])],
        {"table": table},
    )


def wrong_declaration() -> bytes:
    """Return a model that declares `label` [1] and returns [N], as converted LightGBM models do."""
    return build(
        [("ArgMax", ["x"], ["label"], {"axis": 1, "keepdims": 0})],
        [("x", FLOAT, [None, 3])],
        [("label", INT64, [1])],
    )


def sequence_output() -> bytes:
    """Return a model with a sequence output, which the protocol lacks (as ZipMap classifiers)."""
    graph = helper.make_graph(
        [helper.make_node("SequenceConstruct", ["x"], ["parts"])],
        "model",
        [helper.make_tensor_value_info("x", FLOAT, ["N", 2])],
        [helper.make_tensor_sequence_value_info("parts", FLOAT, None)],
    )
    opset = [helper.make_opsetid("", _OPSET)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=_IR_VERSION)
    return bytes(model.SerializeToString())


def typed(element_type: int) -> bytes:
    """Return a model that copies `x` [N, 2] of an `onnx.TensorProto` element type to `y`."""
    return build(
        [("Identity", ["x"], ["y"], {})],
        [("x", element_type, ["N", 2])],
        [("y", element_type, ["N", 2])],
    )


def write_external(directory: Path, *, seed: int = 1) -> Path:
    """Write `matmul` with weights in a second file, as exports above 2 GB; return its path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "model.onnx"
    onnx.save_model(
        onnx.load_model_from_string(matmul(features=64, columns=64, seed=seed)),
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location="weights.bin",
        size_threshold=0,
    )
    return path


def python_double(*, delay_s: float = 0.0, concurrent: bool = False) -> str:
    """Return the text of a Python model: `x` FP32 [N, 2] to `y`, twice as much, after `delay_s`."""
    return f"""\
import time

import numpy as np


class Double:
    inputs = {{"x": ("FP32", [-1, 2])}}
    outputs = {{"y": ("FP32", [-1, 2])}}
    batched = True
    concurrent = {concurrent}

    def infer(self, inputs):
        time.sleep({delay_s})
        return {{"y": inputs["x"] * np.float32(2)}}
"""


ONNX_MODELS: Final[dict[str, Callable[[], bytes]]] = {
    "mlp": mlp,
    "matmul": matmul,
    "two_outputs": two_outputs,
    "encoder": encoder,
    "image": image,
    "strings": strings,
    "unbatched": unbatched,
    "scalar": scalar,
    "cumulative": cumulative,
    "softmax_over_rows": softmax_over_rows,
    "two_lengths": two_lengths,
    "lookup": lookup,
    "wrong_declaration": wrong_declaration,
    "sequence_output": sequence_output,
}
"""All builders that need no arguments, by name."""


def write(directory: Path, *names: str) -> list[Path]:
    """Write the named models as `NAME.onnx`; return their paths."""
    directory.mkdir(parents=True, exist_ok=True)
    paths = [directory / f"{name}.onnx" for name in names]
    for name, path in zip(names, paths, strict=True):
        path.write_bytes(ONNX_MODELS[name]())
    return paths


def _main(arguments: Sequence[str]) -> int:
    unknown = sorted(set(arguments[1:]) - set(ONNX_MODELS))
    if not arguments or unknown:
        for name in unknown:
            print(f"no model '{name}'; there are {', '.join(ONNX_MODELS)}", file=sys.stderr)  # noqa: T201  # output of a command
        print("usage: python -m headrace.testing.models OUT_DIR [NAME ...]", file=sys.stderr)  # noqa: T201  # output of a command
        return 2
    for path in write(Path(arguments[0]), *(arguments[1:] or ["mlp"])):
        print(path)  # noqa: T201  # output of a command
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
