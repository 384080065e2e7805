"""Conversion of Protobuf messages to columns, with types of a registry or a descriptor set.

Each schema has its own descriptor pool, so two versions of one file do not conflict.
"""

import base64
import binascii
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from importlib import import_module
from operator import attrgetter
from typing import Any, Final

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from google.protobuf.unknown_fields import UnknownFieldSet

from headrace.core import Datatype, InvalidArgumentError
from headrace.streaming.formats import FieldSpec, unreadable
from headrace.streaming.formats.schema_values import RowReader

_WELL_KNOWN: Final = {
    f"google/protobuf/{name}.proto": descriptor_pb2.FileDescriptorProto.FromString(
        import_module(f"google.protobuf.{name}_pb2").DESCRIPTOR.serialized_pb
    )
    for name in (
        *("any", "api", "descriptor", "duration", "empty", "field_mask", "source_context"),
        *("struct", "timestamp", "type", "wrappers"),
    )
}
"""Files that compilers and registries have without being given."""
_MAIN: Final = "schema.proto"
COMPILE: Final = (
    "compile the .proto file, with `protoc --include_imports --descriptor_set_out=schema.pb "
    "FILE.proto` or `buf build -o schema.pb`, and name the result as options.descriptor_file"
)


@dataclass(frozen=True, slots=True)
class ProtoFile:
    """A file of messages, and the pool with everything that they use."""

    file: Any
    pool: Any

    def at(self, path: tuple[int, ...]) -> Any:  # noqa: ANN401  # protobuf ships no types
        """Return the descriptor of the message at a path of indexes.

        Raises:
            InvalidArgumentError: The message does not exist.
        """
        descriptor, level = None, self._messages()
        for step in path:
            if not 0 <= step < len(level):
                msg = f"the value's message indexes {list(path)[:8]} lead to no message"
                raise InvalidArgumentError(f"{msg} of the schema")
            descriptor = level[step]
            level = descriptor.nested_types
        return descriptor

    def find(self, message: str) -> Any:  # noqa: ANN401  # as above
        """Return the descriptor of a message; of the only top-level one if `message` is empty.

        Raises:
            InvalidArgumentError: The message does not exist, or there are several.
        """
        names = [descriptor.full_name for descriptor in self._messages()]
        try:
            descriptor = self.pool.FindMessageTypeByName(_chosen(message, names))
        except KeyError:
            raise _no_message(message, names) from None
        if descriptor.file.name != self.file.name:
            raise _no_message(message, names)
        return descriptor

    def path_of(self, descriptor: Any) -> tuple[int, ...]:  # noqa: ANN401  # as above
        """Return the path of a message of this file."""
        outer = descriptor.containing_type
        if outer is None:
            return (self._messages().index(descriptor),)
        return (*self.path_of(outer), outer.nested_types.index(descriptor))

    def _messages(self) -> list[Any]:
        file = self.pool.FindFileByName(self.file.name)
        return list(file.message_types_by_name.values())


def from_descriptor(file: Any) -> ProtoFile:  # noqa: ANN401  # as above
    """Return the file of a `FileDescriptorProto` that imports only well-known types.

    Raises:
        InvalidArgumentError: Its types cannot be used.
    """
    return _build({file.name: file}, file.name)


def from_registry(text: str, others: Mapping[str, str]) -> ProtoFile:
    """Return the file of a registry's schema, with everything that it refers to.

    Args:
        text: Its descriptor in base64, as are those of `others`, by file name.

    Raises:
        InvalidArgumentError: The schema cannot be read.
    """
    main = _MAIN
    while main in others:
        main = f"_{main}"
    files = {name: _read(content, name) for name, content in {**others, main: text}.items()}
    return _build(files, main)


