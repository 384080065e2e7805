"""Parser of large JSON requests by simdjson, without a Python object for each number.

Only the regular case is parsed; for all others the result is None, and the general decoder answers
or reports the mistake. Regular means: no duplicate keys, and data that is flat or nested exactly as
the shape says. The check is exact: the length of every inner array is compared, and the number of
opening brackets in the whole body must match the shapes.
"""

from typing import Final

import msgspec
import numpy as np
import simdjson

from headrace.core import Array, Datatype
from headrace.protocol.inputs import InputTensor, ShapePlan
from headrace.protocol.json_messages import InferMessage
from headrace.protocol.values import FLOATS, PACK_CODES

_FAILURES: Final = (
    KeyError,
    TypeError,
    ValueError,
    RuntimeError,
    MemoryError,
    msgspec.ValidationError,
)
_COUNT_SATURATES: Final = 0xFFFFFF
"""simdjson keeps an array's length in 24 bits."""
_SHORT_ROWS: Final = 8
"""Below this, walking the rows is slower than making Python numbers."""
_MAX_ITEMS: Final = 10_000
_DEEPEST: Final = 8
_HEADER_KEYS: Final = ("id", "parameters", "outputs")
_INPUT_KEYS: Final = ("name", "shape", "datatype", "parameters")


def parse_large(body: bytes | bytearray) -> tuple[InferMessage, list[simdjson.Array]] | None:
    """Return the document without data, and each input's data as simdjson arrays; or None."""
    try:
        document = _object(simdjson.Parser().parse(body))
        inputs = [_object(item) for item in _array(document["inputs"])]
        arrays = [_array(item["data"]) for item in inputs]
        message = _message(document, inputs)
        if _is_regular(body, message, arrays):
            return message, arrays
    except _FAILURES:
        pass
    return None


def large_array(tensor: InputTensor, plan: ShapePlan, data: simdjson.Array) -> Array | None:
    """Return the tensor of a simdjson array; None unless all values are plain numbers in range.

    Raises:
        InvalidArgumentError: The number of values differs from the shape. (Raised here, because the
            general decoder would make an object of each just to count them.)
    """
    datatype = tensor.spec.datatype
    if datatype not in PACK_CODES:
        return None
    try:
        if datatype in FLOATS:
            values = np.frombuffer(data.as_buffer(of_type="d"), dtype="<f8")
        elif datatype == Datatype.UINT64:
            values = np.frombuffer(data.as_buffer(of_type="u"), dtype="<u8")
        else:
            values = np.frombuffer(data.as_buffer(of_type="i"), dtype="<i8")
    except _FAILURES:
        return None
    tensor.check_count(plan, values.size)
    narrow = _narrow(values, tensor.dtype)
    return None if narrow is None else narrow.reshape(plan.shape)


def _narrow(values: Array, dtype: np.dtype) -> Array | None:
    """Return `values` as `dtype`, or None if one is out of its range."""
    if values.dtype == dtype:
        return values
    if dtype.kind == "f":
        try:
            with np.errstate(over="raise"):
                return values.astype(dtype)
        except FloatingPointError:
            return None
    limits = np.iinfo(dtype)
    if values.size and (values.min() < limits.min or values.max() > limits.max):
        return None
    return values.astype(dtype)


def _message(document: simdjson.Object, inputs: list[simdjson.Object]) -> InferMessage:
    header = _members(document, _HEADER_KEYS)
    header["inputs"] = [_members(item, _INPUT_KEYS) for item in inputs]
    return msgspec.convert(header, InferMessage)


def _members(item: simdjson.Object, names: tuple[str, ...]) -> dict[str, object]:
    """Return the named members as plain objects; raise ValueError for a duplicate key."""
    keys = list(item.keys())
    if len(keys) != len(set(keys)):
        raise ValueError(keys)
    return {name: _plain(item[name]) for name in names if name in keys}


def _plain(value: object, depth: int = _DEEPEST) -> object:
    """Return `value` as Python objects if it is small; else raise ValueError.

    Not `as_list()`: that writes past the end of a list whose length saturates its counter.
    """
    if not isinstance(value, simdjson.Array | simdjson.Object):
        return value
    if depth == 0 or len(value) > _MAX_ITEMS:
        raise ValueError(len(value))
    if isinstance(value, simdjson.Array):
        return [_plain(item, depth - 1) for item in value]
    return {name: _plain(item, depth - 1) for name, item in value.items()}


def _object(value: object) -> simdjson.Object:
    if not isinstance(value, simdjson.Object):
        raise TypeError(value)
    return value


def _array(value: object) -> simdjson.Array:
    if not isinstance(value, simdjson.Array):
        raise TypeError(value)
    return value


def _is_regular(
    body: bytes | bytearray, message: InferMessage, arrays: list[simdjson.Array]
) -> bool:
    brackets = 1 + (message.outputs is not None)
    for item, data in zip(message.inputs, arrays, strict=True):
        parameters = item.parameters
        if parameters is not None:  # binary or shared memory: both are invalid here
            return False
        inner = _count_arrays(data, item.shape)
        if inner is None:
            return False
        brackets += 1 + inner
    # Ten times as fast as bytes.count() for a rare byte.
    return len(body) - len(body.replace(b"[", b"")) == brackets


def _count_arrays(data: simdjson.Array, shape: tuple[int, ...]) -> int | None:
    """Return the number of arrays in `data`, itself included; None if it differs from `shape`."""
    if not len(data) or not isinstance(data[0], simdjson.Array):
        return 1
    if len(shape) < 2 or not _SHORT_ROWS <= shape[-1] < _COUNT_SATURATES:  # noqa: PLR2004  # axes
        return None
    total, level = 1, [data]
    for size in shape[:-1]:
        if any(len(part) != size for part in level):
            return None
        level = [_array(inner) for part in level for inner in part]
        total += len(level)
    return total if all(len(part) == shape[-1] for part in level) else None
