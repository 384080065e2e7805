"""JSON format: each record an object with a field per input, each answer one per output.

Both directions are optimised for speed: objects are parsed into typed structs, which checks values
at the parser's speed, and the outputs of a whole batch are encoded at once and then split into
rows.
"""

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final, cast

import msgspec
import numpy as np
import orjson

from headrace.core import Array, Datatype, HeadraceError, InvalidArgumentError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.spec.stream_parts import StreamFormatSpec
from headrace.protocol.json_bounds import MAX_PARTS, MAX_VALUES, check_parts, check_values
from headrace.protocol.json_messages import JsonDecoder
from headrace.protocol.values import SPELLED, spell_infinities
from headrace.streaming.formats import (
    Column,
    FieldLayout,
    Fields,
    FieldSpec,
    unreadable,
    without_value,
)
from headrace.streaming.records import Record

_FLOATS: Final = frozenset({Datatype.FP16, Datatype.FP32, Datatype.FP64})
_NAME: Final = re.compile(r"[^\"\\\x00-\x1f]*")
"""Names that msgspec accepts."""
_NO_NUMBERS: Final = "an input of floats has something else than numbers"
_SMALL_BYTES: Final = min(MAX_PARTS, MAX_VALUES)
"""A document of at most this size has neither too many parts nor too many values."""


class JsonObjects:
    """The format `json`.

    Input fields that answers contain are unchanged; missing ones are null. In answers NaN is null,
    an infinity `"Infinity"` or `"-Infinity"`; BYTES that are not UTF-8 become `{"b64": "..."}`.
    """

    def __init__(self, layout: FieldLayout) -> None:
        self._names = [*(spec.name for spec in layout.inputs), *layout.passed]
        self._decode: Callable[[Any], Any] = msgspec.json.Decoder(_row_type(layout)).decode
        self._loose: JsonDecoder[Any] = JsonDecoder(_row_type(layout, is_loose=True))
        self._getters = [attrgetter(f"f{index}") for index in range(len(self._names))]
        self._floats = [
            get
            for get, spec in zip(self._getters, layout.inputs, strict=False)
            if spec.datatype in _FLOATS
        ]
        self._passed = frozenset(layout.answered)
        self._answer = [*layout.answered, *(spec.name for spec in layout.outputs)]

    def decode(self, records: Sequence[Record]) -> Fields:
        """Decode as `ValueReader.decode`; check types, but not ranges and nulls of floats."""
        rows: list[Any] = []
        errors: dict[int, HeadraceError] = {}
        is_typed = True
        decode, add = self._decode, rows.append
        values = [record.value for record in records]
        try:
            if max(map(len, values), default=0) <= _SMALL_BYTES:  # type: ignore[arg-type]  # raises for None
                rows += map(decode, values)
                values = []
        except (*UNDECODABLE, TypeError):  # a bad or missing value: each is decoded alone
            rows.clear()
        for index, value in enumerate(values):
            if value is None:
                errors[index] = without_value()
                continue
            try:
                check_parts(value)
                check_values(value)
                add(decode(value))
            except UNDECODABLE as error:
                try:
                    row = self._loose.decode(value)
                except UNDECODABLE as problem:
                    errors[index] = unreadable("JSON", problem)
                    continue
                if not all(_is_floats(get(row)) for get in self._floats):
                    is_json = isinstance(error, msgspec.ValidationError)
                    errors[index] = unreadable("JSON", error if is_json else _NO_NUMBERS)
                    continue
                add(row)
                is_typed = False
            except InvalidArgumentError as error:
                errors[index] = error
        columns = {
            name: list(map(get, rows)) for name, get in zip(self._names, self._getters, strict=True)
        }
        return Fields(columns=columns, errors=errors, typed=is_typed)

    def encode(self, columns: Mapping[str, Column], rows: int) -> list[bytes]:
        """Return the values of answers; see `ValueWriter.encode`."""
        if not self._answer:
            return [b"{}"] * rows
        texts, members = [], []
        for name in self._answer:
            if name in self._passed:
                text, depth = list(map(msgspec.json.encode, columns[name])), 0
            else:
                text, depth = cut_rows(cast("Array", columns[name]))
            texts.append(text)
            # A member of an object with this name, and the brackets around its value.
            key = orjson.dumps(name).replace(b"%", b"%%")
            members.append(key + b":" + b"[" * depth + b"%b" + b"]" * depth)
        pattern = b"{" + b",".join(members) + b"}"
        return [pattern % values for values in zip(*texts, strict=True)]


def _is_floats(value: object) -> bool:
    """Return whether a loosely decoded value has only numbers, nulls, and texts of numbers."""
    if isinstance(value, list):
        return all(map(_is_floats, value))
    return type(value) in {int, float} or (isinstance(value, str | None) and value in SPELLED)


def cut_rows(array: Array) -> tuple[list[bytes], int]:
    """Return each row of `array` as JSON without outer brackets, and the number of these."""
    if array.dtype.kind in "OSU":
        return [orjson.dumps(_plain(row)) for row in array.tolist()], 0
    if not array.size:
        return [orjson.dumps(row) for row in array.tolist()], 0
    text = orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)
    text = spell_infinities(text, array)
    depth = array.ndim - 1
    return text[depth + 1 : -depth - 1].split(b"]" * depth + b"," + b"[" * depth), depth


def _plain(value: object) -> object:
    """Return `bytes` as text, in lists of any depth."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"b64": base64.b64encode(value).decode()}


def _row_type(layout: FieldLayout, *, is_loose: bool = False) -> type:
    """Return a struct type with the fields that are read; others are skipped without parsing.

    Args:
        is_loose: An element of a float input may be anything.
    """
    fields: list[Any] = []
    rename = {}
    for index, spec in enumerate(layout.inputs):
        fields.append((f"f{index}", _value_type(spec, is_loose=is_loose)))
        rename[f"f{index}"] = spec.name
    for index, name in enumerate(layout.passed, start=len(fields)):
        fields.append((f"f{index}", Any, None))
        rename[f"f{index}"] = name
    for name in rename.values():
        if not _NAME.fullmatch(name):
            msg = (
                f"field {name!r} has a quote, a backslash or a control character in its name: "
                "give the input another name in the format's `fields`"
            )
            raise InvalidArgumentError(msg)
    return msgspec.defstruct("Row", fields, rename=rename, gc=False)


def _value_type(spec: FieldSpec, *, is_loose: bool) -> Any:  # noqa: ANN401  # a type built at run time
    if spec.datatype in _FLOATS:
        scalar: Any = Any if is_loose else float | None
    elif spec.datatype is Datatype.BYTES:
        scalar = str
    elif spec.datatype is Datatype.BOOL:
        scalar = bool
    else:
        scalar = int
    value: Any = scalar
    for _ in spec.shape:
        value = list[value]
    is_column = len(spec.shape) == 1 and spec.shape[0] in (1, -1)
    return value | scalar if is_column else value


def make_reader(_: StreamFormatSpec, layout: FieldLayout) -> JsonObjects:
    """Return the format `json`; one class reads and writes it."""
    return JsonObjects(layout)


make_writer = make_reader
