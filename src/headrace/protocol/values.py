"""Values of tensors: JSON forms of their elements, and raw bytes of BYTES tensors."""

import math
import struct
from collections.abc import Iterable
from itertools import chain
from typing import Any, Final, NoReturn

import numpy as np

from headrace.core import Array, Datatype, InvalidArgumentError, NullPolicy

PACK_CODES: Final = {
    Datatype.UINT8: "B",
    Datatype.UINT16: "H",
    Datatype.UINT32: "I",
    Datatype.UINT64: "Q",
    Datatype.INT8: "b",
    Datatype.INT16: "h",
    Datatype.INT32: "i",
    Datatype.INT64: "q",
    Datatype.FP16: "e",
    Datatype.FP32: "f",
    Datatype.FP64: "d",
}
"""Code of each numeric datatype in `struct`, for use with "<": without a byte order, `struct`
silently turns a float that is out of range into infinity.
"""
FLOATS: Final = frozenset({Datatype.FP16, Datatype.FP32, Datatype.FP64})
_JSON_NAMES: Final[dict[type, str]] = {
    bool: "a boolean",
    int: "an integer",
    float: "a number with a fraction or exponent",
    str: "a string",
    list: "an array",
    dict: "an object",
    type(None): "null",
}
NOT_A_NUMBER: Final = ord("n")
"""In the JSON of numbers, only null contains it. As an integer: `b"n" in text` takes 9x as long."""
SPELLED: Final[dict[object, float]] = {
    None: math.nan,
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
}
"""Floats without a JSON number, as read: the texts are those of protobuf's JSON."""
_FLOAT_TYPES: Final = {int, float, str, type(None)}
_INFINITE: Final = (math.inf, -math.inf)
_WORDS: Final = {math.inf: b'"Infinity"', -math.inf: b'"-Infinity"'}
"""Floats without a JSON number, as written: all but NaN, which is null."""
_SHOWN: Final = 40
_SHOWN_BITS: Final = 128


