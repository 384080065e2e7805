"""Messages between the control plane and a stream worker: settings at its start, and its status.

Durations are seconds, sizes bytes.
"""

from enum import StrEnum
from typing import Final

import msgspec

from headrace.core import NullPolicy, ReplicaSettings
from headrace.core.spec.stream_parts import (
    StreamErrorsSpec,
    StreamFormatSpec,
    StreamOutputSpec,
    StreamWindowsSpec,
)
from headrace.streaming.broker import Delivery, StartPosition


class ScoringEndpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An endpoint that scores, instead of a model in this process.

    `url`: as `headrace.client.Client` takes it. `api_key_file` and `ca_file` are paths; empty for
    none. `timeout_s`: of one batch.
    """

    url: str
    name: str
    version: str = ""
    timeout_s: float = 60.0
    api_key_file: str = ""
    ca_file: str = ""


class PushSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Records are rows of a feature view, whose values they become in the online store.

    `view`: of the definitions in force in `home`, or of the stream's home without one; not looked
    up where `definition` has it, as `headrace.features.encode_view` writes it. `fields`: what a
    column of the view is called in the records, or which window it is, where that is not its name.
    `time`: the field of the event's time (Unix seconds, or ISO 8601 with a zone); empty for the
    record's timestamp. `online_store`: a URL, with `${NAME}` for a variable of the environment;
    empty for the home's own. `timeout_s`: of a write.
    """

    view: str
    definition: str = ""
    fields: dict[str, str] = {}
    time: str = ""
    home: str = ""
    online_store: str = ""
    timeout_s: float = 5.0


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One stream worker: what it reads, what scores it, where answers go.

    `broker`: a URL, whose scheme says which kind. `member`: the same over restarts. One of `model`
    and `endpoint` is given. `sink_format`: None for the same as `format`. `nulls`: of records, in
    inputs of floats. `max_delay_s`: how long a batch waits for company although the model is free.
    `commit_interval_s`: what is exactly once is delivered at most so often. `model_threads`:
    batches that run at once; None for one per usable core, at most 4. `handover_s`: how long what
    is under way may take when a place goes to another member. `paused`: whether it starts paused.
    `home`: where embedded logs lie that have a name only, and state. `windows`: counts and sums
    per key, which models take as fields of a record. `features`: records are pushed to an online
    store before they are scored; with neither `model`, `endpoint` nor `sink` that is all. Fields of
    stored settings of earlier versions that are gone are ignored.
    """

    name: str
    broker: str
    topics: list[str]
    group: str
    member: str
    sink: str = ""
    dead_letters: str = ""
    model: ReplicaSettings | None = None
    endpoint: ScoringEndpoint | None = None
    format: StreamFormatSpec = StreamFormatSpec()
    sink_format: StreamFormatSpec | None = None
    nulls: NullPolicy = NullPolicy.NAN
    output: StreamOutputSpec = StreamOutputSpec()
    errors: StreamErrorsSpec = StreamErrorsSpec()
    windows: StreamWindowsSpec | None = None
    features: PushSettings | None = None
    delivery: Delivery = Delivery.AT_LEAST_ONCE
    start: StartPosition = StartPosition.LATEST
    start_s: float | None = None
    session_timeout_s: float = 10.0
    max_batch_size: int = 256
    max_delay_s: float = 0.0
    commit_interval_s: float = 0.005
    model_threads: int | None = None
    handover_s: float = 5.0
    drain_timeout_s: float = 30.0
    paused: bool = False
    home: str = ""
    uds: str = ""
    host: str = "127.0.0.1"
    metrics_port: int | None = None
    log_format: str = "text"


EXIT_SETTINGS: Final = 2
"""The settings cannot work, or do not fit the model or the broker."""
EXIT_CANNOT_LOAD: Final = 3
"""The model cannot be loaded, or the endpoint not be asked what it takes."""
EXIT_CANNOT_LISTEN: Final = 4
"""An address cannot be had."""
EXIT_CANNOT_JOIN: Final = 5
"""The broker refuses, for good."""
EXIT_REPLACED: Final = 6
"""Another member has this one's name: two workers of one stream were given the same."""
EXIT_STOPPED_BY_RECORD: Final = 7
"""By its policy the stream stopped before a record that has no answer."""


class WorkerState(StrEnum):
    """What a worker is at."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    """It takes no records, and stays a member."""
    RETRYING = "retrying"
    """What scores, or the broker, is away: the stream waits for it."""
    RECONNECTING = "reconnecting"
    """It is no member of its group at the moment."""
    STOPPING = "stopping"
    STOPPED = "stopped"


class PartitionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One place that is this member's. Lag as in `records.Lag`; None where it is not known."""

    topic: str
    partition: int
    lag_records: int | None = None
    lag_s: float | None = None


class StreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """A worker at one moment."""

    stream: str
    member: str
    state: WorkerState = WorkerState.STARTING
    partitions: list[PartitionStatus] = msgspec.field(default_factory=list, name="places")
    """Partitions assigned to this member."""
    waiting: int = 0
    """Records that were read and are in no batch yet."""
    in_flight: int = 0
    """Records that are in batches."""
    problem: str = msgspec.field(default="", name="trouble")
    """Why no records are read or written now; empty if nothing is wrong."""
    last_error: str = ""
    lag_measured_at: float = msgspec.field(default=0.0, name="at")
    """When lag was measured, in Unix time."""
    read: int = 0
    answered: int = 0
    dead_letters: int = 0
    without_answer: int = 0
    retries: int = 0
    still_s: float = 0.0
    """For how long the thread that talks to the broker has not come round; what the rest says is
    about as old."""
    unassigned_s: float = 0.0
    """For how long it has had no partition."""
    lacks_topic: bool = False
    """It is no member, as a topic that it reads does not exist; `trouble` names it."""
    row_problem: str = ""
    """How a row's answer depended on the others that were scored with it."""
