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
    from headrace.features.applied import (
        DefinitionChange,
        applied_definitions,
        apply_definitions,
        apply_feast,
        default_online_store,
    )
    from headrace.features.feast.importing import LeftOut
    from headrace.features.files import join_files
    from headrace.features.keys import Key
    from headrace.features.lookup import FeatureReader, FeatureRows, FeaturesNotFoundError
    from headrace.features.materializing import MaterializeReport, materialize
    from headrace.features.offline import join_as_of
    from headrace.features.online import ForeignStore, OnlineStore, Place, open_online_store
    from headrace.features.pushing import push_rows, refusals
    from headrace.features.readiness import ViewReadiness, service_readiness
    from headrace.features.records import Record, RecordLayout, record_time_us
    from headrace.features.spec import parse_definitions, read_definitions

__all__ = [
    "DataSource",
    "DefinitionChange",
    "Definitions",
    "Entity",
    "Feature",
    "FeatureReader",
    "FeatureRows",
    "FeatureService",
    "FeatureView",
    "FeaturesNotFoundError",
    "ForeignStore",
    "Key",
    "LeftOut",
    "MaterializeReport",
    "OnlineStore",
    "Place",
    "Policy",
    "Record",
    "RecordLayout",
    "ServiceColumn",
    "Status",
    "ViewReadiness",
    "applied_definitions",
    "apply_definitions",
    "apply_feast",
    "default_online_store",
    "join_as_of",
    "join_files",
    "materialize",
    "open_online_store",
    "parse_definitions",
    "push_rows",
    "read_definitions",
    "record_time_us",
    "refusals",
    "service_readiness",
]

_LAZY = {
    "applied": (
        "DefinitionChange",
        "applied_definitions",
        "apply_definitions",
        "apply_feast",
        "default_online_store",
    ),
    "feast.importing": ("LeftOut",),
    "files": ("join_files",),
    "lookup": ("FeatureReader", "FeatureRows", "FeaturesNotFoundError"),
    "materializing": ("MaterializeReport", "materialize"),
    "offline": ("join_as_of",),
    "keys": ("Key",),
    "online": ("ForeignStore", "OnlineStore", "Place", "open_online_store"),
    "pushing": ("push_rows", "refusals"),
    "records": ("Record", "RecordLayout", "record_time_us"),
    "readiness": ("ViewReadiness", "service_readiness"),
    "spec": ("parse_definitions", "read_definitions"),
}


def __getattr__(name: str) -> object:
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(f"headrace.features.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