def flatten(name: str, data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Return `data` in row-major order, if it is flat or nested exactly as `shape` says.

    Raises:
        InvalidArgumentError: It is ragged, or its nesting contradicts the shape.
    """
    if not data or type(data[0]) is not list:
        return data
    if not shape or len(data) != shape[0]:
        raise _wrong_nesting(name, shape)
    level = data
    for size in shape[1:]:
        for part in level:
            if type(part) is not list or len(part) != size:
                raise _wrong_nesting(name, shape)
        level = list(chain.from_iterable(level))
    return level


def nested_shape(data: object) -> tuple[int, ...]:
    """Return the shape of nested lists, along their first elements."""
    shape = []
    while isinstance(data, list):
        shape.append(len(data))
        data = data[0] if data else None
    return tuple(shape)


def numbers_of(name: str, datatype: Datatype, flat: list[Any], nulls: NullPolicy) -> list[Any]:
    """Return `flat` if each element has a JSON type that `datatype` allows.

    For floats, null is NaN unless it is an error, and the texts in `SPELLED` have their meaning:
    responses of other models may contain them.

    Raises:
        InvalidArgumentError: An element is of another type.
    """
    if datatype in FLOATS:
        allowed, needed = {int, float}, "a number"
    elif datatype == Datatype.BYTES:
        allowed, needed = {str, bytes}, "a string"
    elif datatype == Datatype.BOOL:
        allowed, needed = {bool, int}, "true or false"
    else:
        allowed, needed = {int}, "an integer"
    types = set(map(type, flat))
    if types <= allowed:
        return flat
    if datatype in FLOATS and types <= _FLOAT_TYPES:
        spelled = SPELLED if nulls is NullPolicy.NAN else {**SPELLED, None: None}
        flat = [spelled.get(value, value) for value in flat]
        if set(map(type, flat)) <= allowed:
            return flat
    index = next(i for i, value in enumerate(flat) if type(value) not in allowed)
    raise _wrong_type(name, datatype, index, flat[index], needed)


def spelled(value: Any) -> Any:  # noqa: ANN401  # JSON
    """Return a value, or lists of values, with the texts for infinities."""
    if isinstance(value, list):
        return [spelled(item) for item in value]
    return _WORDS[value].strip(b'"').decode() if value in _INFINITE else value


def spell_infinities(text: bytes, array: Array) -> bytes:
    """Return JSON in which orjson wrote null for NaN and infinities, with texts for infinities.

    Args:
        text: The numbers of `array` in row-major order, without other nulls.
    """
    if NOT_A_NUMBER not in text:
        return text
    first, *others = text.split(b"null")
    words = [_WORDS.get(value, b"null") for value in array[~np.isfinite(array)].tolist()]
    return first + b"".join(chain.from_iterable(zip(words, others, strict=True)))


def pack_bools(name: str, flat: list[Any]) -> bytes:
    """Return one byte for each of `flat`, which holds booleans, 0 and 1.

    Raises:
        InvalidArgumentError: An integer is neither 0 nor 1.
    """
    for index, value in enumerate(flat):
        if value not in (0, 1):
            raise _out_of_range(name, Datatype.BOOL, index, value)
    return bytes(flat)


def raise_unpackable(name: str, datatype: Datatype, flat: list[Any]) -> NoReturn:
    """Raise InvalidArgumentError for the first of `flat` that `datatype` cannot hold."""
    packer = struct.Struct(f"<{PACK_CODES[datatype]}")
    for index, value in enumerate(flat):
        try:
            packer.pack(value)
        except (struct.error, OverflowError):
            raise _out_of_range(name, datatype, index, value) from None
    raise AssertionError(datatype)  # unreachable: packing failed, so one value must fail


def _wrong_type(
    name: str, datatype: Datatype, index: int, value: object, needed: str
) -> InvalidArgumentError:
    actual = _JSON_NAMES.get(type(value), "something else")
    hint = ""
    if value is None and datatype in FLOATS:
        hint = ": nulls are not accepted here (`nulls: error`); send a number, or NaN"
    elif value is None or (isinstance(value, float) and not math.isfinite(value)):
        actual = "null" if value is None else f"{value:g}"
        hint = ": only inputs of floats can have missing or infinite values"
    return InvalidArgumentError(
        f"element {index} of '{name}' is {actual}, but datatype {datatype} needs {needed}{hint}"
    )


def _out_of_range(name: str, datatype: Datatype, index: int, value: object) -> InvalidArgumentError:
    # str() of a very long integer is slow, or refused by Python.
    is_huge = isinstance(value, int) and value.bit_length() > _SHOWN_BITS
    text = "a huge integer" if is_huge else str(value)[:_SHOWN]
    return InvalidArgumentError(
        f"element {index} of '{name}' is {text}, which is out of range for {datatype}"
    )


def _wrong_nesting(name: str, shape: tuple[int, ...]) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the data of '{name}' is not nested as its shape {list(shape)} requires: nest it "
        "without ragged rows, or send it flat"
    )


Body = bytes | bytearray | memoryview
"""Body of a request, as a server read it."""
_LENGTH: Final = struct.Struct("<I")
_LENGTH_BYTES: Final = _LENGTH.size


def join_elements(elements: Iterable[object]) -> bytes:
    """Return the elements (bytes or str) with their lengths, concatenated."""
    parts = []
    for element in elements:
        value = element_bytes(element)
        parts.append(_LENGTH.pack(len(value)))
        parts.append(value)
    return b"".join(parts)


def element_bytes(element: object) -> bytes:
    """Return one element of a BYTES tensor; text becomes UTF-8."""
    if isinstance(element, bytes):
        return element
    if isinstance(element, str):
        return element.encode()
    return str(element).encode()


def split_elements(raw: bytes | memoryview, count: int, name: str) -> list[bytes]:
    """Return the `count` elements in `raw`.

    Raises:
        InvalidArgumentError: A length points past the end, or there are more or fewer elements.
    """
    size = len(raw)
    # Checked first, so that a shape alone cannot cause an allocation.
    if count * _LENGTH_BYTES > size:
        raise InvalidArgumentError(_wrong_count(name, count, size))
    elements: list[bytes] = []
    offset = 0
    for _ in range(count):
        if offset + _LENGTH_BYTES > size:
            raise InvalidArgumentError(_wrong_count(name, count, size))
        (length,) = _LENGTH.unpack_from(raw, offset)
        offset += _LENGTH_BYTES
        if offset + length > size:
            msg = (
                f"incomplete string data for '{name}': element {len(elements)} should have "
                f"{length} bytes but {size - offset} are left"
            )
            raise InvalidArgumentError(msg)
        elements.append(bytes(raw[offset : offset + length]))
        offset += length
    if offset != size:
        msg = (
            f"unexpected additional data for '{name}': {size - offset} bytes after the last of "
            f"{count} elements"
        )
        raise InvalidArgumentError(msg)
    return elements


def object_array(elements: list[bytes], shape: tuple[int, ...]) -> Array:
    """Return a BYTES tensor of `shape` from its elements in row-major order."""
    array = np.empty(len(elements), dtype=np.object_)
    array[:] = elements
    return array.reshape(shape)


def _wrong_count(name: str, count: int, size: int) -> str:
    return f"incomplete string data for '{name}': expected {count} elements in {size} bytes"
