"""Feature repositories of Feast: project, stores and the registry's protobuf message.

Field numbers are those of `feast/protos/feast/core/*.proto`; other fields are skipped.
`feature_store.yaml` is read as Feast reads it: `${NAME}` is replaced by an environment variable,
paths are relative to the file.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from headrace.core import FailedPreconditionError
from headrace.core.redact import remember_resolved
from headrace.core.spec.yaml import MAX_BYTES, read_yaml

_PACKAGE: Final = "headrace.features.feast"
_FIELD: Final = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final[Mapping[str, int]] = {
    "text": _FIELD.TYPE_STRING,
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
}
# A star marks a repeated field. Enums are encoded as integers.
_MESSAGES: Final[Mapping[str, Mapping[str, tuple[int, str]]]] = {
    "Registry": {
        "entities": (1, "Entity*"),
        "feature_views": (6, "View*"),
        "feature_services": (7, "Service*"),
        "on_demand_feature_views": (8, "OnDemandView*"),
        "stream_feature_views": (14, "StreamView*"),
    },
    "Entity": {"spec": (1, "EntitySpec")},
    "EntitySpec": {
        "name": (1, "text"),
        "value_type": (2, "int32"),
        "join_key": (4, "text"),
        "project": (9, "text"),
    },
    "View": {"spec": (1, "ViewSpec"), "meta": (2, "ViewMeta")},
    "ViewSpec": {
        "name": (1, "text"),
        "project": (2, "text"),
        "entities": (3, "text*"),
        "features": (4, "Field*"),
        "ttl": (6, "Seconds"),
        "batch_source": (7, "Source"),
        "entity_columns": (12, "Field*"),
    },
    "StreamView": {"spec": (1, "StreamViewSpec"), "meta": (2, "ViewMeta")},
    "StreamViewSpec": {
        "name": (1, "text"),
        "project": (2, "text"),
        "entities": (3, "text*"),
        "features": (4, "Field*"),
        "entity_columns": (5, "Field*"),
        "ttl": (9, "Seconds"),
        "batch_source": (10, "Source"),
    },
    "OnDemandView": {"spec": (1, "OnDemandViewSpec")},
    "OnDemandViewSpec": {"name": (1, "text"), "project": (2, "text")},
    "ViewMeta": {"intervals": (3, "Interval*"), "version": (4, "int32")},
    "Interval": {"start": (1, "Seconds"), "end": (2, "Seconds")},
    "Seconds": {"seconds": (1, "int64"), "nanos": (2, "int32")},
    "Field": {"name": (1, "text"), "value_type": (2, "int32")},
    "Source": {
        "type": (1, "int32"),
        "field_mapping": (2, "Pair*"),
        "timestamp_field": (3, "text"),
        "created_timestamp_column": (5, "text"),
        "file": (11, "File"),
        "batch_source": (26, "Source"),
    },
    "Pair": {"key": (1, "text"), "value": (2, "text")},
    "File": {"uri": (2, "text"), "format": (1, "FileFormat")},
    "FileFormat": {"delta": (2, "DeltaFormat")},
    "DeltaFormat": {},
    "Service": {"spec": (1, "ServiceSpec")},
    "ServiceSpec": {"name": (1, "text"), "project": (2, "text"), "features": (3, "Projection*")},
    "Projection": {
        "view": (1, "text"),
        "columns": (2, "Field*"),
        "join_key_map": (4, "Pair*"),
        "version": (10, "int32"),
    },
}
Message = Any
"""One of the messages above; protobuf creates their classes at run time."""


def parse_registry(data: bytes, name: str) -> Message:
    """Return the `Registry` in `data`; FailedPreconditionError, with `name`, if it is invalid."""
    try:
        return _class("Registry").FromString(data)
    except message.DecodeError as error:
        reason = f"{name} is not a Feast registry, or is damaged; `feast apply` writes it"
        raise FailedPreconditionError(reason) from error


@cache
def _class(name: str) -> Message:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(_file())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


def _file() -> descriptor_pb2.FileDescriptorProto:
    file = descriptor_pb2.FileDescriptorProto(
        name="headrace_feast.proto", package=_PACKAGE, syntax="proto3"
    )
    for name, fields in _MESSAGES.items():
        descriptor = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            base = kind.rstrip("*")
            field_descriptor = descriptor.field.add(
                name=field,
                number=number,
                label=_FIELD.LABEL_REPEATED if kind != base else _FIELD.LABEL_OPTIONAL,
                type=_SCALARS.get(base, _FIELD.TYPE_MESSAGE),
            )
            if base not in _SCALARS:
                field_descriptor.type_name = f".{_PACKAGE}.{base}"
    return file


CONFIG: Final = "feature_store.yaml"
_KEY_VERSION: Final = 3
_VARIABLE: Final = re.compile(r"\$\{?(\w+)")
_MAX_REGISTRY_BYTES: Final = 1 << 28


@dataclass(frozen=True, slots=True, kw_only=True)
class FeastRepository:
    """A Feast repository on this machine."""

    path: Path
    project: str
    registry_path: Path
    online: Mapping[str, Any]
    """Feast's `online_store`, with its `type`."""

    is_versioned: bool = False
    """Whether each version of a view has its own table in the online store."""

    def registry(self) -> Message:
        """Return the current registry; FailedPreconditionError if it cannot be read."""
        try:
            with self.registry_path.open("rb") as file:
                data = file.read(_MAX_REGISTRY_BYTES)
        except OSError as error:
            message = (
                f"cannot read Feast's registry {self.registry_path}: {error.strerror}; "
                "`feast apply` writes it"
            )
            raise FailedPreconditionError(message) from error
        return parse_registry(data, str(self.registry_path))


