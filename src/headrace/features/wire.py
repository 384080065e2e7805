"""Serialized feature service, for processes without `features.yaml`.

Each view is encoded once, although many columns refer to it.
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
    """An on-demand view; `inputs` are a name, the view's position, and the feature's position."""

    name: str
    function: str
    source: str
    inputs: tuple[tuple[str, int, int], ...]
    request: tuple[Feature, ...]
    features: tuple[Feature, ...]


class _Message(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A service. Each column is a name, the position of its view, and of the feature in the view.

    On-demand views are counted after the others.
    """

    name: str
    views: tuple[FeatureView, ...]
    on_demand: tuple[_OnDemand, ...] = ()
    columns: tuple[tuple[str, int, int], ...]


def encode_service(service: FeatureService) -> str:
    """Return `service` as text; equal for equal services."""
    views, every = service.views, service.all_views
    on_demand = tuple(
        _OnDemand(
            name=view.name,
            function=view.function,
            source=view.source,
            inputs=tuple(
                (source.name, views.index(source.view), source.view.features.index(source.feature))
                for source in view.inputs
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
    return msgspec.json.encode(message, enc_hook=_encode_path, order="deterministic").decode()


def served_part(text: str) -> str:
    """Return the output of `encode_service` without source paths, which serving does not need.

    It is equal on machines with equal definitions. Text that is not a service is returned
    unchanged.
    """
    try:
        message = msgspec.json.decode(text, type=_Message, dec_hook=_decode_path)
    except UNDECODABLE:
        return text
    views = tuple(replace(view, source=replace(view.source, path=None)) for view in message.views)
    message = msgspec.structs.replace(message, views=views)
    return msgspec.json.encode(message, enc_hook=_encode_path, order="deterministic").decode()


def decode_service(text: str) -> FeatureService:
    """Decode the output of `encode_service`.

    Raises:
        InvalidArgumentError: The text is of another version, or damaged.
    """
    try:
        message = msgspec.json.decode(text, type=_Message, dec_hook=_decode_path)
        views = message.views
        every: tuple[FeatureView | OnDemandView, ...] = (
            *views,
            *(_on_demand(on_demand_view, views) for on_demand_view in message.on_demand),
        )
        columns = tuple(
            ServiceColumn(name=name, view=every[view], feature=every[view].features[feature])
            for name, view, feature in message.columns
        )
    except (msgspec.MsgspecError, IndexError) as error:
        raise InvalidArgumentError(f"the feature service cannot be read: {error}") from error
    return FeatureService(name=message.name, columns=columns)


def encode_view(view: FeatureView) -> str:
    """Return `view` as text; equal for equal views."""
    return msgspec.json.encode(view, enc_hook=_encode_path, order="deterministic").decode()


def decode_view(text: str) -> FeatureView:
    """Decode the output of `encode_view`.

    Raises:
        InvalidArgumentError: The text is of another version, or damaged.
    """
    try:
        return msgspec.json.decode(text, type=FeatureView, dec_hook=_decode_path)
    except UNDECODABLE as error:
        raise InvalidArgumentError(f"the feature view cannot be read: {error}") from error


def key_specs(service: FeatureService) -> tuple[TensorSpec, ...]:
    """Return the join keys of a row, as tensors."""
    return tuple(
        TensorSpec(name=entity.join_key, datatype=entity.datatype, shape=(-1,))
        for entity in service.entities
    )


def column_specs(service: FeatureService) -> tuple[TensorSpec, ...]:
    """Return the columns of a row, as tensors in the service's order."""
    return tuple(
        TensorSpec(name=column.name, datatype=Datatype(column.feature.datatype), shape=(-1,))
        for column in service.columns
    )


def request_specs(service: FeatureService) -> tuple[TensorSpec, ...]:
    """Return the request columns, as tensors."""
    return tuple(
        TensorSpec(name=column.name, datatype=column.datatype, shape=(-1,))
        for column in service.request_columns
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


def _encode_path(value: object) -> Any:  # noqa: ANN401  # msgspec's hook signature
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _decode_path(kind: type, value: Any) -> Any:  # noqa: ANN401  # as above
    if kind is Path:
        return Path(value)
    raise NotImplementedError(kind)
