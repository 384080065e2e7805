"""Conversion of tensors between the protocol and PyTorch.

Imported only where PyTorch is installed, through `import_torch`.
"""

from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

import numpy as np
import torch

from headrace.core import Array, Datatype, RuntimeFailedError

DATATYPES: Final = {
    torch.bool: Datatype.BOOL,
    torch.uint8: Datatype.UINT8,
    torch.uint16: Datatype.UINT16,
    torch.uint32: Datatype.UINT32,
    torch.uint64: Datatype.UINT64,
    torch.int8: Datatype.INT8,
    torch.int16: Datatype.INT16,
    torch.int32: Datatype.INT32,
    torch.int64: Datatype.INT64,
    torch.float16: Datatype.FP16,
    torch.float32: Datatype.FP32,
    torch.float64: Datatype.FP64,
    torch.bfloat16: Datatype.FP32,
}
"""The protocol has no bfloat16: callers see FP32, which holds all of its values."""
_NUMBERS: Final = {bool: np.bool_, int: np.int64, float: np.float64}
_MAX_OUTPUTS: Final = 1000
_MAX_DEPTH: Final = 32


def as_tensor(array: Array, *, copy: bool) -> torch.Tensor:
    """Return `array` as a tensor, on the same memory unless `copy`."""
    if copy:
        return torch.from_numpy(array.copy())
    # PyTorch has no read-only memory and warns of it; uncopied memory is never written.
    return torch.from_numpy(array if array.flags.writeable else np.asarray(_Writeable(array)))


def flatten(answer: object) -> dict[str, object]:
    """Return the tensors and numbers in a module's result, named by their position.

    A single one is `output`; parts of a tuple are `output_0` and so on; keys and fields give names,
    prefixed by their container's: `{"scores": s, "boxes": (b, c)}` is `scores`, `boxes_0`,
    `boxes_1`.

    Raises:
        RuntimeFailedError: It holds other types, or nothing.
    """
    outputs: dict[str, object] = {}
    for name, value in _parts("", answer, 0):
        if name in outputs or len(outputs) == _MAX_OUTPUTS:
            description = (
                f"two outputs with the name '{name}'" if name in outputs else "too many outputs"
            )
            raise RuntimeFailedError(f"the model returns {description}")
        outputs[name] = value
    if not outputs:
        raise RuntimeFailedError("the model returns no tensor")
    return outputs


def as_array(name: str, value: object, *, copy: bool) -> Array:
    """Return an output in protocol types.

    Raises:
        RuntimeFailedError: No array can hold it.
    """
    if not isinstance(value, torch.Tensor):
        return np.asarray(value, _NUMBERS[type(value)])
    if value.layout is not torch.strided or value.dtype not in DATATYPES:
        description = "sparse" if value.layout is not torch.strided else str(value.dtype)
        raise RuntimeFailedError(
            f"output '{name}' is {description}, which the protocol cannot carry"
        )
    dense = value.detach().to(
        "cpu", torch.float32 if value.dtype is torch.bfloat16 else value.dtype
    )
    if copy and dense.data_ptr() == value.data_ptr():
        dense = dense.clone(memory_format=torch.contiguous_format)
    array: Array = dense.resolve_neg().contiguous().numpy()
    return array


class _Writeable:
    """Writable view of a read-only array's memory."""

    def __init__(self, array: Array) -> None:
        self._array = array
        lent: dict[str, Any] = dict(array.__array_interface__)
        lent["data"] = (lent["data"][0], False)
        self.__array_interface__ = lent


def _parts(name: str, value: object, depth: int) -> Iterator[tuple[str, object]]:
    if depth > _MAX_DEPTH:
        raise RuntimeFailedError(f"the model's output nests deeper than {_MAX_DEPTH} levels")
    if value is None:  # an output that is disabled
        return
    if isinstance(value, torch.Tensor) or type(value) in _NUMBERS:
        yield name or "output", value
        return
    for key, part in _children(name, value):
        yield from _parts(key, part, depth + 1)


def _children(name: str, value: object) -> list[tuple[str, object]]:
    named: Mapping[object, object] | None = None
    if isinstance(value, Mapping):
        named = value
    elif isinstance(value, tuple) and hasattr(value, "_fields"):  # a named tuple
        named = dict(zip(value._fields, value, strict=True))
    elif is_dataclass(value):
        named = {item.name: getattr(value, item.name) for item in fields(value)}
    if named is not None:
        return [(f"{name}_{key}" if name else str(key), part) for key, part in named.items()]
    if isinstance(value, tuple | list):
        return [(f"{name or 'output'}_{i}", part) for i, part in enumerate(value)]
    raise RuntimeFailedError(
        f"the model returns a {type(value).__name__}"
        + (f" as '{name}'" if name else "")
        + "; it must be tensors, or tuples, lists and dicts of them"
    )
