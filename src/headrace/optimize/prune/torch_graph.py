"""ONNX graphs as trainable PyTorch modules.

Needs PyTorch. `onnx2torch` (Apache-2.0) supports more operators, but was last released
in July 2024 and needs torchvision.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from typing import Any, Final

import numpy as np
import onnx
import torch
from onnx import TensorProto, numpy_helper
from torch.nn import functional as F  # noqa: N812  # so it is called everywhere

from headrace.core import Array, Tensors
from headrace.optimize.candidate import CannotBuildError
from headrace.optimize.prune.graph import PruningGraph

Told = dict[str, Any]
Op = Callable[[Told, Sequence[Any]], Any]
"""Operator on attributes (with `opset` and output `count`) and inputs; None for omitted inputs."""


def _ints(x: Any) -> list[int]:
    return [int(i) for i in x.reshape(-1).tolist()] if hasattr(x, "reshape") else list(x)


def _axes(attributes: Told, inputs: Sequence[Any]) -> list[int] | None:
    """Return a node's axes: an input since opset 13 or 18, an attribute before."""
    if len(inputs) > 1 and inputs[1] is not None:
        return _ints(inputs[1])
    return list(attributes["axes"]) if "axes" in attributes else None


def _reshape(attributes: Told, inputs: Sequence[Any]) -> Any:
    x, shape = inputs[0], _ints(inputs[1])
    if not attributes.get("allowzero"):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


def _flatten(attributes: Told, inputs: Sequence[Any]) -> Any:
    x = inputs[0]
    axis = attributes.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(x.shape[:axis].numel(), -1)


def _squeeze(attributes: Told, inputs: Sequence[Any]) -> Any:
    axes = _axes(attributes, inputs)
    return inputs[0].squeeze() if axes is None else inputs[0].squeeze(tuple(axes))


