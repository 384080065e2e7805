"""Conversion of Protobuf messages to columns, with types of a registry or a descriptor set.

Each schema has its own descriptor pool, so two versions of one file do not conflict.
"""

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from operator import attrgetter
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from headrace.core import Datatype, InvalidArgumentError
from headrace.streaming.formats import Column, FieldSpec, unreadable
from headrace.streaming.formats.registry import SchemaRegistry

_WELL_KNOWN: Final = re.compile(
    r"google/protobuf/(any|api|descriptor|duration|empty|field_mask|source_context|struct|timestamp"
    r"|type|wrappers)\.proto"
)
_MAIN: Final = "schema.proto"
COMPILE: Final = (
    "compile the .proto file, with `protoc --include_imports --descriptor_set_out=schema.pb "
    "FILE.proto` or `buf build -o schema.pb`, and name the result as options.descriptor_file"
)
_SERIALIZED: Final = "serialized"
"""Name of the descriptor representation in Confluent's registry, instead of .proto text."""


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
        names, level = [self.file.package] if self.file.package else [], self.file.message_type
        for step in path:
            if not 0 <= step < len(level):
                msg = (
                    f"the value's message indexes {list(path)[:8]} lead to no message of the schema"
                )
                raise InvalidArgumentError(msg)
            names.append(level[step].name)
            level = level[step].nested_type
        return self.pool.FindMessageTypeByName(".".join(names))

    def path_of(self, full_name: str) -> tuple[int, ...]:
        """Return the path of a message.

        Raises:
            InvalidArgumentError: The message does not exist.
        """
        package = self.file.package
        if full_name.startswith(f"{package}.") or not package:
            level, path = self.file.message_type, []
            for name in full_name.removeprefix(f"{package}.").split("."):
                names = [message.name for message in level]
                if name not in names:
                    break
                path.append(names.index(name))
                level = level[path[-1]].nested_type
            else:
                return tuple(path)
        raise _no_message(full_name, self.names())

    def names(self) -> list[str]:
        """Return the full names of the file's top-level messages."""
        start = f"{self.file.package}." if self.file.package else ""
        return [start + message.name for message in self.file.message_type]


def message_class(descriptor: Any) -> Any:  # noqa: ANN401  # as above
    """Return the class of a message type."""
    return message_factory.GetMessageClass(descriptor)


def from_descriptor(file: Any) -> ProtoFile:  # noqa: ANN401  # as above
    """Return the file of a `FileDescriptorProto` that imports only well-known types.

    Raises:
        InvalidArgumentError: Its types cannot be used.
    """
    return _build({file.name: file}, file.name)


def from_registry(registry: SchemaRegistry, number: int) -> ProtoFile:
    """Return the file of a registry's schema, with everything that it refers to.

    Raises:
        InvalidArgumentError: The schema is not of Protobuf, or cannot be read.
        NotFoundError: The schema, or one that it refers to, does not exist.
        UnavailableError: The registry is unavailable.
    """
    schema = registry.by_id(number, wire=_SERIALIZED)
    if schema.schema_type != "PROTOBUF":
        msg = f"it is {schema.schema_type}, not PROTOBUF"
        raise InvalidArgumentError(msg)
    files = {
        name: _read(other.text, name)
        for name, other in registry.referenced(schema, wire=_SERIALIZED).items()
    }
    main = _MAIN
    while main in files:
        main = f"_{main}"
    files[main] = _read(schema.text, main)
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
    own_files = [file for file in files.values() if not _WELL_KNOWN.fullmatch(file.name)]
    names = {name: file for file in own_files for name in ProtoFile(file, None).names()}
    target = message or next(iter(names), "")
    if not message and len(names) != 1:
        msg = "name options.message; it has " + (", ".join(list(names)[:20]) or "no messages")
        raise InvalidArgumentError(msg)
    for name, owner in names.items():
        if target == name or target.startswith(f"{name}."):
            built = _build(files, owner.name)
            built.path_of(target)
            return built
    raise _no_message(target, list(names))


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