def from_descriptor_set(content: bytes, message: str) -> ProtoFile:
    """Return the file that has `message` from a serialized `FileDescriptorSet`.

    Args:
        message: Its full name; empty if all files together have one top-level message.

    Raises:
        InvalidArgumentError: The bytes are invalid, or have no such message.
    """
    try:
        files = {
            file.name: file for file in descriptor_pb2.FileDescriptorSet.FromString(content).file
        }
    except DecodeError as error:
        msg = f"it is no FileDescriptorSet, as protoc --descriptor_set_out writes: {error}"
        raise InvalidArgumentError(msg) from None
    owners = {
        f"{file.package}.{message.name}".lstrip("."): name
        for name, file in files.items()
        if name not in _WELL_KNOWN
        for message in file.message_type
    }
    target = _chosen(message, list(owners))
    for name, owner in owners.items():
        if target == name or target.startswith(f"{name}."):
            built = _build(files, owner)
            built.find(target)
            return built
    raise _no_message(target, list(owners))


def _chosen(message: str, names: list[str]) -> str:
    if not message and len(names) != 1:
        msg = "name options.message; the schema has: " + (", ".join(names[:20]) or "no messages")
        raise InvalidArgumentError(msg)
    return message or names[0]


def _read(text: str, name: str) -> Any:  # noqa: ANN401  # as above
    """Return the descriptor in a registry's schema, which the registry returned in base64."""
    try:
        descriptor = descriptor_pb2.FileDescriptorProto.FromString(
            base64.b64decode(text, validate=True)
        )
    except (DecodeError, binascii.Error, ValueError):
        msg = f"the registry gives '{name}' as text, not as a descriptor: {COMPILE}"
        raise InvalidArgumentError(msg) from None
    descriptor.name = name
    return descriptor


def _build(files: dict[str, Any], main: str) -> ProtoFile:
    """Return a file in a pool with all that it imports, directly or not.

    An import that is missing is left out: the file may use only options of it. If it uses a type,
    the pool refuses the file.
    """
    files = _WELL_KNOWN | files
    imports: dict[str, list[str]] = {}
    waiting = [main]
    while waiting:
        name = waiting.pop()
        if name not in imports:
            imports[name] = [other for other in files[name].dependency if other in files]
            waiting += imports[name]
    pool = descriptor_pool.DescriptorPool()
    try:
        order = list(TopologicalSorter(imports).static_order())
    except CycleError as error:
        msg = f"the Protobuf file '{error.args[1][0]}' imports itself, by way of others"
        raise InvalidArgumentError(msg) from None
    for name in order:
        descriptor = descriptor_pb2.FileDescriptorProto()
        descriptor.CopyFrom(files[name])
        for field in ("dependency", "public_dependency", "weak_dependency"):
            descriptor.ClearField(field)
        descriptor.dependency.extend(dict.fromkeys(imports[name]))
        try:
            pool.Add(descriptor)
        except (TypeError, ValueError) as error:
            missing = ", ".join(sorted(set(files[name].dependency) - files.keys()))
            hint = f"; it imports {missing[:300]}, which is not there" if missing else ""
            msg = f"the Protobuf schema cannot be used: {str(error)[:200]}{hint}: give "
            raise InvalidArgumentError(msg + "options.descriptor_file") from None
    return ProtoFile(files[main], pool)


def _no_message(name: str, there: list[str]) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the Protobuf schema has no message '{name}', but: {', '.join(there[:20]) or 'none'}"
    )


Getter = Callable[[Any], Any]
_TIMES: Final = frozenset({"google.protobuf.Timestamp", "google.protobuf.Duration"})
_WRAPPERS: Final = frozenset(
    f"google.protobuf.{kind}Value"
    for kind in (
        *("Double", "Float", "Int64", "UInt64", "Int32", "UInt32", "Bool", "String", "Bytes"),
    )
)
_MATRIX_RANK: Final = 2


def message_reader(
    descriptor: Any,  # noqa: ANN401  # protobuf ships no types
    inputs: Sequence[FieldSpec],
    passed: Sequence[str],
) -> RowReader:
    """Return the reader of messages of one type.

    Raises:
        InvalidArgumentError: The type lacks a field, or one has a type that models cannot take.
    """
    getters = {spec.name: _getter(descriptor, spec.name, spec) for spec in inputs}
    getters |= {name: _getter(descriptor, name, None) for name in passed}
    kind = f"Protobuf message {descriptor.full_name}"
    read = GetMessageClass(descriptor).FromString

    def parse(value: bytes, offset: int) -> Any:  # noqa: ANN401  # protobuf ships no types
        try:
            message = read(value[offset:] if offset else value)
        except (DecodeError, UnicodeDecodeError) as error:
            raise unreadable(kind, error) from None
        if len(value) > offset and not message.ListFields() and len(UnknownFieldSet(message)):
            reason = "it has none of its fields, only unknown ones; is it another message?"
            raise unreadable(kind, reason)
        return message

    return RowReader(parse=parse, getters=getters)


