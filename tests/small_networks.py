"""Small networks in ONNX with random weights, shaped as exporters write the large ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from headrace.core import Array, Tensors

WIDTH: Final = 16
HEADS: Final = 4
HIDDEN: Final = 24
CLASSES: Final = 3
CHANNELS: Final = 8
SIDE: Final = 6

Proto = Any  # onnx ships no types


class Writer:
    """Collects nodes and constants; a node is named by its first output."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[Proto] = []
        self.constants: dict[str, Array] = {}

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:  # noqa: ANN401  # as ONNX says
        """The first output; the others end in _1, _2."""
        name = f"{kind.lower()}{len(self.nodes)}"
        names = [name, *(f"{name}_{i}" for i in range(1, outputs))]
        domain = attributes.pop("domain", "")
        self.nodes.append(helper.make_node(kind, inputs, names, name, domain=domain, **attributes))
        return name

    def put(self, value: Array) -> str:
        name = f"constant{len(self.constants)}"
        self.constants[name] = value
        return name

    def ints(self, *values: int) -> str:
        return self.put(np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self.put(np.array(value, np.float32))

    def random(self, *shape: int) -> str:
        scale = 1 / np.sqrt(max(1, np.prod(shape[1:]) if len(shape) > 2 else shape[0]))
        return self.put((self.rng.normal(size=shape) * scale).astype(np.float32))

    def linear(self, x: str, inputs: int, outputs: int) -> str:
        product = self.op("MatMul", x, self.random(inputs, outputs))
        return self.op("Add", self.random(outputs), product)

    def norm(self, x: str) -> str:
        return self.op("LayerNormalization", x, self.random(WIDTH), self.random(WIDTH), axis=-1)

    def model(self, output: str, sizes: Sequence[Any], *, inner: Sequence[Any]) -> Proto:
        nodes = [*self.nodes, helper.make_node("Identity", [output], ["y"], "last")]
        graph = helper.make_graph(
            nodes,
            "small",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *inner])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", *sizes])],
            [numpy_helper.from_array(value, name) for name, value in self.constants.items()],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
        made = helper.make_model(graph, opset_imports=opsets, ir_version=8)
        onnx.checker.check_model(made)
        return made


def perceptron(activation: str = "Relu", hidden: int = HIDDEN) -> Proto:
    """`x` [N, 16] -> `y` [N, 3] with two hidden layers, as Gemm with weights like torch's."""
    net = Writer()
    x = net.op("Gemm", "x", net.random(hidden, WIDTH), net.random(hidden), transB=1)
    x = net.op(activation, x)
    x = net.op("Gemm", x, net.random(hidden, hidden), net.random(hidden))
    x = net.op(activation, x)
    x = net.op("Gemm", x, net.random(CLASSES, hidden), net.random(CLASSES), transB=1)
    return net.model(x, [CLASSES], inner=[WIDTH])


def with_label(model: Proto, *, first: bool) -> Proto:
    """`model` with the class of its scores `y` as another output `label` INT64 [N]."""
    labelled = type(model)()
    labelled.CopyFrom(model)
    graph = labelled.graph
    graph.node.append(helper.make_node("ArgMax", ["y"], ["label"], "label", axis=1, keepdims=0))
    outputs = [helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]), *graph.output]
    del graph.output[:]
    graph.output.extend(outputs if first else outputs[::-1])
    onnx.checker.check_model(labelled)
    return labelled


def encoder(*, shapes: str = "literal", gelu: str = "erf", layers: int = 1) -> Proto:
    """`x` [N, S, 16] -> `y` [N, 3]: encoder layers, the mean over S, and a head.

    Args:
        shapes: How heads are split: `literal` and `inferred` by constants, `sizes` and `open` by
            Concat of what is computed and of constants, `packed` from one matrix of three.
        gelu: `erf`, `tanh`, `fused` or `bias`.
    """
    net = Writer()
    x = "x"
    for _ in range(layers):
        attended = _packed(net, x) if shapes == "packed" else _attention(net, x, shapes)
        x = net.norm(net.op("Add", net.linear(attended, WIDTH, WIDTH), x))
        narrow = net.linear(_gelu(net, x, gelu), HIDDEN, WIDTH)
        x = net.norm(net.op("Add", narrow, x))
    x = net.op("ReduceMean", x, axes=[1], keepdims=0)
    x = net.op("Gemm", x, net.random(CLASSES, WIDTH), net.random(CLASSES), transB=1)
    return net.model(x, [CLASSES], inner=["S", WIDTH])


