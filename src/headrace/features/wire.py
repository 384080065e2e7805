"""A feature service as a message, for a process that has no `features.yaml` and need not read one.

Views stand once, though many columns are theirs.
"""

from pathlib import Path
from typing import Any

import msgspec

from headrace.core import Datatype, InvalidArgumentError, TensorSpec
from headrace.features.definitions import FeatureService, FeatureView, ServiceColumn


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`columns`: the name, the view's position, and the feature's position in the view."""

    name: str
    views: tuple[FeatureView, ...]
    columns: tuple[tuple[str, int, int], ...]


def encode_service(service: FeatureService) -> str:
    """`service` as text; equal for equal ones."""
    views = service.views
    columns = tuple(
        (column.name, views.index(column.view), column.view.features.index(column.feature))
        for column in service.columns
    )
    message = _Message(name=service.name, views=views, columns=columns)
    return msgspec.json.encode(message, enc_hook=_told, order="deterministic").decode()


def decode_service(text: str) -> FeatureService:
    """What `encode_service` wrote.

    Raises:
        InvalidArgumentError: It is of another version, or damaged.
    """
    try:
        message = msgspec.json.decode(text, type=_Message, dec_hook=_read)
        columns = tuple(
            ServiceColumn(
                name=name, view=message.views[view], feature=message.views[view].features[feature]
            )
            for name, view, feature in message.columns
        )
    except (msgspec.MsgspecError, IndexError) as error:
        raise InvalidArgumentError(f"the feature service cannot be read: {error}") from error
    return FeatureService(name=message.name, columns=columns)


def key_specs(service: FeatureService) -> tuple[TensorSpec, ...]:
    """The join keys that a row has to name, as tensors."""
    return tuple(
        TensorSpec(name=entity.join_key, datatype=entity.datatype, shape=(-1,))
        for entity in service.entities
    )


def column_specs(service: FeatureService) -> tuple[TensorSpec, ...]:
    """The columns that a row gets, as tensors in the service's order."""
    return tuple(
        TensorSpec(name=column.name, datatype=Datatype(column.feature.datatype), shape=(-1,))
        for column in service.columns
    )


def _told(value: object) -> Any:  # noqa: ANN401  # as msgspec wants it
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _read(kind: type, value: Any) -> Any:  # noqa: ANN401  # as above
    if kind is Path:
        return Path(value)
    raise NotImplementedError(kind)
