"""What does a registry of Feast's say? Its protobuf message, of which we name what we need.

Numbers are those of `feast/protos/feast/core/*.proto`; fields that are not named here are skipped.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any, Final

from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from headrace.core import FailedPreconditionError

_PACKAGE: Final = "headrace.features.feast"
_FIELD: Final = descriptor_pb2.FieldDescriptorProto
_SCALARS: Final[Mapping[str, int]] = {
    "text": _FIELD.TYPE_STRING,
    "int32": _FIELD.TYPE_INT32,
    "int64": _FIELD.TYPE_INT64,
}
# A star stands for any number of them. Enums travel as whole numbers.
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
"""One of the messages above; protobuf makes their classes at run time."""


def parse_registry(data: bytes, name: str) -> Message:
    """The `Registry` in `data`; FailedPreconditionError, with `name`, if it is none."""
    try:
        return _class("Registry").FromString(data)
    except message.DecodeError as error:
        told = f"{name} is no registry of Feast's, or is damaged; `feast apply` writes it"
        raise FailedPreconditionError(told) from error


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
        described = file.message_type.add(name=name)
        for field, (number, kind) in fields.items():
            base = kind.rstrip("*")
            added = described.field.add(
                name=field,
                number=number,
                label=_FIELD.LABEL_REPEATED if kind != base else _FIELD.LABEL_OPTIONAL,
                type=_SCALARS.get(base, _FIELD.TYPE_MESSAGE),
            )
            if base not in _SCALARS:
                added.type_name = f".{_PACKAGE}.{base}"
    return file
