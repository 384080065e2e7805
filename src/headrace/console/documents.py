"""What does the management API say? The messages that pages are made of.

Where the API has a type for its answer, that is the message; `msgspec` reads it from JSON.
"""

import msgspec

from headrace.control.api_access import EntryView, Trail, WhoView
from headrace.control.api_endpoints import EndpointView, GenerationView, History
from headrace.control.api_events import EventList, EventView
from headrace.control.api_rollouts import RolloutList
from headrace.control.rollout_status import MetricStatus, RolloutStatus, VerdictStatus
from headrace.control.status import EndpointStatus, ReplicaStatus, RevisionStatus, Status
from headrace.registry import ModelVersion, VersionSignature

__all__ = [
    "Alert",
    "AlertList",
    "EndpointStatus",
    "EndpointView",
    "EntryView",
    "EventList",
    "EventView",
    "GenerationView",
    "History",
    "KnownVersion",
    "MetricStatus",
    "Overview",
    "OverviewRow",
    "Point",
    "ReplicaStatus",
    "RevisionStatus",
    "RolloutList",
    "RolloutStatus",
    "Series",
    "Status",
    "Trail",
    "VerdictStatus",
    "VersionList",
    "WhoView",
]


class KnownVersion(ModelVersion, frozen=True, kw_only=True):
    """A model version with its signatures."""

    signatures: tuple[VersionSignature, ...] = ()


class VersionList(msgspec.Struct, frozen=True, kw_only=True):
    """Model versions, and the index files that cannot be read."""

    models: tuple[KnownVersion, ...] = ()
    problems: tuple[str, ...] = ()


class OverviewRow(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint in the last minute; null where nothing was."""

    name: str
    ready: bool = False
    versions: tuple[str, ...] | int = ()
    replicas_ready: int = 0
    replicas_desired: int = 0
    requests_per_s: float | None = None
    error_ratio: float | None = None
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None
    state: str = "idle"
    rollout: str | None = None


class Overview(msgspec.Struct, frozen=True, kw_only=True):
    """One page of all endpoints."""

    total: int
    page: int = 1
    size: int = 50
    endpoints: tuple[OverviewRow, ...] = ()


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One step of a history, which ends at `at`; null where nothing was."""

    at: float
    requests_per_s: float | None = None
    errors_per_s: float | None = None
    rejections_per_s: float | None = None
    p50_s: float | None = None
    p95_s: float | None = None
    p99_s: float | None = None


class Series(msgspec.Struct, frozen=True, kw_only=True):
    """An endpoint over time, in steps of `step_s`."""

    endpoint: str
    version: str = ""
    step_s: float = 0.0
    points: tuple[Point, ...] = ()


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert, and what to do about it."""

    name: str
    endpoint: str = ""
    severity: str = "ticket"
    state: str = "pending"
    since: float | None = None
    value: float | None = None
    threshold: float | None = None
    unit: str = ""
    summary: str = ""
    action: str = ""


class AlertList(msgspec.Struct, frozen=True, kw_only=True):
    """All alerts there are."""

    alerts: tuple[Alert, ...] = ()
