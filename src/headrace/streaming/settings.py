"""Messages between the control plane and a stream worker: its start settings and its status.

Durations are seconds, sizes bytes.
"""

from enum import StrEnum
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from headrace.core import InvalidArgumentError, NullPolicy, ReplicaSettings
from headrace.core.spec.stream_parts import (
    FailurePolicy,
    FormatKind,
    StreamErrorsSpec,
    StreamFormatSpec,
    StreamOpenAISpec,
    StreamOutputSpec,
    StreamWindowsSpec,
)
from headrace.streaming.broker import Delivery, GroupProtocol, StartPosition


class ScoringEndpoint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An endpoint that scores records, instead of a model in this process."""

    url: str
    """URL of the gateway, as `headrace.client.Client` takes it."""
    name: str
    version: str = ""
    timeout_s: float = 60.0
    """Timeout of one batch."""
    api_key_file: str = ""
    """Path of a file with an API key; empty for none."""
    ca_file: str = ""
    """Path of CA certificates; empty for the system's."""
    openai: StreamOpenAISpec | None = None
    """Path of OpenAI's API that answers records; None for inference with tensors."""


class PushSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Settings for pushing records to an online store as rows of a feature view."""

    view: str
    """Name of the feature view, among the applied definitions of `home`."""
    definition: str = ""
    """The view, encoded by `headrace.features.encode_view`; then `view` is not looked up."""
    fields: dict[str, str] = {}
    """Record field, or window, of each column whose name differs."""
    time: str = ""
    """Field of the event time (Unix seconds, or ISO 8601 with a zone); empty for the timestamp."""
    home: str = ""
    """Folder of the applied definitions; empty for the stream's home."""
    online_store: str = ""
    """URL, with `${NAME}` for environment variables; empty for the home's own store."""
    timeout_s: float = 5.0
    """Timeout of a write."""


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Settings of one stream worker. Fields that earlier versions stored are ignored."""

    name: Annotated[str, Meta(pattern="^[^/]+$")]
    broker: str
    """URL of the broker; its scheme names the kind."""
    topics: Annotated[list[str], Meta(min_length=1)]
    """Topics to read."""
    group: str
    member: str
    """Member name, the same over restarts."""
    sink: str = ""
    """Topic of the answers; empty for a stream that only pushes features."""
    dead_letters: str = ""
    """Topic of dead letters; empty for none."""
    model: ReplicaSettings | None = None
    """Model to load; None with `endpoint`."""
    endpoint: ScoringEndpoint | None = None
    """Endpoint to call; None with `model`."""
    format: StreamFormatSpec = StreamFormatSpec()
    sink_format: StreamFormatSpec | None = None
    """Format of the answers; None for `format`."""
    nulls: NullPolicy = NullPolicy.NAN
    """How nulls in float inputs are treated."""
    output: StreamOutputSpec = StreamOutputSpec()
    errors: StreamErrorsSpec = StreamErrorsSpec()
    windows: StreamWindowsSpec | None = None
    """Aggregates per key, which models take as fields of a record; None for none."""
    features: PushSettings | None = None
    """Push of records to an online store before scoring; None for none."""
    delivery: Delivery = Delivery.AT_LEAST_ONCE
    start: StartPosition = StartPosition.LATEST
    start_s: float | None = None
    """Unix time at which a new group starts, instead of `start`."""
    session_timeout_s: float = 10.0
    group_protocol: GroupProtocol = GroupProtocol.AUTO
    max_batch_size: Annotated[int, Meta(ge=1)] = 256
    max_delay_s: Annotated[float, Meta(ge=0.0)] = 0.0
    """How long a batch waits for more records while the model is free."""
    commit_interval_s: Annotated[float, Meta(ge=0.0)] = 0.005
    """Shortest time between transactions, with exactly-once delivery."""
    model_threads: Annotated[int, Meta(ge=1)] | None = None
    """Batches that run at once; None for one per usable core, at most 4."""
    handover_s: float = 5.0
    """How long records in flight may take when a partition is revoked."""
    drain_timeout_s: float = 30.0
    """How long records in flight may take when the worker stops."""
    paused: bool = False
    """Whether the worker starts paused."""
    home: str = ""
    """Folder of embedded logs named without a path, and of window states."""
    uds: str = ""
    """Path of the Unix socket for the control plane; empty for none."""
    host: str = "127.0.0.1"
    """Address of the metrics port."""
    metrics_port: int | None = None
    """Port for Prometheus; None for none."""
    log_format: str = "text"
    """`text` or `json`."""


def check_settings(settings: WorkerSettings) -> None:
    """Check that fields that are valid on their own agree; the spec's windows are checked there.

    Raises:
        InvalidArgumentError: Two settings exclude each other; the message names them.
    """
    errors, kind, only_pushes = settings.errors, settings.format.kind, False
    if settings.features is not None:
        only_pushes = not settings.sink and settings.model is None and settings.endpoint is None
    for wrong, reason in (
        (
            settings.sink in settings.topics,
            f"sink '{settings.sink}' is read too: answers would be scored again",
        ),
        (
            settings.dead_letters in settings.topics,
            f"dead_letters '{settings.dead_letters}' is read too: its records would never end",
        ),
        (
            errors.policy is FailurePolicy.DEAD_LETTER and not settings.dead_letters,
            "errors.policy dead_letter needs a topic in dead_letters (or use skip or stop)",
        ),
        (
            errors.max_delay_s < errors.first_delay_s,
            "errors.max_delay_s must not be less than errors.first_delay_s",
        ),
        (
            bool(settings.output.key) and settings.output.forwards_tombstones,
            "output.tombstones forward excludes output.key: a tombstone has no fields",
        ),
        (
            not only_pushes and (settings.model is None) == (settings.endpoint is None),
            "set exactly one of model and endpoint",
        ),
        (not only_pushes and not settings.sink, "sink is empty; name the topic of the answers"),
        (
            settings.windows is not None
            and kind in {FormatKind.RAW, FormatKind.OPEN_INFERENCE, FormatKind.OPENAI},
            f"windows need a format with fields, and the format {kind} has none",
        ),
    ):
        if wrong:
            msg = f"stream '{settings.name}': {reason}"
            raise InvalidArgumentError(msg)


EXIT_SETTINGS: Final = 2
"""The settings are invalid, or do not fit the model or the broker."""
EXIT_CANNOT_LOAD: Final = 3
"""The model cannot be loaded, or the endpoint's signature cannot be read."""
EXIT_CANNOT_LISTEN: Final = 4
"""An address cannot be bound."""
EXIT_CANNOT_JOIN: Final = 5
"""The broker permanently refuses the member."""
EXIT_REPLACED: Final = 6
"""Another process has this member's name: two workers of one stream were started with it."""
EXIT_STOPPED_BY_RECORD: Final = 7
"""The stream stopped before a record without an answer, by its policy."""
EXIT_STALLED: Final = 8
"""The watchdog ended the process: a broker call did not return, or the stop took too long."""


