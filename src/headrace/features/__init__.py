"""What is known about an entity, for training and for serving: the same values in both.

Definitions say which features there are. Joins bring them to rows of the past, as they were known
then; materialized into an online store, a reader brings the newest ones to a request.

Polars and Redis's client are loaded with the parts that need them: both are extras.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from headrace.features.definitions import (
    DataSource,
    Definitions,
    Entity,
    Feature,
    FeatureService,
    FeatureView,
    Policy,
    ServiceColumn,
    Status,
)

if TYPE_CHECKING:
    from headrace.features.online import OnlineStore, open_online_store
    from headrace.features.spec import parse_definitions, read_definitions

__all__ = [
    "DataSource",
    "Definitions",
    "Entity",
    "Feature",
    "FeatureService",
    "FeatureView",
    "OnlineStore",
    "Policy",
    "ServiceColumn",
    "Status",
    "open_online_store",
    "parse_definitions",
    "read_definitions",
]

_LAZY = {
    "online": ("OnlineStore", "open_online_store"),
    "spec": ("parse_definitions", "read_definitions"),
}


def __getattr__(name: str) -> object:
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(f"headrace.features.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
