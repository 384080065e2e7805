"""ONNX graphs as PyTorch modules with gradients.

Imported only where PyTorch is. `onnx2torch` (Apache-2.0) knows more of them, but was last released
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
"""Attributes, with `opset` and `count` (of outputs) among them, and inputs; None where left out."""


def _ints(x: Any) -> list[int]:
    return [int(i) for i in x.reshape(-1).tolist()] if hasattr(x, "reshape") else list(x)


def _axes(told: Told, given: Sequence[Any]) -> list[int] | None:
    """Axes that a node is about: an input since opset 13 or 18, an attribute before."""
    if len(given) > 1 and given[1] is not None:
        return _ints(given[1])
    return list(told["axes"]) if "axes" in told else None


def _reshape(told: Told, given: Sequence[Any]) -> Any:
    x, shape = given[0], _ints(given[1])
    if not told.get("allowzero"):
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


def _flatten(told: Told, given: Sequence[Any]) -> Any:
    x = given[0]
    axis = told.get("axis", 1)
    axis += x.ndim if axis < 0 else 0
    return x.reshape(x.shape[:axis].numel(), -1)


def _squeeze(told: Told, given: Sequence[Any]) -> Any:
    axes = _axes(told, given)
    return given[0].squeeze() if axes is None else given[0].squeeze(tuple(axes))


def _unsqueeze(told: Told, given: Sequence[Any]) -> Any:
    x, axes = given[0], _axes(told, given) or []
    rank = x.ndim + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


def _split(told: Told, given: Sequence[Any]) -> Any:
    axis = told.get("axis", 0)
    sizes = _ints(given[1]) if len(given) > 1 else list(told.get("split") or ())
    whole = given[0].shape[axis]
    return torch.split(given[0], sizes or -(-whole // told["count"]), axis)


def _slice(told: Told, given: Sequence[Any]) -> Any:
    x = given[0]
    if len(given) == 1:
        starts, ends, axes, steps = told["starts"], told["ends"], told.get("axes"), None
    else:
        parts = [None if part is None else _ints(part) for part in given[1:]]
        starts, ends, axes, steps = parts + [None] * (4 - len(parts))
    axes = axes or list(range(len(starts)))
    for axis, start, end, step in zip(axes, starts, ends, steps or [1] * len(axes), strict=True):
        chosen = range(x.shape[axis])[start:end:step]
        if step > 0:
            x = x.narrow(axis, chosen.start, max(chosen.stop - chosen.start, 0))
            x = x if step == 1 else x.index_select(axis, torch.arange(0, x.shape[axis], step))
        else:
            x = x.index_select(axis, torch.tensor(list(chosen)))
    return x


def _gather(told: Told, given: Sequence[Any]) -> Any:
    x, places = given
    axis = told.get("axis", 0) % x.ndim
    flat = places.reshape(-1).long()
    flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    made = x.index_select(axis, flat)
    return made.reshape([*x.shape[:axis], *places.shape, *x.shape[axis + 1 :]])


def _shape(told: Told, given: Sequence[Any]) -> Any:
    whole = torch.tensor(given[0].shape, dtype=torch.int64)
    return whole[told.get("start", 0) : told.get("end", len(whole))]


def _constant_of_shape(told: Told, given: Sequence[Any]) -> Any:
    value = told.get("value")
    if value is None:
        return torch.zeros(_ints(given[0]))
    filler = torch.from_numpy(value.copy())
    return filler.reshape(()).expand(_ints(given[0]))


def _pad(told: Told, given: Sequence[Any]) -> Any:
    x = given[0]
    pads = _ints(given[1]) if len(given) > 1 else list(told["pads"])
    if told.get("mode", b"constant") != b"constant" or len(given) > 3:  # noqa: PLR2004  # its axes
        raise NotImplementedError("Pad that mirrors, or of some axes")
    value = float(given[2]) if len(given) > _MATRIX and given[2] is not None else 0.0
    order = [pad for i in reversed(range(x.ndim)) for pad in (pads[i], pads[x.ndim + i])]
    return F.pad(x, order, value=value)


SHAPE_OPS: Final[dict[str, Op]] = {
    "Concat": lambda told, given: torch.cat(list(given), told["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "Expand": lambda _, given: given[0].expand(
        torch.broadcast_shapes(given[0].shape, tuple(_ints(given[1])))
    ),
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": lambda told, given: given[0].permute(
        told.get("perm") or list(range(given[0].ndim))[::-1]
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


def _gelu(told: Told, given: Sequence[Any]) -> Any:
    x = given[0] if len(given) == 1 else given[0] + given[1]
    return F.gelu(x, approximate=told.get("approximate", b"none").decode())


def _clip(told: Told, given: Sequence[Any]) -> Any:
    low = given[1] if len(given) > 1 else told.get("min")
    high = given[2] if len(given) > _MATRIX else told.get("max")
    x = given[0]
    if low is not None:
        x = torch.clamp(x, min=low)
    return x if high is None else torch.clamp(x, max=high)


def _gemm(told: Told, given: Sequence[Any]) -> Any:
    a = given[0].T if told.get("transA") else given[0]
    b = given[1].T if told.get("transB") else given[1]
    made = told.get("alpha", 1.0) * (a @ b)
    return made if len(given) <= _MATRIX else made + told.get("beta", 1.0) * given[2]


def _pads(told: Told, x: Any, window: Sequence[int]) -> list[int]:
    """As PyTorch's `pad` takes them: of the last axis first."""
    rank = len(window)
    how = told.get("auto_pad", b"NOTSET").decode()
    strides = told.get("strides") or [1] * rank
    if not how.startswith("SAME"):
        pads = told.get("pads") or [0] * 2 * rank
        return [pad for i in reversed(range(rank)) for pad in (pads[i], pads[rank + i])]
    found = []
    for i in reversed(range(rank)):
        size = x.shape[_MATRIX + i]
        total = max((-(-size // strides[i]) - 1) * strides[i] + window[i] - size, 0)
        less = total // 2
        found += [less, total - less] if how == "SAME_UPPER" else [total - less, less]
    return found


def _conv(told: Told, given: Sequence[Any]) -> Any:
    x, weight, *bias = given
    rank = weight.ndim - _MATRIX
    dilations = told.get("dilations") or [1] * rank
    window = [(k - 1) * d + 1 for k, d in zip(weight.shape[_MATRIX:], dilations, strict=True)]
    call = (F.conv1d, F.conv2d, F.conv3d)[rank - 1]
    return call(
        F.pad(x, _pads(told, x, window)),
        weight,
        bias[0] if bias else None,
        stride=told.get("strides") or [1] * rank,
        dilation=dilations,
        groups=told.get("group", 1),
    )


def _average_pool(told: Told, given: Sequence[Any]) -> Any:
    window = told["kernel_shape"]
    if any(_pads(told, given[0], window)) and not told.get("count_include_pad"):
        ones = torch.ones_like(given[0])
        inner = told | {"count_include_pad": 1}
        return _average_pool(inner, given) / _average_pool(inner, [ones])
    return _pool(told, given[0], (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d), 0.0)


def _pool(told: Told, x: Any, calls: Sequence[Callable[..., Any]], filler: float) -> Any:
    window = list(told["kernel_shape"])
    if told.get("ceil_mode") or any(d != 1 for d in told.get("dilations", ())):
        raise NotImplementedError("pooling with ceil_mode or dilations")
    padded = F.pad(x, _pads(told, x, window), value=filler)
    return calls[len(window) - 1](padded, window, told.get("strides") or [1] * len(window))


def _layer_norm(told: Told, given: Sequence[Any]) -> Any:
    axis = told.get("axis", -1) % given[0].ndim
    shape = given[0].shape[axis:]
    bias = given[2].expand(shape) if len(given) > _MATRIX and given[2] is not None else None
    return F.layer_norm(given[0], shape, given[1].expand(shape), bias, told.get("epsilon", 1e-5))


def _softmax(told: Told, given: Sequence[Any]) -> Any:
    x = given[0]
    if told["opset"] >= _LAST_AXIS_OPSET:
        return torch.softmax(x, told.get("axis", -1))
    axis = told.get("axis", 1) % x.ndim
    return torch.softmax(x.flatten(axis), axis).reshape(x.shape)


def _reducing(call: Callable[..., Any]) -> Op:
    def reduced(told: Told, given: Sequence[Any]) -> Any:
        axes = _axes(told, given)
        if axes is None and told.get("noop_with_empty_axes"):
            return given[0]
        chosen = axes or list(range(given[0].ndim))
        return call(given[0], dim=tuple(chosen), keepdim=bool(told.get("keepdims", 1)))

    return reduced


def _of_one(call: Callable[[Any], Any]) -> Op:
    return lambda _, given: call(given[0])


def _of_two(call: Callable[[Any, Any], Any]) -> Op:
    return lambda _, given: reduce(call, given)


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
    "BatchNormalization": lambda told, given: F.batch_norm(
        given[0], *given[3:5], *given[1:3], eps=told.get("epsilon", 1e-5)
    ),
    "Cast": lambda told, given: given[0].to(_DTYPES[told["to"]]),
    "Clip": _clip,
    "Conv": _conv,
    "Div": lambda _, given: torch.div(
        *given, rounding_mode=None if given[0].is_floating_point() else "trunc"
    ),
    "Elu": lambda told, given: F.elu(given[0], told.get("alpha", 1.0)),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "HardSigmoid": lambda told, given: torch.clamp(
        given[0] * told.get("alpha", 0.2) + told.get("beta", 0.5), 0, 1
    ),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda told, given: F.leaky_relu(given[0], told.get("alpha", 0.01)),
    "LogSoftmax": lambda told, given: torch.log(_softmax(told, given)),
    "MaxPool": lambda told, given: _pool(
        told, given[0], (F.max_pool1d, F.max_pool2d, F.max_pool3d), float("-inf")
    ),
    "Pow": lambda _, given: torch.pow(given[0], given[1].to(given[0].dtype)),
    "Range": lambda _, given: torch.arange(*(one.item() for one in given), dtype=given[0].dtype),
    "ReduceL2": _reducing(torch.linalg.vector_norm),
    "ReduceMax": _reducing(torch.amax),
    "ReduceMean": _reducing(torch.mean),
    "ReduceMin": _reducing(torch.amin),
    "ReduceSum": _reducing(torch.sum),
    "Softmax": _softmax,
    "Where": lambda _, given: torch.where(given[0], given[1], given[2]),
}
MICROSOFT_OPS: Final[dict[str, Op]] = {
    "BiasGelu": _gelu,
    "FastGelu": lambda _, given: _gelu({"approximate": b"tanh"}, given),
    "Gelu": _gelu,
    "QuickGelu": lambda told, given: given[0] * torch.sigmoid(told.get("alpha", 1.702) * given[0]),
}


class TorchGraph(torch.nn.Module):  # type: ignore[misc]  # PyTorch is not always there
    """Runs a graph node by node.

    What is learned are weights, biases and scales; tables that are looked up in, masks and the
    statistics of BatchNormalization stay.
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
        """The graph's outputs, in order."""
        known = self.values(inputs)
        return [known[name] for name in self._graph.outputs]

    def values(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Every tensor by name."""
        known: dict[str, Any] = dict(self._fixed)
        known |= {name: getattr(self, own) for name, own in self._learned.items()}
        known |= inputs
        for node, (op, told) in zip(self._graph.nodes, self._steps, strict=True):
            given = [known[name] if name else None for name in node.input]
            made = op(told, given)
            outputs = made if isinstance(made, tuple) else (made,)
            known.update(zip(node.output, outputs, strict=False))
        return known

    def learned(self) -> dict[str, Array]:
        """Constants as they are now."""
        return {
            name: getattr(self, own).detach().numpy().copy() for name, own in self._learned.items()
        }


def stacked(examples: Sequence[Tensors]) -> dict[str, Any]:
    """Requests of one shape as one batch."""
    return {
        name: torch.from_numpy(np.concatenate([example[name] for example in examples]))
        for name in examples[0]
    }


def _step(graph: PruningGraph, i: int) -> tuple[Op, dict[str, Any]]:
    node = graph.nodes[i]
    known = OPS if not node.domain else MICROSOFT_OPS if node.domain == "com.microsoft" else {}
    op = known.get(node.op_type)
    if op is None:
        raise CannotBuildError(f"{node.op_type} cannot be taught: it has no gradient here")
    told = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    if node.op_type == "ConstantOfShape" and "value" in told:
        told["value"] = numpy_helper.to_array(told["value"])
    return op, told | {"opset": graph.opset, "count": len(node.output)}


def _weights(graph: PruningGraph) -> set[str]:
    """Constants where weights, biases and scales are read, and not masks or tables."""
    found: set[str] = set()
    tables: set[str] = set()
    for node in graph.nodes:
        match node.op_type:
            case "MatMul" | "Gemm" | "Conv" | "LayerNormalization" | "BatchNormalization":
                found.update(node.input[1:3])
                tables.update(node.input[3:])
            case "Add" | "Mul" | "BiasGelu":
                vectors = [name for name in node.input if name in graph.constants]
                found.update(name for name in vectors if graph.constants[name].ndim == 1)
            case "Gather":
                tables.add(node.input[0])
    return {
        name
        for name in found - tables
        if name in graph.constants
        and graph.constants[name].dtype == np.float32
        and graph.constants[name].size > 1
    }
