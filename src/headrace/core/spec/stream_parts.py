"""Spec parts of a stream: source, sink, formats, error policy and windows.

The spec file, the control plane and the workers of streams have these parts.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, field

from headrace.core.spec.part import DERIVED, FLAT, SpecPart

TOPIC_PATTERN: Final = r"^[A-Za-z0-9._-]{1,249}$"
LEAST_WINDOW_S: Final = 1e-6
LONGEST_WINDOW_S: Final = 366 * 86_400.0

_Topic = Annotated[str, Meta(pattern=TOPIC_PATTERN)]


class FormatKind(StrEnum):
    """How the values of records are written."""

    JSON = "json"
    """An object with a field for each input."""
    OPEN_INFERENCE = "open_inference"
    """The body of an Open Inference Protocol request, JSON only."""
    RAW = "raw"
    """The little-endian bytes of the only input."""
    AVRO = "avro"
    PROTOBUF = "protobuf"


class FailurePolicy(StrEnum):
    """What becomes of a record that has no answer."""

    DEAD_LETTER = "dead_letter"
    """It goes to another topic, with the reason."""
    SKIP = "skip"
    """It is counted and forgotten."""
    STOP = "stop"
    """The stream stops before it."""


class Timestamps(StrEnum):
    """The timestamp of an answer."""

    SOURCE = "source"
    """The timestamp of the input record, where the broker has one."""
    NOW = "now"
    """The time at which the answer is written."""


class TombstonePolicy(StrEnum):
    """The treatment of records without a value, which delete their key from a compacted topic."""

    FORWARD = "forward"
    """The sink gets a record without a value and with the same key."""
    SKIP = "skip"


class StreamSourceSpec(SpecPart, frozen=True, kw_only=True):
    """Where a stream reads."""

    broker: Annotated[str, Meta(min_length=1, max_length=4096)]
    """A URL: `log:NAME` or `log:///PATH` (embedded), `kafka://HOST:PORT`, `nats://HOST:PORT`,
    `redis://HOST:PORT/DB`, `pulsar://HOST:PORT`. `${NAME}` in it is a variable of the environment,
    for passwords."""
    topics: Annotated[tuple[_Topic, ...], Meta(min_length=1, max_length=64)]
    """What is read."""
    group: Annotated[str, Meta(min_length=1, max_length=249)] | None = None
    """Whose offsets say what is done; null for the stream's name."""
    start: Literal["earliest", "latest"] = "earliest"
    """Where it begins if the group never read: with all that is there, or what comes from then on.
    """
    session_timeout_s: Annotated[float, Meta(ge=1.0, le=1800.0)] = 10.0
    """After how long without a sign of life others take over. Unit: seconds."""


class StreamFormatSpec(SpecPart, frozen=True, kw_only=True):
    """How the values of records are written."""

    kind: FormatKind = FormatKind.JSON
    """`json`: an object with a field for each input; `open_inference`: the body of a request;
    `raw`: the bytes of the only input; the others need a schema registry."""
    fields: dict[str, str] = field(default_factory=dict)
    """What an input is called in records, if not as it is."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """For an input that is a matrix, the fields that are its columns, in order; an empty list takes
    the names that the model knows."""
    options: dict[str, Any] = field(default_factory=dict)
    """What a format with a schema registry needs besides."""


class StreamOutputSpec(SpecPart, frozen=True, kw_only=True):
    """What an answer holds besides the model's outputs."""

    key: Annotated[str, Meta(max_length=300)] = ""
    """The field of the input that is the answer's key; empty for the input's own."""
    outputs: Annotated[list[str], Meta(max_length=1000)] = field(default_factory=list)
    """The model's outputs that are wanted; empty: all."""
    fields: Annotated[list[str], Meta(max_length=1000)] = field(default_factory=list)
    """Fields of the input that answers have too."""
    headers: Literal["all"] | Annotated[tuple[str, ...], Meta(max_length=100)] = (
        "traceparent",
        "tracestate",
    )
    """Headers of the input that answers have too: names, or `all`."""
    timestamps: Timestamps = Timestamps.SOURCE
    """The timestamp of an answer: that of its input record, or the time of writing."""
    tombstones: TombstonePolicy | None = None
    """Records without a value delete their key from a compacted topic: `forward` writes such a
    record with the same key, `skip` writes nothing. Null: `forward`, or `skip` where `key` names a
    field, which these records do not have."""

    @property
    def forwards_tombstones(self) -> bool:
        """Whether records without a value are forwarded."""
        policy = TombstonePolicy.SKIP if self.key else TombstonePolicy.FORWARD
        return (self.tombstones or policy) is TombstonePolicy.FORWARD