def _attention(net: Writer, x: str, shapes: str) -> str:
    size = WIDTH // HEADS

    def shape(*last: int) -> str:
        if shapes in {"literal", "inferred"}:
            return net.ints(0, 0, *last)
        whole = net.op("Shape", x)
        sizes = [net.op("Gather", whole, net.put(np.array([i])), axis=0) for i in (0, 1)]
        return net.op("Concat", *sizes, *(net.ints(one) for one in last), axis=0)

    is_open = shapes in {"inferred", "open"}

    def heads(order: list[int]) -> str:
        split = shape(-1, size) if is_open else shape(HEADS, size)
        return net.op(
            "Transpose", net.op("Reshape", net.linear(x, WIDTH, WIDTH), split), perm=order
        )

    query, key, value = heads([0, 2, 1, 3]), heads([0, 2, 3, 1]), heads([0, 2, 1, 3])
    mixed = _mixed(net, query, key, value)
    joined = net.op("Transpose", mixed, perm=[0, 2, 1, 3])
    return net.op("Reshape", joined, shape(-1) if is_open else shape(WIDTH))


def _packed(net: Writer, x: str) -> str:
    """As vision transformers do: [N, S, 3, heads, size], then three along the first axis."""
    size = WIDTH // HEADS
    all_three = net.op("Reshape", net.linear(x, WIDTH, 3 * WIDTH), net.ints(0, 0, 3, HEADS, size))
    turned = net.op("Transpose", all_three, perm=[2, 0, 3, 1, 4])
    query, key, value = (net.op("Gather", turned, net.put(np.array(i)), axis=0) for i in range(3))
    mixed = _mixed(net, query, net.op("Transpose", key, perm=[0, 1, 3, 2]), value)
    joined = net.op("Transpose", mixed, perm=[0, 2, 1, 3])
    return net.op("Reshape", joined, net.ints(0, 0, WIDTH))


def _mixed(net: Writer, query: str, key: str, value: str) -> str:
    scores = net.op("Div", net.op("MatMul", query, key), net.number(2.0))
    return net.op("MatMul", net.op("Softmax", scores, axis=-1), value)


def _gelu(net: Writer, x: str, kind: str) -> str:
    if kind == "bias":
        product = net.op("MatMul", x, net.random(WIDTH, HIDDEN))
        return net.op("BiasGelu", product, net.random(HIDDEN), domain="com.microsoft")
    wide = net.linear(x, WIDTH, HIDDEN)
    if kind == "fused":
        return net.op("Gelu", wide, domain="com.microsoft")
    if kind == "erf":
        inner = net.op("Erf", net.op("Div", wide, net.number(2**0.5)))
    else:
        cube = net.op("Pow", wide, net.number(3.0))
        sum_ = net.op("Add", wide, net.op("Mul", cube, net.number(0.044715)))
        inner = net.op("Tanh", net.op("Mul", sum_, net.number((2 / np.pi) ** 0.5)))
    gate = net.op("Add", inner, net.number(1.0))
    return net.op("Mul", net.op("Mul", wide, gate), net.number(0.5))


def conv_net(*, middle: str = "plain", end: str = "pool") -> Proto:
    """`x` [N, 1, 6, 6] -> `y` [N, 3] by two or three convolutions with BatchNormalization.

    Args:
        middle: `plain`, `depthwise` (one filter for each channel between the two) or `residual`.
        end: `pool` (the mean of each channel) or `flatten` (every place has weights of its own).
    """
    net = Writer()
    x = _conv(net, "x", (CHANNELS, 1, 3, 3))
    if middle == "depthwise":
        x = _conv(net, x, (CHANNELS, 1, 3, 3), group=CHANNELS)
    before = x
    x = _conv(net, x, (CHANNELS, CHANNELS, 3, 3))
    if middle == "residual":
        x = net.op("Add", x, before)
    if end == "pool":
        x = net.op("Flatten", net.op("GlobalAveragePool", x), axis=1)
        weight = net.random(CLASSES, CHANNELS)
    else:
        x = net.op("Reshape", x, net.ints(-1, CHANNELS * SIDE * SIDE))
        weight = net.random(CLASSES, CHANNELS * SIDE * SIDE)
    x = net.op("Gemm", x, weight, net.random(CLASSES), transB=1)
    return net.model(x, [CLASSES], inner=[1, SIDE, SIDE])


def _conv(net: Writer, x: str, shape: tuple[int, ...], group: int = 1) -> str:
    made = net.op("Conv", x, net.random(*shape), pads=[1, 1, 1, 1], group=group)
    spread = net.put(net.rng.uniform(0.5, 2, shape[0]).astype(np.float32))
    vectors = [net.random(shape[0]) for _ in range(3)]
    return net.op("Relu", net.op("BatchNormalization", made, *vectors, spread))


def requests(shape: Sequence[int], count: int, seed: int = 1) -> list[Tensors]:
    """Requests of one row of normal numbers."""
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=(1, *shape)).astype(np.float32)} for _ in range(count)]


def save(model: Proto, path: Path) -> Path:
    onnx.save(model, str(path))
    return path
