"""A feature service as a message, for a process that has no `features.yaml` and need not read one.

Views stand once, though many columns are theirs.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from headrace.core import Datatype, InvalidArgumentError, TensorSpec
from headrace.core.error_kind import UNDECODABLE
from headrace.features.definitions import (
    Feature,
    FeatureService,
    FeatureView,
    OnDemandInput,
    OnDemandView,
    ServiceColumn,
)


class _OnDemand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`inputs`: the name, the view's position, and the feature's position in the view."""

    name: str
    function: str
    source: str
    inputs: tuple[tuple[str, int, int], ...]
    request: tuple[Feature, ...]
    features: tuple[Feature, ...]


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A service.

    `columns`: the name, the position of the view, on-demand ones after the others, and of the
    feature in the view.
    """

    name: str
    views: tuple[FeatureView, ...]
    on_demand: tuple[_OnDemand, ...] = ()
    columns: tuple[tuple[str, int, int], ...]


def encode_service(service: FeatureService) -> str:
    """`service` as text; equal for equal ones."""
    views, every = service.views, service.all_views
    on_demand = tuple(
        _OnDemand(
            name=view.name,
            function=view.function,
            source=view.source,
            inputs=tuple(
                (one.name, views.index(one.view), one.view.features.index(one.feature))
                for one in view.inputs
            ),
            request=view.request,
            features=view.features,
        )
        for view in service.on_demand_views
    )
    columns = tuple(
        (column.name, every.index(column.view), column.view.features.index(column.feature))
        for column in service.columns
    )
    message = _Message(name=service.name, views=views, on_demand=on_demand, columns=columns)
    return msgspec.json.encode(message, enc_hook=_told, order="deterministic").decode()


def served_part(text: str) -> str:
    """What `encode_service` wrote, without where views' history lies: nobody who serves reads that.

    Machines that define a service alike have this in common. What is no service stays as it is.
    """
    try:
        message = msgspec.json.decode(text, type=_Message, dec_hook=_read)
    except UNDECODABLE:
        return text
    views = tuple(replace(view, source=replace(view.source, path=None)) for view in message.views)
    message = msgspec.structs.replace(message, views=views)
    return msgspec.json.encode(message, enc_hook=_told, order="deterministic").decode()


def decode_service(text: str) -> FeatureService:
    """What `encode_service` wrote.

    Raises:
        InvalidArgumentError: It is of another version, or damaged.
    """
    try:
        message = msgspec.json.decode(text, type=_Message, dec_hook=_read)
        views = message.views
        every: tuple[FeatureView | OnDemandView, ...] = (
            *views,
            *(_on_demand(one, views) for one in message.on_demand),
        )
        columns = tuple(
            ServiceColumn(name=name, view=every[view], feature=every[view].features[feature])
            for name, view, feature in message.columns
        )
    except (msgspec.MsgspecError, IndexError) as error:
        raise InvalidArgumentError(f"the feature service cannot be read: {error}") from error
    return FeatureService(name=message.name, columns=columns)


def encode_view(view: FeatureView) -> str:
    """`view` as text; equal for equal ones."""
    return msgspec.json.encode(view, enc_hook=_told, order="deterministic").decode()


def decode_view(text: str) -> FeatureView:
    """What `encode_view` wrote.

    Raises:
        InvalidArgumentError: It is of another version, or damaged.
    """
    try:
        return msgspec.json.decode(text, type=FeatureView, dec_hook=_read)
    except UNDECODABLE as error:
        raise InvalidArgumentError(f"the feature view cannot be read: {error}") from error


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


def request_specs(service: FeatureService) -> tuple[TensorSpec, ...]:
    """What a request brings besides entities, as tensors."""
    return tuple(
        TensorSpec(name=one.name, datatype=one.datatype, shape=(-1,))
        for one in service.request_columns
    )


def _on_demand(message: _OnDemand, views: Sequence[FeatureView]) -> OnDemandView:
    return OnDemandView(
        name=message.name,
        function=message.function,
        source=message.source,
        inputs=tuple(
            OnDemandInput(name=name, view=views[view], feature=views[view].features[feature])
            for name, view, feature in message.inputs
        ),
        request=message.request,
        features=message.features,
    )


def _told(value: object) -> Any:  # noqa: ANN401  # as msgspec wants it
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _read(kind: type, value: Any) -> Any:  # noqa: ANN401  # as above
    if kind is Path:
        return Path(value)
    raise NotImplementedError(kind)
