"""Small TFLite files, written with LiteRT's schema; skips the test where it is not installed."""

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np
import pytest

from headrace.core import Array

WEIGHTS: Final[Array] = np.random.default_rng(1).normal(size=(3, 4)).astype(np.float32)
BIAS: Final[Array] = np.random.default_rng(2).normal(size=3).astype(np.float32)
SCALE: Final = 0.05


def library() -> ModuleType:
    """LiteRT's schema."""
    reason = "needs ai_edge_litert: pip install 'headrace[tflite]'"
    module: ModuleType = pytest.importorskip("ai_edge_litert.schema_py_generated", reason=reason)
    return module


def expected(rows: Array) -> Array:
    """What `perceptron` answers, in doubles."""
    powers = np.exp(rows.astype(np.float64) @ WEIGHTS.T + BIAS)
    answer: Array = powers / powers.sum(axis=1, keepdims=True)
    return answer


def perceptron(*, rows: int = -1, signature: bool = True) -> Any:  # noqa: ANN401  # ships no types
    """softmax(x @ WEIGHTS.T + BIAS); `rows` is the size of axis 0 that it declares."""
    schema: Any = library()
    kind = schema.TensorType.FLOAT32
    tensors = [
        tensor("ask_x:0", (1, 4), kind, declared=(rows, 4)),
        tensor("w", (3, 4), kind, buffer=1),
        tensor("b", (3,), kind, buffer=2),
        tensor("sum", (1, 3), kind, declared=(rows, 3)),
        tensor("call:0", (1, 3), kind, declared=(rows, 3)),
    ]
    dense = schema.FullyConnectedOptionsT()
    soft = schema.SoftmaxOptionsT()
    soft.beta = 1.0
    operators = [
        operator(0, (0, 1, 2), (3,), dense, schema.BuiltinOptions.FullyConnectedOptions),
        operator(1, (3,), (4,), soft, schema.BuiltinOptions.SoftmaxOptions),
    ]
    codes = (schema.BuiltinOperator.FULLY_CONNECTED, schema.BuiltinOperator.SOFTMAX)
    made = model([graph(tensors, operators, (0,), (4,))], codes, [WEIGHTS, BIAS])
    if signature:
        made.signatureDefs = [_signature({"x": 0}, {"y": 4})]
    return made


def quantised() -> Any:  # noqa: ANN401  # ships no types
    """A rectifier of eight bits, as quantised networks consist of."""
    schema: Any = library()
    kind = schema.TensorType.INT8
    ends = [tensor(name, (1, 4), kind, declared=(-1, 4), scale=SCALE) for name in ("x", "y")]
    return model(
        [graph(ends, [operator(0, (0,), (1,))], (0,), (1,))], (schema.BuiltinOperator.RELU,)
    )


def composite() -> Any:  # noqa: ANN401  # ships no types
    """A graph with an operator that consists of the graph itself."""
    schema: Any = library()
    kind = schema.TensorType.FLOAT32
    made = operator(0, (0,), (1,))
    made.builtinOptions2 = schema.StableHLOCompositeOptionsT()
    made.builtinOptions2Type = schema.BuiltinOptions2.StableHLOCompositeOptions
    ends = [tensor(name, (1,), kind) for name in ("x", "y")]
    code = schema.BuiltinOperator.STABLEHLO_COMPOSITE
    return model([graph(ends, [made], (0,), (1,))], (code,))


def looping(*, body: int = 2) -> Any:  # noqa: ANN401  # ships no types
    """Two graphs, each with a loop whose body is the graph `body`."""
    schema: Any = library()
    kind = schema.TensorType.FLOAT32
    options = schema.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = 1, body
    loop = operator(0, (0,), (1,), options, schema.BuiltinOptions.WhileOptions)
    ends = [tensor(name, (1,), kind) for name in ("x", "y")]
    ask = [ends[0], tensor("always", (1,), schema.TensorType.BOOL, buffer=1)]
    graphs = [
        graph(ends, [loop], (0,), (1,)),
        graph(ask, [], (0,), (1,)),
        graph(ends, [loop], (0,), (1,)),
    ]
    return model(graphs, (schema.BuiltinOperator.WHILE,), [np.ones(1, np.bool_)])


def tensor(
    name: str,
    shape: Sequence[int],
    kind: int,
    *,
    buffer: int = 0,
    declared: Sequence[int] = (),
    scale: float = 0.0,
) -> Any:  # noqa: ANN401  # ships no types
    schema: Any = library()
    made = schema.TensorT()
    made.name, made.shape, made.type, made.buffer = name.encode(), list(shape), kind, buffer
    if declared:
        made.shapeSignature = list(declared)
    if scale:
        made.quantization = schema.QuantizationParametersT()
        made.quantization.scale, made.quantization.zeroPoint = [scale], [3]
    return made


def operator(
    code: int,
    takes: Sequence[int],
    gives: Sequence[int],
    options: Any = None,  # noqa: ANN401  # ships no types
    kind: int = 0,
) -> Any:  # noqa: ANN401  # ships no types
    schema: Any = library()
    made = schema.OperatorT()
    made.opcodeIndex, made.inputs, made.outputs = code, list(takes), list(gives)
    made.builtinOptions, made.builtinOptionsType = options, kind
    return made


def graph(
    tensors: Sequence[Any], operators: Sequence[Any], inputs: Sequence[int], outputs: Sequence[int]
) -> Any:  # noqa: ANN401  # ships no types
    schema: Any = library()
    made = schema.SubGraphT()
    made.tensors, made.operators = list(tensors), list(operators)
    made.inputs, made.outputs = list(inputs), list(outputs)
    return made


def model(graphs: Sequence[Any], codes: Sequence[int], weights: Sequence[Array] = ()) -> Any:  # noqa: ANN401
    schema: Any = library()
    made = schema.ModelT()
    made.version, made.subgraphs, made.operatorCodes, made.buffers = 3, list(graphs), [], []
    for one in codes:
        code = schema.OperatorCodeT()
        code.builtinCode, code.deprecatedBuiltinCode, code.version = one, min(one, 127), 1
        made.operatorCodes.append(code)
    for data in (b"", *(array.tobytes() for array in weights)):
        buffer = schema.BufferT()
        buffer.data = list(data) or None
        made.buffers.append(buffer)
    return made


def write(path: Path, made: Any) -> Path:  # noqa: ANN401  # ships no types
    """The model as a file."""
    import flatbuffers  # noqa: PLC0415  # comes with LiteRT

    builder = flatbuffers.Builder(1024)
    builder.Finish(made.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return path


def _signature(inputs: dict[str, int], outputs: dict[str, int]) -> Any:  # noqa: ANN401  # ships no types
    schema: Any = library()
    made = schema.SignatureDefT()
    made.signatureKey = b"serving_default"
    for side, names in (("inputs", inputs), ("outputs", outputs)):
        maps = []
        for name, number in names.items():
            one = schema.TensorMapT()
            one.name, one.tensorIndex = name.encode(), number
            maps.append(one)
        setattr(made, side, maps)
    return made