class StreamSinkSpec(SpecPart, frozen=True, kw_only=True):
    """Where answers go, at the same broker, and what is in them."""

    topic: _Topic
    """What is written; made if it is not there."""
    output: Annotated[StreamOutputSpec, FLAT] = StreamOutputSpec()
    format: StreamFormatSpec | None = None
    """Null for the same as the stream's. See StreamFormatSpec."""


class StreamErrorsSpec(SpecPart, frozen=True, kw_only=True):
    """What becomes of records that have no answer, and of errors that may pass."""

    policy: FailurePolicy = FailurePolicy.DEAD_LETTER
    """To `dead_letters` with the reason; or counted and left out; or the stream stops before it."""
    first_delay_s: Annotated[float, Meta(gt=0.0, le=3600.0)] = 0.1
    """The first pause before what may pass is tried again; it doubles. Unit: seconds."""
    max_delay_s: Annotated[float, Meta(gt=0.0, le=3600.0)] = 10.0
    """The longest pause. Unit: seconds."""
    retry_for_s: Annotated[float, Meta(ge=0.0)] | None = 600.0
    """How long it is tried again before it counts as the record's error; null for ever. Unit:
    seconds."""
    max_age_s: Annotated[float, Meta(gt=0.0)] | None = None
    """What was written longer ago is not scored any more; null for any age. Unit: seconds."""


class Function(StrEnum):
    """What a window tells of its records."""

    COUNT = "count"
    SUM = "sum"
    MIN = "min"
    MAX = "max"
    MEAN = "mean"


class StreamWindowSpec(SpecPart, frozen=True, kw_only=True):
    """One value per key over the last while: a field that each record has from then on."""

    name: Annotated[str, Meta(min_length=1, max_length=300)]
    """Of the field that records get by it."""
    size_s: Annotated[float, Meta(ge=LEAST_WINDOW_S, le=LONGEST_WINDOW_S)]
    """Over how long. Unit: seconds of the records' time."""
    slide_s: Annotated[float, Meta(ge=LEAST_WINDOW_S, le=LONGEST_WINDOW_S)] | None = None
    """Windows end at multiples of it since 1970; null for tumbling ones: one begins where the last
    one ends. Unit: seconds."""
    function: Function = Function.COUNT
    """What it tells of its records."""
    field: Annotated[str, Meta(max_length=300)] = ""
    """Whose values; `count` without one counts all records."""
    key: Annotated[str, Meta(max_length=300)] = ""
    """The field that holds the key; empty for the record's own."""


class StreamWindowsSpec(SpecPart, frozen=True, kw_only=True):
    """Windows of a stream. They need a topic with partitions: counts are of one partition each."""

    windows: Annotated[list[StreamWindowSpec], Meta(min_length=1, max_length=256)]
    """See StreamWindowSpec."""
    time: Annotated[str, Meta(max_length=300)] = ""
    """The field with a record's time (Unix seconds, or ISO 8601 with a zone); empty for the
    record's timestamp."""
    state: Annotated[str, DERIVED] = ""
    """The folder of the state; empty for one in the stream's home."""
    lateness_s: Annotated[float, Meta(ge=0.0, le=LONGEST_WINDOW_S)] = 60.0
    """So much older than the newest record of its partition may one be; an older one is scored and
    not counted, with the windows of the oldest moment that still counts. Unit: seconds."""
    ahead_s: Annotated[float, Meta(ge=0.0, le=LONGEST_WINDOW_S)] = 300.0
    """So much later than now may a record's time be. Unit: seconds."""
    checkpoint_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 0.2
    """How often counts are written to disk; what came since is read again after a crash. Unit:
    seconds."""