def _build(files: Mapping[str, Any], main: str) -> ProtoFile:
    build = _Build(files, descriptor_pool.DescriptorPool())
    build.add(main)
    return ProtoFile(files[main], build.pool)


@dataclass(slots=True)
class _Build:
    """Adds files to a pool, each after those that it imports."""

    files: Mapping[str, Any]
    pool: Any
    done: set[str] = field(default_factory=set)

    def add(self, main: str) -> None:
        waiting = [(main, False)]
        in_progress: set[str] = set()
        while waiting:
            name, is_ready = waiting.pop()
            if name in self.done:
                continue
            if is_ready:
                self._put(name)
                continue
            if name in in_progress:
                msg = f"the Protobuf file '{name}' imports itself, by way of others"
                raise InvalidArgumentError(msg)
            in_progress.add(name)
            waiting.append((name, True))
            waiting += [
                (imported, False)
                for imported in self._file(name).dependency
                if self._is_known(imported)
            ]

    def _is_known(self, name: str) -> bool:
        """Return whether a file is available; others may have only options, else the pool fails."""
        return name in self.files or _WELL_KNOWN.fullmatch(name) is not None

    def _file(self, name: str) -> Any:  # noqa: ANN401  # as above
        if name in self.files:
            return self.files[name]
        module = import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
        descriptor = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(descriptor)
        return descriptor

    def _put(self, name: str) -> None:
        descriptor = descriptor_pb2.FileDescriptorProto()
        descriptor.CopyFrom(self._file(name))
        available = [imported for imported in descriptor.dependency if self._is_known(imported)]
        missing = [imported for imported in descriptor.dependency if not self._is_known(imported)]
        del descriptor.dependency[:]
        descriptor.dependency.extend(dict.fromkeys(available))
        del descriptor.public_dependency[:]
        del descriptor.weak_dependency[:]
        try:
            self.pool.Add(descriptor)
        except (TypeError, ValueError) as error:
            hint = f"; it imports {', '.join(missing[:5])}, which is not there" if missing else ""
            msg = f"the Protobuf schema cannot be used: {str(error)[:200]}{hint}: give "
            raise InvalidArgumentError(msg + "options.descriptor_file") from None
        self.done.add(name)


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


class MessageReader:
    """Reads messages of one type.

    Raises:
        InvalidArgumentError: The type lacks a field, or one has a type that models cannot take.
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

    def read(self, value: bytes, offset: int) -> Any:  # noqa: ANN401  # protobuf ships no types
        """Return the message whose bytes begin at `offset`.

        Raises:
            InvalidArgumentError: The bytes are not recognised as a message of this type.
        """
        try:
            message = self._read(value[offset:] if offset else value)
        except (DecodeError, UnicodeDecodeError) as error:
            raise unreadable(f"Protobuf message {self.full_name}", error) from None
        if len(value) > offset and not message.ListFields() and len(UnknownFieldSet(message)):
            reason = "it has none of its fields, only unknown ones; is it another message?"
            raise unreadable(f"Protobuf message {self.full_name}", reason)
        return message

    def columns(self, messages: Sequence[Any]) -> dict[str, Column]:
        """Return the requested fields of messages that `read` returned.

        Raises:
            InvalidArgumentError: A field has not as many values as its shape requires.
        """
        return {name: list(map(get, messages)) for name, get in self._getters.items()}


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
    get = _value_getter(last, path, spec)
    for outer in reversed(above):
        get = _through(outer, get)
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
    """Return a flat list in row-major order as lists of lists; flat if it does not fit.

    A flat list is later rejected as an input of another shape, and fails alone.
    """
    fixed = 1
    for size in shape:
        fixed *= size if size != -1 else 1
    free = len(flat) // fixed if fixed else 0
    sizes = [free if size == -1 else size for size in shape]
    if not flat or fixed * (free if -1 in shape else 1) != len(flat):
        return flat
    for size in reversed(sizes[1:]):
        flat = [flat[start : start + size] for start in range(0, len(flat), size)]
    return flat


def _change(field: Any, path: str, spec: FieldSpec | None) -> Getter | None:  # noqa: ANN401  # as above
    """Return a function that converts a value to a number or a text; None if not needed."""
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
