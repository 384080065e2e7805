"""ONNX's operators as PyTorch computes them, with gradients; those of encoders and of conv nets.

Imported only where PyTorch is. `onnx2torch` (Apache-2.0) knows more of them, but was last released
in July 2024 and needs torchvision.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from onnx import TensorProto
from torch.nn import functional as F  # noqa: N812  # so it is called everywhere

from headrace.optimize.prune.torch_shapes import SHAPE_OPS, Op, Told, axes_of

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


def _div(_: Told, given: Sequence[Any]) -> Any:
    a, b = given
    if a.is_floating_point():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def _pow(_: Told, given: Sequence[Any]) -> Any:
    return torch.pow(given[0], given[1].to(given[0].dtype))


def _gelu(told: Told, given: Sequence[Any]) -> Any:
    x = given[0] if len(given) == 1 else given[0] + given[1]
    return F.gelu(x, approximate=told.get("approximate", b"none").decode())


def _fast_gelu(_: Told, given: Sequence[Any]) -> Any:
    x = given[0] if len(given) == 1 else given[0] + given[1]
    return F.gelu(x, approximate="tanh")


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


def _max_pool(told: Told, given: Sequence[Any]) -> Any:
    return _pool(told, given[0], (F.max_pool1d, F.max_pool2d, F.max_pool3d), float("-inf"))


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


def _batch_norm(told: Told, given: Sequence[Any]) -> Any:
    x, scale, bias, mean, variance = given
    return F.batch_norm(x, mean, variance, scale, bias, eps=told.get("epsilon", 1e-5))


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
    def reduce(told: Told, given: Sequence[Any]) -> Any:
        axes = axes_of(told, given)
        if axes is None and told.get("noop_with_empty_axes"):
            return given[0]
        chosen = axes or list(range(given[0].ndim))
        return call(given[0], dim=tuple(chosen), keepdim=bool(told.get("keepdims", 1)))

    return reduce


def _cast(told: Told, given: Sequence[Any]) -> Any:
    return given[0].to(_DTYPES[told["to"]])


def _reduce_l2(x: Any, *, dim: Any, keepdim: bool) -> Any:
    return torch.linalg.vector_norm(x, dim=dim, keepdim=keepdim)


def _of_one(call: Callable[[Any], Any]) -> Op:
    return lambda _, given: call(given[0])


def _of_two(call: Callable[[Any, Any], Any]) -> Op:
    def chained(_: Told, given: Sequence[Any]) -> Any:
        made = given[0]
        for other in given[1:]:
            made = call(made, other)
        return made

    return chained


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
    "BatchNormalization": _batch_norm,
    "Cast": _cast,
    "Clip": _clip,
    "Conv": _conv,
    "Div": _div,
    "Elu": lambda told, given: F.elu(given[0], told.get("alpha", 1.0)),
    "Gelu": _gelu,
    "Gemm": _gemm,
    "HardSigmoid": lambda told, given: torch.clamp(
        given[0] * told.get("alpha", 0.2) + told.get("beta", 0.5), 0, 1
    ),
    "LayerNormalization": _layer_norm,
    "LeakyRelu": lambda told, given: F.leaky_relu(given[0], told.get("alpha", 0.01)),
    "LogSoftmax": lambda told, given: torch.log(_softmax(told, given)),
    "MaxPool": _max_pool,
    "Pow": _pow,
    "Range": lambda _, given: torch.arange(*(one.item() for one in given), dtype=given[0].dtype),
    "ReduceL2": _reducing(_reduce_l2),
    "ReduceMax": _reducing(torch.amax),
    "ReduceMean": _reducing(torch.mean),
    "ReduceMin": _reducing(torch.amin),
    "ReduceSum": _reducing(torch.sum),
    "Softmax": _softmax,
    "Where": lambda _, given: torch.where(given[0], given[1], given[2]),
}
MICROSOFT_OPS: Final[dict[str, Op]] = {
    "BiasGelu": _gelu,
    "FastGelu": _fast_gelu,
    "Gelu": _gelu,
    "QuickGelu": lambda told, given: given[0] * torch.sigmoid(told.get("alpha", 1.702) * given[0]),
}