class WorkerState(StrEnum):
    """State of a worker."""

    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    """It reads no records, and stays a member."""
    RETRYING = "retrying"
    """The scorer or the broker is unavailable: the worker retries."""
    RECONNECTING = "reconnecting"
    """It is not a member of its group at the moment."""
    STOPPING = "stopping"
    STOPPED = "stopped"


class PartitionStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Status of one assigned partition."""

    topic: str
    partition: int
    lag_records: int | None = None
    """Records behind; None if unknown."""
    lag_s: float | None = None
    """Seconds behind; None if unknown."""


class StreamStatus(msgspec.Struct, frozen=True, kw_only=True):
    """Status of a worker at one moment."""

    stream: str
    member: str
    state: WorkerState = WorkerState.STARTING
    partitions: list[PartitionStatus] = msgspec.field(default_factory=list, name="places")
    """Partitions assigned to this member."""
    waiting: int = 0
    """Records that were read and are in no batch yet."""
    in_flight: int = 0
    """Records in batches."""
    problem: str = msgspec.field(default="", name="trouble")
    """Why no records are read or written now; empty if there is no problem."""
    last_error: str = ""
    lag_measured_at: float = msgspec.field(default=0.0, name="at")
    """When lag was measured, in Unix time."""
    read: int = 0
    answered: int = 0
    dead_letters: int = 0
    without_answer: int = 0
    retries: int = 0
    expired: int = 0
    """Records that retention deleted before they were read."""
    still_s: float = 0.0
    """Seconds since the poll loop last ran; the rest of the status is about as old."""
    unassigned_s: float = 0.0
    """Seconds without an assigned partition."""
    lacks_topic: bool = False
    """Whether it cannot join because a topic that it reads does not exist."""
    row_problem: str = ""
    """How a row's answer depended on the rows that were scored with it; empty if no answer did."""
    lag_problem: str = ""
    """Why the lag is unknown; empty if it is known."""