def find_field(descriptor: Any, path: str) -> list[Any]:  # noqa: ANN401  # as above
    """Return the descriptors of the fields along a dotted path.

    Raises:
        InvalidArgumentError: The path does not exist.
    """
    fields_on_path: list[Any] = []
    for part in path.split("."):
        message = descriptor if not fields_on_path else fields_on_path[-1].message_type
        fields = {} if message is None else message.fields_by_name
        if part not in fields or (fields_on_path and fields_on_path[-1].is_repeated):
            there = ", ".join(list(fields)[:20]) or "no fields"
            msg = f"the message {descriptor.full_name} has no field '{path}'; where '{part}' would"
            raise InvalidArgumentError(f"{msg} be there is: {there}")
        fields_on_path.append(fields[part])
    return fields_on_path


def _getter(descriptor: Any, path: str, spec: FieldSpec | None) -> Getter:  # noqa: ANN401  # as above
    """Return a function that gets a field's value from a message; None for an absent field."""
    *above, last = find_field(descriptor, path)
    name, outer_names = last.name, [field.name for field in above]
    change = _change(last, path, spec)
    may_lack = not last.is_repeated and last.has_presence and not last.has_default_value
    if not outer_names and not may_lack and change is None:
        return attrgetter(name)

    def get(message: Any) -> Any:  # noqa: ANN401  # as above
        for outer in outer_names:
            if not message.HasField(outer):
                return None
            message = getattr(message, outer)
        if may_lack and not message.HasField(name):
            return None
        value = getattr(message, name)
        return value if change is None else change(value)

    return get


def _change(field: Any, path: str, spec: FieldSpec | None) -> Getter | None:  # noqa: ANN401  # as above
    """Return the conversion of a field's value, or list of values; None if not needed."""
    change = _element_change(field, path, spec)
    if not field.is_repeated:
        return change
    shape = () if spec is None else spec.shape
    if shape.count(-1) > 1:
        msg = f"field '{path}' is a flat list, which does not tell the shape {list(shape)}"
        raise InvalidArgumentError(msg)
    if len(shape) >= _MATRIX_RANK:
        return lambda values: _nested(list(map(change, values) if change else values), shape)
    return list if change is None else lambda values: list(map(change, values))


def _nested(flat: list[Any], shape: tuple[int, ...]) -> list[Any]:
    """Return a flat list in row-major order as lists of lists; flat if it does not fit.

    A flat list is later rejected as an input of another shape, and fails alone.
    """
    try:
        nested: list[Any] = np.array(flat, object).reshape(shape).tolist()
    except ValueError:
        return flat
    return nested if flat else flat


def _element_change(field: Any, path: str, spec: FieldSpec | None) -> Getter | None:  # noqa: ANN401  # as above
    """Return a function that converts one value to a number or a text; None if not needed."""
    if field.message_type is not None:
        full: str = field.message_type.full_name
        if full in _TIMES:
            return lambda value: value.seconds + value.nanos / 1e9
        if full in _WRAPPERS:
            return attrgetter("value")
        is_map = field.message_type.GetOptions().map_entry
        description = "a map" if is_map else f"a message ({full})"
        inside = ", ".join(list(field.message_type.fields_by_name)[:20])
        hint = "" if is_map or field.is_repeated else f": name a field of it, such as {inside}"
        msg = f"field '{path}' is {description}, which is neither a value nor a list of them{hint}"
        raise InvalidArgumentError(msg)
    if field.enum_type is not None and (spec is None or spec.datatype is Datatype.BYTES):
        names = {value.number: value.name for value in field.enum_type.values}
        return lambda number: names.get(number, str(number))
    return None
