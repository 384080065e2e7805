"""Feature definitions, offline joins and online reads. Imports `runtimes` and below.

Definitions declare the features. Point-in-time joins add them to past rows with the values known
at that time. An online store holds materialized values, and a reader adds the newest ones to a
request. Polars and Redis's client are imported only by the modules that need them: both are extras.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from headrace.features.definitions import (
    DataSource,
    Definitions,
    Entity,
    Feature,
    FeatureService,
    FeatureStatus,
    FeatureView,
    MaterializeSchedule,
    MissingValuePolicy,
    OnDemandInput,
    OnDemandView,
    ServiceColumn,
)

if TYPE_CHECKING:
    from headrace.features.applied import (
        applied_definitions,
        apply_definitions,
        default_online_store,
    )
    from headrace.features.lookup import FeatureReader, FeatureRows
    from headrace.features.lookup_view import FeaturesNotFoundError
    from headrace.features.offline import join_as_of
    from headrace.features.online.store import ForeignStore, OnlineStore, Place, open_online_store
    from headrace.features.online_writers import materialize, push_rows
    from headrace.features.records import Key, Record, RecordLayout, record_time_us
    from headrace.features.served import served_directory
    from headrace.features.served_writer import ServedFeaturesWriter
    from headrace.features.skew import compare_served
    from headrace.features.spec import parse_definitions, read_definitions
    from headrace.features.wire import encode_service

__all__ = [
    "DataSource",
    "Definitions",
    "Entity",
    "Feature",
    "FeatureReader",
    "FeatureRows",
    "FeatureService",
    "FeatureStatus",
    "FeatureView",
    "FeaturesNotFoundError",
    "ForeignStore",
    "Key",
    "MaterializeSchedule",
    "MissingValuePolicy",
    "OnDemandInput",
    "OnDemandView",
    "OnlineStore",
    "Place",
    "Record",
    "RecordLayout",
    "ServedFeaturesWriter",
    "ServiceColumn",
    "applied_definitions",
    "apply_definitions",
    "compare_served",
    "default_online_store",
    "encode_service",
    "join_as_of",
    "materialize",
    "open_online_store",
    "parse_definitions",
    "push_rows",
    "read_definitions",
    "record_time_us",
    "served_directory",
]

_LAZY = {
    "applied": ("applied_definitions", "apply_definitions", "default_online_store"),
    "lookup": ("FeatureReader", "FeatureRows"),
    "lookup_view": ("FeaturesNotFoundError",),
    "online_writers": ("materialize", "push_rows"),
    "offline": ("join_as_of",),
    "online.store": ("ForeignStore", "OnlineStore", "Place", "open_online_store"),
    "records": ("Key", "Record", "RecordLayout", "record_time_us"),
    "served": ("served_directory",),
    "served_writer": ("ServedFeaturesWriter",),
    "skew": ("compare_served",),
    "spec": ("parse_definitions", "read_definitions"),
    "wire": ("encode_service",),
}


def __getattr__(name: str) -> object:
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(f"headrace.features.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
