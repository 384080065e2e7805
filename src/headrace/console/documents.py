"""What does the management API say? The messages that pages are made of.

Where the API has a type for its answer, that is the message; `msgspec` reads it from JSON.
"""

import msgspec

from headrace.control.api_access import EntryView, Trail, WhoView
from headrace.control.api_drift import DriftView, FeatureView, ReferenceView
from headrace.control.api_endpoints import EndpointView, GenerationView, History
from headrace.control.api_events import EventList, EventView
from headrace.control.api_history import PointView, SeriesView
from headrace.control.api_jobs import JobList, RunList
from headrace.control.api_rollouts import RolloutList
from headrace.control.api_streams import StreamHistory, StreamList, StreamPointView
from headrace.control.job_status import JobRunView, JobView
from headrace.control.labels import LiveScore
from headrace.control.overview import Overview, OverviewRow
from headrace.control.rollout_evidence import IntervalPoint, RolloutEvidence, SequenceView
from headrace.control.rollout_status import MetricStatus, RolloutStatus, VerdictStatus
from headrace.control.status import EndpointStatus, ReplicaStatus, RevisionStatus, Status
from headrace.control.streams.status import StreamView
from headrace.registry import ModelVersion, VersionSignature

__all__ = [
    "Alert",
    "AlertList",
    "DriftView",
    "EndpointStatus",
    "EndpointView",
    "EntryView",
    "EventList",
    "EventView",
    "FeatureView",
    "GenerationView",
    "History",
    "IntervalPoint",
    "JobList",
    "JobRunView",
    "JobView",
    "KnownVersion",
    "LiveScore",
    "MetricStatus",
    "Overview",
    "OverviewRow",
    "PointView",
    "ReferenceView",
    "ReplicaStatus",
    "RevisionStatus",
    "RolloutEvidence",
    "RolloutList",
    "RolloutStatus",
    "RunList",
    "SequenceView",
    "SeriesView",
    "Status",
    "StreamHistory",
    "StreamList",
    "StreamPointView",
    "StreamView",
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


class Alert(msgspec.Struct, frozen=True, kw_only=True):
    """One alert, and what to do about it."""

    name: str
    endpoint: str = ""
    stream: str = ""
    severity: str = "ticket"
    state: str = "pending"
    since: float | None = None
    value: float | None = None
    threshold: float | None = None
    unit: str = ""
    summary: str = ""
    action: str = ""
    silenced_until: float | None = None


class AlertList(msgspec.Struct, frozen=True, kw_only=True):
    """All alerts there are."""

    alerts: tuple[Alert, ...] = ()
