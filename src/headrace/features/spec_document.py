"""What does a document hold that may hold anything? Its parts, for those who look for mistakes."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, Final

from headrace.core.spec_yaml import SpecMistake

_INT64: Final = range(-(1 << 63), 1 << 63)
_LARGEST_FP32: Final = 3.4028234663852886e38
Document = Mapping[Any, Any]


def repeated(value: object, place: str) -> Iterator[SpecMistake]:
    """Names that several of a list have."""
    first_use: dict[str, int] = {}
    for i, item in items(value):
        name = item.get("name")
        if isinstance(name, str) and first_use.setdefault(name, i) != i:
            message = f"{name!r} is already the name of {place}[{first_use[name]}]"
            yield SpecMistake(place=f"{place}[{i}].name", message=message)


def join_key(entity: object) -> str:
    """The column that names an entity."""
    given = entity if isinstance(entity, Mapping) else {}
    return str(given.get("join_key") or given.get("name"))


def by_name(value: object) -> dict[str, Document]:
    """The mappings of a list that have a name."""
    named = ((item.get("name"), item) for _, item in items(value))
    return {name: item for name, item in named if isinstance(name, str)}


def items(value: object) -> Iterator[tuple[int, Document]]:
    """The mappings of a list, with their positions."""
    for i, item in enumerate(value if isinstance(value, list | tuple) else ()):
        if isinstance(item, Mapping):
            yield i, item


def texts(value: object) -> Iterator[tuple[int, str]]:
    """The texts of a list, with their positions."""
    for i, item in enumerate(value if isinstance(value, list | tuple) else ()):
        if isinstance(item, str):
            yield i, item


def misfitting_default(feature: Document, place: str) -> Iterator[SpecMistake]:
    """A default that its column's datatype cannot hold."""
    default, datatype = feature.get("default"), feature.get("datatype")
    if default is None or not isinstance(default, bool | int | float | str):
        return
    is_number = isinstance(default, int | float) and not isinstance(default, bool)
    match datatype:
        case "BYTES":
            fits, wanted = isinstance(default, str), "text"
        case "BOOL":
            fits, wanted = isinstance(default, bool), "true or false"
        case "INT64":
            fits = is_number and isinstance(default, int) and default in _INT64
            wanted = "a whole number of 64 bits"
        case "FP32" | "FP64":
            fits, wanted = is_number and _is_float(default, str(datatype)), "a number of that size"
        case _:
            return
    if not fits:
        shown = str(default)[:60]
        message = f"{shown} does not fit {datatype}; it should be {wanted}"
        yield SpecMistake(place=place, message=message)


def _is_float(value: bool | float | str, datatype: str) -> bool:  # noqa: FBT001  # any default
    try:
        number = float(value)
    except (OverflowError, ValueError):
        return False
    return math.isfinite(number) and (datatype == "FP64" or abs(number) <= _LARGEST_FP32)