def _unsqueeze(attributes: Told, inputs: Sequence[Any]) -> Any:
    x, axes = inputs[0], _axes(attributes, inputs) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _split(attributes: Told, inputs: Sequence[Any]) -> Any:
    axis = attributes.get("axis", 0)
    sizes = _ints(inputs[1]) if len(inputs) > 1 else list(attributes.get("split") or ())
    whole = inputs[0].shape[axis]
    return torch.split(inputs[0], sizes or -(-whole // attributes["count"]), axis)


def _slice(attributes: Told, inputs: Sequence[Any]) -> Any:
    x = inputs[0]
    if len(inputs) == 1:
        starts, ends, axes, steps = (
            attributes["starts"],
            attributes["ends"],
            attributes.get("axes"),
            None,
        )
    else:
        parts = [None if part is None else _ints(part) for part in inputs[1:]]
        starts, ends, axes, steps = parts + [None] * (4 - len(parts))
    axes = axes or list(range(len(starts)))
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(axes), strict=True):
        selected = range(x.shape[axis])[start:end:step]
        if step > 0:
            x = x.narrow(axis, selected.start, max(selected.stop - selected.start, 0))
            x = x if step == 1 else x.index_select(axis, torch.arange(0, x.shape[axis], step))
        else:
            x = x.index_select(axis, torch.tensor(list(selected)))
    return x


def _gather(attributes: Told, inputs: Sequence[Any]) -> Any:
    x, indices = inputs
    axis = attributes.get("axis", 0) % x.ndim
    flat = indices.reshape(-1).long()
    flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    gathered = x.index_select(axis, flat)
    return gathered.reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


def _shape(attributes: Told, inputs: Sequence[Any]) -> Any:
    whole = torch.tensor(inputs[0].shape, dtype=torch.int64)
    return whole[attributes.get("start", 0) : attributes.get("end", len(whole))]


def _constant_of_shape(attributes: Told, inputs: Sequence[Any]) -> Any:
    value = attributes.get("value")
    if value is None:
        return torch.zeros(_ints(inputs[0]))
    filler = torch.from_numpy(value.copy())
    return filler.reshape(()).expand(_ints(inputs[0]))


def _pad(attributes: Told, inputs: Sequence[Any]) -> Any:
    x = inputs[0]
    pads = _ints(inputs[1]) if len(inputs) > 1 else list(attributes["pads"])
    if attributes.get("mode", b"constant") != b"constant" or len(inputs) > 3:  # noqa: PLR2004  # its axes
        raise NotImplementedError("Pad that mirrors, or of some axes")
    value = float(inputs[2]) if len(inputs) > _MATRIX and inputs[2] is not None else 0.0
    order = [pad for i in reversed(range(x.ndim)) for pad in (pads[i], pads[x.ndim + i])]
    return F.pad(x, order, value=value)


SHAPE_OPS: Final[dict[str, Op]] = {
    "Concat": lambda attributes, inputs: torch.cat(list(inputs), attributes["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "Expand": lambda _, inputs: inputs[0].expand(
        torch.broadcast_shapes(inputs[0].shape, tuple(_ints(inputs[1])))
    ),
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": lambda attributes, inputs: inputs[0].permute(
        attributes.get("perm") or list(range(inputs[0].ndim))[::-1]
    ),
    "Unsqueeze": _unsqueeze,
}
_DTYPES: Final = {
    TensorProto.FLOAT: torch.float32,
    TensorProto.FLOAT16: torch.float32,
    TensorProto.DOUBLE: torch.float64,
    TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64,
    TensorProto.BOOL: torch.bool,
    TensorProto.UINT8: torch.uint8,
}
_MATRIX: Final = 2
_LAST_AXIS_OPSET: Final = 13


def _gelu(attributes: Told, inputs: Sequence[Any]) -> Any:
    x = inputs[0] if len(inputs) == 1 else inputs[0] + inputs[1]
    return F.gelu(x, approximate=attributes.get("approximate", b"none").decode())


def _clip(attributes: Told, inputs: Sequence[Any]) -> Any:
    low = inputs[1] if len(inputs) > 1 else attributes.get("min")
    high = inputs[2] if len(inputs) > _MATRIX else attributes.get("max")
    x = inputs[0]
    if low is not None:
        x = torch.clamp(x, min=low)
    return x if high is None else torch.clamp(x, max=high)


def _gemm(attributes: Told, inputs: Sequence[Any]) -> Any:
    a = inputs[0].T if attributes.get("transA") else inputs[0]
    b = inputs[1].T if attributes.get("transB") else inputs[1]
    product = attributes.get("alpha", 1.0) * (a @ b)
    return product if len(inputs) <= _MATRIX else product + attributes.get("beta", 1.0) * inputs[2]


def _pads(attributes: Told, x: Any, window: Sequence[int]) -> list[int]:
    """Return the padding in the order of PyTorch's `pad`: last axis first."""
    rank = len(window)
    how = attributes.get("auto_pad", b"NOTSET").decode()
    strides = attributes.get("strides") or [1] * rank
    if not how.startswith("SAME"):
        pads = attributes.get("pads") or [0] * 2 * rank
        return [pad for i in reversed(range(rank)) for pad in (pads[i], pads[rank + i])]
    padding = []
    for i in reversed(range(rank)):
        size = x.shape[_MATRIX + i]
        total = max((-(-size // strides[i]) - 1) * strides[i] + window[i] - size, 0)
        less = total // 2
        padding += [less, total - less] if how == "SAME_UPPER" else [total - less, less]
    return padding


def _conv(attributes: Told, inputs: Sequence[Any]) -> Any:
    x, weight, *bias = inputs
    rank = weight.ndim - _MATRIX
    dilations = attributes.get("dilations") or [1] * rank
    window = [(k - 1) * d + 1 for k, d in zip(weight.shape[_MATRIX:], dilations, strict=True)]
    call = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return call(
        F.pad(x, _pads(attributes, x, window)),
        weight,
        bias[0] if bias else None,
        stride=attributes.get("strides") or [1] * rank,
        dilation=dilations,
        groups=attributes.get("group", 1),
    )


def _average_pool(attributes: Told, inputs: Sequence[Any]) -> Any:
    window = attributes["kernel_shape"]
    if any(_pads(attributes, inputs[0], window)) and not attributes.get("count_include_pad"):
        ones = torch.ones_like(inputs[0])
        inner = attributes | {"count_include_pad": 1}
        return _average_pool(inner, inputs) / _average_pool(inner, [ones])
    return _pool(attributes, inputs[0], (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), 0.0)


def _pool(attributes: Told, x: Any, calls: Sequence[Callable[..., Any]], filler: float) -> Any:
    window = list(attributes["kernel_shape"])
    if attributes.get("ceil_mode") or any(d != 1 for d in attributes.get("dilations", ())):
        raise NotImplementedError("pooling with ceil_mode or dilations")
    padded = F.pad(x, _pads(attributes, x, window), value=filler)
    return calls[len(window) - 1](padded, window, attributes.get("strides") or [1] * len(window))


def _layer_norm(attributes: Told, inputs: Sequence[Any]) -> Any:
    axis = attributes.get("axis", -1) % inputs[0].ndim
    shape = inputs[0].shape[axis:]
    bias = inputs[2].expand(shape) if len(inputs) > _MATRIX and inputs[2] is not None else None
    return F.layer_norm(
        inputs[0], shape, inputs[1].expand(shape), bias, attributes.get("epsilon", 1e-5)
    )


def _softmax(attributes: Told, inputs: Sequence[Any]) -> Any:
    x = inputs[0]
    if attributes["opset"] >= _LAST_AXIS_OPSET:
        return torch.softmax(x, attributes.get("axis", -1))
    axis = attributes.get("axis", 1) % x.ndim
    return torch.softmax(x.flatten(axis), axis).reshape(x.shape)


def _reducing(call: Callable[..., Any]) -> Op:
    def reduced(attributes: Told, inputs: Sequence[Any]) -> Any:
        axes = _axes(attributes, inputs)
        if axes is None and attributes.get("noop_with_empty_axes"):
            return inputs[0]
        selected = axes or list(range(inputs[0].ndim))
        return call(inputs[0], dim=tuple(selected), keepdim=bool(attributes.get("keepdims", 1)))

    return reduced


def _of_one(call: Callable[[Any], Any]) -> Op:
    return lambda _, inputs: call(inputs[0])


def _of_two(call: Callable[[Any, Any], Any]) -> Op:
    return lambda _, inputs: reduce(call, inputs)


_ONE: Final[dict[str, Callable[[Any], Any]]] = {
    "Abs": torch.abs,
    "Dropout": lambda x: x,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "GlobalAveragePool": lambda x: x.mean(tuple(range(2, x.ndim)), keepdim=True),
    "GlobalMaxPool": lambda x: x.amax(tuple(range(2, x.ndim)), keepdim=True),
    "HardSwish": F.hardswish,
    "Identity": lambda x: x,
    "IsNaN": torch.isnan,
    "Log": torch.log,
    "Mish": F.mish,
    "Neg": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Softplus": F.softplus,
    "Sqrt": torch.sqrt,
    "Tanh": torch.tanh,
}
_TWO: Final[dict[str, Callable[[Any, Any], Any]]] = {
    "Add": torch.add,
    "And": torch.logical_and,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "GreaterOrEqual": torch.ge,
    "Less": torch.lt,
    "LessOrEqual": torch.le,
    "MatMul": torch.matmul,
    "Max": torch.maximum,
    "Min": torch.minimum,
    "Mul": torch.mul,
    "Or": torch.logical_or,
    "PRelu": lambda x, slope: torch.where(x >= 0, x, x * slope),
    "Sub": torch.sub,
    "Sum": torch.add,
}
OPS: Final[dict[str, Op]] = {
    **SHAPE_OPS,
    **{name: _of_one(call) for name, call in _ONE.items()},
    **{name: _of_two(call) for name, call in _TWO.items()},
    "AveragePool": _average_pool,
    "BatchNormalization": lambda attributes, inputs: F.batch_norm(
        inputs[0], *inputs[3:5], *inputs[1:3], eps=attributes.get("epsilon", 1e-5)
    ),
    "Cast": lambda attributes, inputs: inputs[0].to(_DTYPES[attributes["to"]]),
    "Clip": _clip,
    "Conv": _conv,
    "Div": lambda _, inputs: torch.div(
        *inputs, rounding_mode=None if inputs[0].is_floating_point() else "trunc"
    ),
    "Elu": lambda attributes, inputs: F.elu(inputs[0], attributes.get("alpha", 1.0)),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "HardSigmoid": lambda attributes, inputs: torch.clamp(
        inputs[0] * attributes.get("alpha", 0.2) + attributes.get("beta", 0.5), 0, 1
    ),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda attributes, inputs: F.leaky_relu(inputs[0], attributes.get("alpha", 0.01)),
    "LogSoftmax": lambda attributes, inputs: torch.log(_softmax(attributes, inputs)),
    "MaxPool": lambda attributes, inputs: _pool(
        attributes, inputs[0], (F.max_pool1d, F.max_pool2d, F.max_pool3d), float("-inf")
    ),
    "Pow": lambda _, inputs: torch.pow(inputs[0], inputs[1].to(inputs[0].dtype)),
    "Range": lambda _, inputs: torch.arange(
        *(tensor.item() for tensor in inputs), dtype=inputs[0].dtype
    ),
    "ReduceL2": _reducing(torch.linalg.vector_norm),
    "ReduceMax": _reducing(torch.amax),
    "ReduceMean": _reducing(torch.mean),
    "ReduceMin": _reducing(torch.amin),
    "ReduceSum": _reducing(torch.sum),
    "Softmax": _softmax,
    "Where": lambda _, inputs: torch.where(inputs[0], inputs[1], inputs[2]),
}
MICROSOFT_OPS: Final[dict[str, Op]] = {
    "BiasGelu": _gelu,
    "FastGelu": lambda _, inputs: _gelu({"approximate": b"tanh"}, inputs),
    "Gelu": _gelu,
    "QuickGelu": lambda attributes, inputs: (
        inputs[0] * torch.sigmoid(attributes.get("alpha", 1.702) * inputs[0])
    ),
}


class TorchGraph(torch.nn.Module):  # type: ignore[misc]  # PyTorch is not always there
    """PyTorch module that runs a graph node by node.

    Weights, biases and scales are trained; lookup tables, masks and the statistics of
    BatchNormalization are fixed.
    """

    def __init__(self, graph: PruningGraph) -> None:
        super().__init__()
        self._graph = graph
        self._steps = [_step(graph, i) for i in range(len(graph.nodes))]
        self._learned: dict[str, str] = {}
        self._fixed: dict[str, Any] = {}
        weights = _weights(graph)
        read = [name for name in graph.constants if name in graph.readers]
        for i, name in enumerate(read):
            array = graph.constants[name]
            tensor = torch.from_numpy(np.array(array))
            if name in weights:
                self._learned[name] = f"p{i}"
                self.register_parameter(f"p{i}", torch.nn.Parameter(tensor))
            else:
                self._fixed[name] = tensor

    def forward(self, inputs: Mapping[str, Any]) -> list[Any]:
        """Return the graph's outputs in order."""
        tensors = self.values(inputs)
        return [tensors[name] for name in self._graph.outputs]

    def values(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Return every tensor by name."""
        tensors: dict[str, Any] = dict(self._fixed)
        tensors |= {name: getattr(self, own) for name, own in self._learned.items()}
        tensors |= inputs
        for node, (op, attributes) in zip(self._graph.nodes, self._steps, strict=True):
            arguments = [tensors[name] if name else None for name in node.input]
            result = op(attributes, arguments)
            outputs = result if isinstance(result, tuple) else (result,)
            tensors.update(zip(node.output, outputs, strict=False))
        return tensors

    def learned(self) -> dict[str, Array]:
        """Return the trained constants."""
        return {
            name: getattr(self, own).detach().numpy().copy() for name, own in self._learned.items()
        }


def stacked(examples: Sequence[Tensors]) -> dict[str, Any]:
    """Stack requests of one shape to a batch."""
    return {
        name: torch.from_numpy(np.concatenate([example[name] for example in examples]))
        for name in examples[0]
    }


def _step(graph: PruningGraph, i: int) -> tuple[Op, dict[str, Any]]:
    node = graph.nodes[i]
    ops = OPS if not node.domain else MICROSOFT_OPS if node.domain == "com.microsoft" else {}
    op = ops.get(node.op_type)
    if op is None:
        raise CannotBuildError(f"{node.op_type} cannot be trained: its gradient is not implemented")
    attributes = {
        attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute
    }
    if node.op_type == "ConstantOfShape" and "value" in attributes:
        attributes["value"] = numpy_helper.to_array(attributes["value"])
    return op, attributes | {"opset": graph.opset, "count": len(node.output)}


def _weights(graph: PruningGraph) -> set[str]:
    """Return the constants that are weights, biases or scales, not masks or tables."""
    weights: set[str] = set()
    tables: set[str] = set()
    for node in graph.nodes:
        match node.op_type:
            case "MatMul" | "Gemm" | "Conv" | "LayerNormalization" | "BatchNormalization":
                weights.update(node.input[1:3])
                tables.update(node.input[3:])
            case "Add" | "Mul" | "BiasGelu":
                vectors = [name for name in node.input if name in graph.constants]
                weights.update(name for name in vectors if graph.constants[name].ndim == 1)
            case "Gather":
                tables.add(node.input[0])
    return {
        name
        for name in weights - tables
        if name in graph.constants
        and graph.constants[name].dtype == np.float32
        and graph.constants[name].size > 1
    }
