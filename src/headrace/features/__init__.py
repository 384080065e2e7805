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
    MaterializeSchedule,
    OnDemandInput,
    OnDemandView,
    Policy,
    ServiceColumn,
    Status,
)

if TYPE_CHECKING:
    from headrace.features.applied import (
        APPLIED,
        DefinitionChange,
        applied_definitions,
        apply_definitions,
        apply_feast,
        default_online_store,
        online_store_reference,
        online_store_url,
    )
    from headrace.features.feast.importing import LeftOut
    from headrace.features.lookup import FeatureReader, FeatureRows
    from headrace.features.lookup_view import FeaturesNotFoundError
    from headrace.features.materialize_apart import (
        ApartMessage,
        MaterializeFailed,
        MaterializeFinished,
        MaterializeProgress,
    )
    from headrace.features.materializing import (
        MaterializeReport,
        ViewReadiness,
        materialize,
        push_rows,
        refusals,
        service_readiness,
    )
    from headrace.features.offline import join_as_of, join_files
    from headrace.features.online import ForeignStore, OnlineStore, Place, open_online_store
    from headrace.features.records import Key, Record, RecordLayout, record_time_us
    from headrace.features.served import ServedRow, ServedRows, read_served, served_directory
    from headrace.features.served_offline import OfflineRows, offline_rows
    from headrace.features.served_writer import (
        EvenShare,
        ServedFeaturesWriter,
        ServedFile,
        ServedSample,
        served_rows,
        served_sample,
    )
    from headrace.features.skew import FeatureSkew, SkewCause, SkewReport, compare_served
    from headrace.features.skew_apart import SkewedFeature, SkewSummary, usual_grace_s
    from headrace.features.spec import parse_definitions, read_definitions
    from headrace.features.wire import (
        column_specs,
        decode_service,
        decode_view,
        encode_service,
        encode_view,
        key_specs,
        request_specs,
        served_part,
    )

__all__ = [
    "APPLIED",
    "ApartMessage",
    "DataSource",
    "DefinitionChange",
    "Definitions",
    "Entity",
    "EvenShare",
    "Feature",
    "FeatureReader",
    "FeatureRows",
    "FeatureService",
    "FeatureSkew",
    "FeatureView",
    "FeaturesNotFoundError",
    "ForeignStore",
    "Key",
    "LeftOut",
    "MaterializeFailed",
    "MaterializeFinished",
    "MaterializeProgress",
    "MaterializeReport",
    "MaterializeSchedule",
    "OfflineRows",
    "OnDemandInput",
    "OnDemandView",
    "OnlineStore",
    "Place",
    "Policy",
    "Record",
    "RecordLayout",
    "ServedFeaturesWriter",
    "ServedFile",
    "ServedRow",
    "ServedRows",
    "ServedSample",
    "ServiceColumn",
    "SkewCause",
    "SkewReport",
    "SkewSummary",
    "SkewedFeature",
    "Status",
    "ViewReadiness",
    "applied_definitions",
    "apply_definitions",
    "apply_feast",
    "column_specs",
    "compare_served",
    "decode_service",
    "decode_view",
    "default_online_store",
    "encode_service",
    "encode_view",
    "join_as_of",
    "join_files",
    "key_specs",
    "materialize",
    "offline_rows",
    "online_store_reference",
    "online_store_url",
    "open_online_store",
    "parse_definitions",
    "push_rows",
    "read_definitions",
    "read_served",
    "record_time_us",
    "refusals",
    "request_specs",
    "served_directory",
    "served_part",
    "served_rows",
    "served_sample",
    "service_readiness",
    "usual_grace_s",
]

_LAZY = {
    "applied": (
        "APPLIED",
        "DefinitionChange",
        "applied_definitions",
        "apply_definitions",
        "apply_feast",
        "default_online_store",
        "online_store_reference",
        "online_store_url",
    ),
    "feast.importing": ("LeftOut",),
    "lookup": ("FeatureReader", "FeatureRows"),
    "lookup_view": ("FeaturesNotFoundError",),
    "materializing": (
        "MaterializeReport",
        "ViewReadiness",
        "materialize",
        "push_rows",
        "refusals",
        "service_readiness",
    ),
    "offline": ("join_as_of", "join_files"),
    "online": ("ForeignStore", "OnlineStore", "Place", "open_online_store"),
    "records": ("Key", "Record", "RecordLayout", "record_time_us"),
    "served": ("ServedRow", "ServedRows", "read_served", "served_directory"),
    "served_offline": ("OfflineRows", "offline_rows"),
    "served_writer": (
        "EvenShare",
        "ServedFeaturesWriter",
        "ServedFile",
        "ServedSample",
        "served_rows",
        "served_sample",
    ),
    "skew": ("FeatureSkew", "SkewCause", "SkewReport", "compare_served"),
    "spec": ("parse_definitions", "read_definitions"),
    "wire": (
        "column_specs",
        "decode_service",
        "decode_view",
        "encode_service",
        "encode_view",
        "key_specs",
        "request_specs",
        "served_part",
    ),
    "materialize_apart": (
        "ApartMessage",
        "MaterializeFailed",
        "MaterializeFinished",
        "MaterializeProgress",
    ),
    "skew_apart": ("SkewSummary", "SkewedFeature", "usual_grace_s"),
}


def __getattr__(name: str) -> object:
    for module, names in _LAZY.items():
        if name in names:
            return getattr(import_module(f"headrace.features.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
