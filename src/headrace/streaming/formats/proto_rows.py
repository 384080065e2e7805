"""Protobuf messages to columns: fields by their dotted paths."""

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from headrace.core import Datatype, InvalidArgumentError
from headrace.streaming.formats import Column, FieldSpec, unreadable
from headrace.streaming.formats.proto_descriptors import message_class

Getter = Callable[[Any], Any]
_TIMES: Final = frozenset({"google.protobuf.Timestamp", "google.protobuf.Duration"})
_WRAPPERS: Final = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in (
        *("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes"),
    )
)
_MATRIX_RANK: Final = 2


class MessageReader:
    """Reads messages of one type.

    Raises:
        InvalidArgumentError: The type does not have a field, or one is of no use to a model.
    """

    def __init__(
        self,
        descriptor: Any,  # noqa: ANN401  # protobuf ships no types
        inputs: Sequence[FieldSpec],
        passed: Sequence[str],
    ) -> None:
        self.full_name: str = descriptor.full_name
        self._read = message_class(descriptor).FromString
        self._getters: dict[str, Getter] = {
            spec.name: _getter(descriptor, spec.name, spec) for spec in inputs
        }
        self._getters |= {name: _getter(descriptor, name, None) for name in passed}

    def read(self, value: bytes) -> Any:  # noqa: ANN401  # protobuf ships no types
        """The message.

        Raises:
            InvalidArgumentError: The bytes are none of this type, as far as one can tell.
        """
        try:
            found = self._read(value)
        except (DecodeError, UnicodeDecodeError) as error:
            raise unreadable(f"Protobuf message {self.full_name}", error) from None
        if value and not found.ListFields() and len(UnknownFieldSet(found)):
            reason = "it has none of its fields, only unknown ones; is it another message?"
            raise unreadable(f"Protobuf message {self.full_name}", reason)
        return found

    def columns(self, messages: Sequence[Any]) -> dict[str, Column]:
        """The wanted fields of messages that `read` gave.

        Raises:
            InvalidArgumentError: One has not as many values as its shape needs.
        """
        return {name: list(map(get, messages)) for name, get in self._getters.items()}


def find_field(descriptor: Any, path: str) -> list[Any]:  # noqa: ANN401  # as above
    """The descriptors of the fields along a dotted path.

    Raises:
        InvalidArgumentError: There is none.
    """
    found: list[Any] = []
    for part in path.split("."):
        message = descriptor if not found else found[-1].message_type
        fields = {} if message is None else message.fields_by_name
        if part not in fields or (found and found[-1].is_repeated):
            there = ", ".join(list(fields)[:20]) or "no fields"
            msg = f"the message {descriptor.full_name} has no field '{path}'; where '{part}' would"
            raise InvalidArgumentError(f"{msg} be there is: {there}")
        found.append(fields[part])
    return found


def _getter(descriptor: Any, path: str, spec: FieldSpec | None) -> Getter:  # noqa: ANN401  # as above
    """What takes a field's value out of a message; None where it is absent."""
    *above, last = find_field(descriptor, path)
    get = _value_getter(last, path, spec)
    for field in reversed(above):
        get = _through(field, get)
    return get


def _through(field: Any, get: Getter) -> Getter:  # noqa: ANN401  # as above
    name = field.name

    def inside(message: Any) -> Any:  # noqa: ANN401  # as above
        return get(getattr(message, name)) if message.HasField(name) else None

    return inside


def _value_getter(field: Any, path: str, spec: FieldSpec | None) -> Getter:  # noqa: ANN401  # as above
    name, change = field.name, _change(field, path, spec)
    plain = attrgetter(name)
    if field.is_repeated:
        return _list_getter(plain, change, path, spec)
    if field.has_presence and not field.has_default_value:
        if change is None:
            return lambda message: plain(message) if message.HasField(name) else None
        return lambda message: change(plain(message)) if message.HasField(name) else None
    return plain if change is None else lambda message: change(plain(message))


def _list_getter(plain: Getter, change: Getter | None, path: str, spec: FieldSpec | None) -> Getter:
    shape = () if spec is None else spec.shape
    if len(shape) < _MATRIX_RANK:
        if change is None:
            return lambda message: list(plain(message))
        return lambda message: list(map(change, plain(message)))
    if shape.count(-1) > 1:
        msg = f"field '{path}' is a flat list, which does not tell the shape {list(shape)}"
        raise InvalidArgumentError(msg)
    return lambda message: _nested(list(plain(message)), shape)


def _nested(flat: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """A flat list in row-major order as lists of lists; one that does not fit stays flat.

    So it is refused as an input of another shape, alone.
    """
    fixed = 1
    for size in shape:
        fixed *= size if size != -1 else 1
    free = len(flat) // fixed if fixed else 0
    sizes = [free if size == -1 else size for size in shape]
    if not flat or fixed * (free if -1 in shape else 1) != len(flat):
        return flat
    for size in reversed(sizes[1:]):
        flat = [flat[at : at + size] for at in range(0, len(flat), size)]
    return flat


def _change(field: Any, path: str, spec: FieldSpec | None) -> Getter | None:  # noqa: ANN401  # as above
    """How one value becomes a number or a text; None if it is one."""
    if field.message_type is not None:
        full: str = field.message_type.full_name
        if full in _TIMES:
            return lambda value: value.seconds + value.nanos / 1e9
        if full in _WRAPPERS:
            return attrgetter("value")
        is_map = field.message_type.GetOptions().map_entry
        what = "a map" if is_map else f"a message ({full})"
        inside = ", ".join(list(field.message_type.fields_by_name)[:20])
        hint = "" if is_map or field.is_repeated else f": name a field of it, such as {inside}"
        msg = f"field '{path}' is {what}, which is neither a value nor a list of them{hint}"
        raise InvalidArgumentError(msg)
    if field.enum_type is not None and (spec is None or spec.datatype is Datatype.BYTES):
        names = {value.number: value.name for value in field.enum_type.values}
        return lambda number: names.get(number, str(number))
    return None