def read_repository(path: Path) -> FeastRepository:
    """Return the repository in the folder `path`, or with the `feature_store.yaml` at `path`.

    Raises:
        FailedPreconditionError: The repository cannot be read, or its registry is not a local file.
    """
    file = path / CONFIG if path.is_dir() else path
    config = _read(file)
    folder = file.absolute().parent
    project = config.get("project")
    if not isinstance(project, str) or not project:
        raise FailedPreconditionError(
            f"{file} has no `project`; it must be Feast's feature_store.yaml"
        )
    version = config.get("entity_key_serialization_version", _KEY_VERSION)
    if version != _KEY_VERSION:
        message = (
            f"{file}: entity_key_serialization_version must be {_KEY_VERSION}; "
            "Feast's documentation describes how to write keys of that version"
        )
        raise FailedPreconditionError(message)
    registry = config.get("registry", "data/registry.db")
    settings = registry if isinstance(registry, Mapping) else {"path": registry}
    online = config.get("online_store", {"type": "sqlite", "path": "data/online.db"})
    return FeastRepository(
        path=folder,
        project=project,
        registry_path=_registry_path(settings, folder, file),
        online=online if isinstance(online, Mapping) else {"type": str(online)},
        is_versioned=settings.get("enable_online_feature_view_versioning") is True,
    )


def _read(file: Path) -> Mapping[str, Any]:
    try:
        with file.open("rb") as stream:
            text = stream.read(MAX_BYTES + 1).decode()
    except OSError as error:
        message = f"cannot read {file}: {error.strerror}; name the folder that contains it"
        raise FailedPreconditionError(message) from error
    except UnicodeDecodeError:
        raise FailedPreconditionError(f"{file} is not UTF-8 text") from None
    for name in _VARIABLE.findall(text):
        remember_resolved(os.environ.get(name, ""), f"${{{name}}}")
    document = read_yaml(os.path.expandvars(text))
    if document.mistakes or not isinstance(document.value, Mapping):
        # Without the parser's text: it quotes values, which may come from environment variables.
        lines = sorted({mistake.line or 0 for mistake in document.mistakes})
        reason = (
            f"line {', '.join(map(str, lines[:3]))} is not plain YAML" if lines else "not a mapping"
        )
        raise FailedPreconditionError(f"{file} cannot be read: {reason}")
    return document.value


def _registry_path(settings: Mapping[str, Any], folder: Path, file: Path) -> Path:
    kind, path = settings.get("registry_type", "file"), settings.get("path")
    if kind != "file" or not isinstance(path, str) or "://" in path or "\0" in path or not path:
        message = (
            f"{file}: only a registry in a local file is supported (registry_type: file); "
            "copy the registry to a file, and set its `path` in a copy of feature_store.yaml"
        )
        raise FailedPreconditionError(message)
    return folder / path
