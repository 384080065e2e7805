"""JSON values to the bytes of a tensor: nothing is wrapped, truncated or guessed."""

import struct
from itertools import chain
from typing import Any, Final, NoReturn

from headrace.core import Datatype, InvalidArgumentError

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
"""`struct`'s code of each numeric datatype, to be used with "<": without a byte order, `struct`
makes infinity of a float that is out of range and does not say so."""
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
_SHOWN: Final = 40
_SHOWN_BITS: Final = 128


def flatten(name: str, data: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """`data` in row-major order, if it is flat or nested exactly as `shape` says.

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
    """The shape that nested lists have along their first elements."""
    shape = []
    while isinstance(data, list):
        shape.append(len(data))
        data = data[0] if data else None
    return tuple(shape)


def check_types(name: str, datatype: Datatype, flat: list[Any]) -> None:
    """Raise InvalidArgumentError if an element's JSON type cannot stand for `datatype`."""
    if datatype in FLOATS:
        allowed, wanted = {int, float}, "a number"
    elif datatype == Datatype.BYTES:
        allowed, wanted = {str, bytes}, "a string"
    elif datatype == Datatype.BOOL:
        allowed, wanted = {bool, int}, "true or false"
    else:
        allowed, wanted = {int}, "an integer"
    found = set(map(type, flat))
    if found <= allowed:
        return
    at = next(i for i, value in enumerate(flat) if type(value) not in allowed)
    got = _JSON_NAMES.get(type(flat[at]), "something else")
    msg = f"element {at} of '{name}' is {got}, but datatype {datatype} needs {wanted}"
    raise InvalidArgumentError(msg)


def pack_bools(name: str, flat: list[Any]) -> bytes:
    """One byte for each of `flat`, which holds booleans, 0 and 1.

    Raises:
        InvalidArgumentError: An integer is neither 0 nor 1.
    """
    for at, value in enumerate(flat):
        if value not in (0, 1):
            raise _out_of_range(name, Datatype.BOOL, at, value)
    return bytes(flat)


def raise_unpackable(name: str, datatype: Datatype, flat: list[Any]) -> NoReturn:
    """Raise InvalidArgumentError for the first of `flat` that `datatype` cannot hold."""
    one = struct.Struct(f"<{PACK_CODES[datatype]}")
    for at, value in enumerate(flat):
        try:
            one.pack(value)
        except (struct.error, OverflowError):
            raise _out_of_range(name, datatype, at, value) from None
    raise AssertionError(datatype)  # packing all of them failed, so one of them must


def _out_of_range(name: str, datatype: Datatype, at: int, value: object) -> InvalidArgumentError:
    # str() of a very long integer is slow, or refused by Python.
    is_huge = isinstance(value, int) and value.bit_length() > _SHOWN_BITS
    text = "a huge integer" if is_huge else str(value)[:_SHOWN]
    return InvalidArgumentError(
        f"element {at} of '{name}' is {text}, which is out of range for {datatype}"
    )


def _wrong_nesting(name: str, shape: tuple[int, ...]) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the data of '{name}' is not nested as its shape {list(shape)} says: "
        "nest it so, without ragged rows, or send it flat"
    )
