"""Message types from descriptors: of a file, or of a registry's schema.

Each schema has a pool of its own, so that two versions of one file do not meet.
"""

import base64
import binascii
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from headrace.core import InvalidArgumentError
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
"""What Confluent's registry calls a descriptor, in place of the text."""


@dataclass(frozen=True, slots=True)
class ProtoFile:
    """A file of messages, and the pool that knows all that they use."""

    file: Any
    pool: Any

    def at(self, path: tuple[int, ...]) -> Any:  # noqa: ANN401  # protobuf ships no types
        """The descriptor of the message at a path of indexes.

        Raises:
            InvalidArgumentError: There is none.
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
        """Where a message is, the other way round.

        Raises:
            InvalidArgumentError: It is not there.
        """
        package = self.file.package
        if full_name.startswith(f"{package}.") or not package:
            level, path = self.file.message_type, []
            for name in full_name.removeprefix(f"{package}.").split("."):
                names = [one.name for one in level]
                if name not in names:
                    break
                path.append(names.index(name))
                level = level[path[-1]].nested_type
            else:
                return tuple(path)
        raise _no_message(full_name, self.names())

    def names(self) -> list[str]:
        """The full names of the file's outer messages."""
        start = f"{self.file.package}." if self.file.package else ""
        return [start + one.name for one in self.file.message_type]


def message_class(descriptor: Any) -> Any:  # noqa: ANN401  # as above
    """The class of a message type."""
    return message_factory.GetMessageClass(descriptor)


def from_descriptor(file: Any) -> ProtoFile:  # noqa: ANN401  # as above
    """The file of a `FileDescriptorProto` that imports nothing but well-known types.

    Raises:
        InvalidArgumentError: Its types cannot be used.
    """
    return _build({file.name: file}, file.name)


def from_registry(registry: SchemaRegistry, number: int) -> ProtoFile:
    """The file that is a registry's schema, with all that it refers to.

    Raises:
        InvalidArgumentError: It is no Protobuf schema, or cannot be read.
        NotFoundError: It, or one that it refers to, does not exist.
        UnavailableError: The registry does not tell now.
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
    """The file that has `message`, out of a serialized `FileDescriptorSet`.

    Args:
        message: Its full name; empty if all files together have but one outer message.

    Raises:
        InvalidArgumentError: The bytes are none, or have no such message.
    """
    try:
        files = {one.name: one for one in descriptor_pb2.FileDescriptorSet.FromString(content).file}
    except DecodeError as error:
        msg = f"it is no FileDescriptorSet, as protoc --descriptor_set_out writes: {error}"
        raise InvalidArgumentError(msg) from None
    mine = [one for one in files.values() if not _WELL_KNOWN.fullmatch(one.name)]
    names = {name: one for one in mine for name in ProtoFile(one, None).names()}
    wanted = message or next(iter(names), "")
    if not message and len(names) != 1:
        msg = "name options.message; it has " + (", ".join(list(names)[:20]) or "no messages")
        raise InvalidArgumentError(msg)
    for name, one in names.items():
        if wanted == name or wanted.startswith(f"{name}."):
            made = _build(files, one.name)
            made.path_of(wanted)
            return made
    raise _no_message(wanted, list(names))


def _read(text: str, name: str) -> Any:  # noqa: ANN401  # as above
    """The descriptor of a registry's schema, in base64 as the registry was asked for it."""
    try:
        made = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(text, validate=True))
    except (DecodeError, binascii.Error, ValueError):
        msg = f"the registry gives '{name}' as text, not as a descriptor: {COMPILE}"
        raise InvalidArgumentError(msg) from None
    made.name = name
    return made


def _build(files: Mapping[str, Any], main: str) -> ProtoFile:
    build = _Build(files, descriptor_pool.DescriptorPool())
    build.add(main)
    return ProtoFile(files[main], build.pool)


@dataclass(slots=True)
class _Build:
    """Puts files into a pool, each after those that it imports."""

    files: Mapping[str, Any]
    pool: Any
    done: set[str] = field(default_factory=set)

    def add(self, main: str) -> None:
        waiting = [(main, False)]
        under_way: set[str] = set()
        while waiting:
            name, is_ready = waiting.pop()
            if name in self.done:
                continue
            if is_ready:
                self._put(name)
                continue
            if name in under_way:
                msg = f"the Protobuf file '{name}' imports itself, by way of others"
                raise InvalidArgumentError(msg)
            under_way.add(name)
            waiting.append((name, True))
            waiting += [(one, False) for one in self._file(name).dependency if self._is_known(one)]

    def _is_known(self, name: str) -> bool:
        """One that is not there may hold nothing but options; what is missed, the pool says."""
        return name in self.files or _WELL_KNOWN.fullmatch(name) is not None

    def _file(self, name: str) -> Any:  # noqa: ANN401  # as above
        if name in self.files:
            return self.files[name]
        module = import_module(name.removesuffix(".proto").replace("/", ".") + "_pb2")
        made = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(made)
        return made

    def _put(self, name: str) -> None:
        made = descriptor_pb2.FileDescriptorProto()
        made.CopyFrom(self._file(name))
        known = [one for one in made.dependency if self._is_known(one)]
        missing = [one for one in made.dependency if not self._is_known(one)]
        del made.dependency[:]
        made.dependency.extend(dict.fromkeys(known))
        del made.public_dependency[:]
        del made.weak_dependency[:]
        try:
            self.pool.Add(made)
        except (TypeError, ValueError) as error:
            hint = f"; it imports {', '.join(missing[:5])}, which is not there" if missing else ""
            msg = f"the Protobuf schema cannot be used: {str(error)[:200]}{hint}: give "
            raise InvalidArgumentError(msg + "options.descriptor_file") from None
        self.done.add(name)


def _no_message(name: str, there: list[str]) -> InvalidArgumentError:
    return InvalidArgumentError(
        f"the Protobuf schema has no message '{name}', but: {', '.join(there[:20]) or 'none'}"
    )
