"""ONNX's operators that move numbers and do not compute, as PyTorch does it.

Imported only where PyTorch is.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import torch
from torch.nn import functional as F  # noqa: N812  # so it is called everywhere

Told = dict[str, Any]
Op = Callable[[Told, Sequence[Any]], Any]
"""Attributes, with `opset` and `count` (of outputs) among them, and inputs; None where left out."""

_MATRIX: Final = 2


def _ints(x: Any) -> list[int]:
    return [int(i) for i in x.reshape(-1).tolist()] if hasattr(x, "reshape") else list(x)


def axes_of(told: Told, given: Sequence[Any], at: int = 1) -> list[int] | None:
    """Axes that a node is about: an input since opset 13 or 18, an attribute before."""
    if len(given) > at and given[at] is not None:
        return _ints(given[at])
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


def _transpose(told: Told, given: Sequence[Any]) -> Any:
    return given[0].permute(told.get("perm") or list(range(given[0].ndim))[::-1])


def _squeeze(told: Told, given: Sequence[Any]) -> Any:
    axes = axes_of(told, given)
    return given[0].squeeze() if axes is None else given[0].squeeze(tuple(axes))


def _unsqueeze(told: Told, given: Sequence[Any]) -> Any:
    x, axes = given[0], axes_of(told, given) or []
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


def _expand(_: Told, given: Sequence[Any]) -> Any:
    shape = torch.broadcast_shapes(given[0].shape, tuple(_ints(given[1])))
    return given[0].expand(shape)


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
    "Expand": _expand,
    "Flatten": _flatten,
    "Gather": _gather,
    "Pad": _pad,
    "Reshape": _reshape,
    "Shape": _shape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
