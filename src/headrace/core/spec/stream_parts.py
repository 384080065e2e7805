"""Spec parts of a stream: source, sink, formats, error policy and windows.

The spec file, the control plane and the stream workers use these parts.
"""

from enum import StrEnum
from typing import Annotated, Any, Final, Literal

from msgspec import Meta, field

from headrace.core.spec.part import DERIVED, FLAT, SpecPart

TOPIC_PATTERN: Final = r"^[A-Za-z0-9._-]{1,249}$"
MIN_WINDOW_S: Final = 1e-6
LONGEST_WINDOW_S: Final = 366 * 86_400.0

_Topic = Annotated[str, Meta(pattern=TOPIC_PATTERN)]


class FormatKind(StrEnum):
    """Encoding of the records' values."""

    JSON = "json"
    """An object with a field for each input."""
    OPEN_INFERENCE = "open_inference"
    """The body of an Open Inference Protocol request, JSON only."""
    RAW = "raw"
    """The little-endian bytes of the only input."""
    AVRO = "avro"
    PROTOBUF = "protobuf"
    OPENAI = "openai"
    """The body of a request of OpenAI's API."""


class FailurePolicy(StrEnum):
    """Treatment of a record without a prediction."""

    DEAD_LETTER = "dead_letter"
    """It is written to another topic, with the reason."""
    SKIP = "skip"
    """It is counted and dropped."""
    STOP = "stop"
    """The stream stops before it."""


class Timestamps(StrEnum):
    """Timestamp of an output record."""

    SOURCE = "source"
    """The timestamp of the input record, if the broker has one."""
    NOW = "now"
    """The time at which the output record is written."""


class TombstonePolicy(StrEnum):
    """The treatment of records without a value, which delete their key from a compacted topic."""

    FORWARD = "forward"
    """The sink gets a record without a value and with the same key."""
    SKIP = "skip"


class StreamSourceSpec(SpecPart, frozen=True, kw_only=True):
    """Source of a stream."""

    broker: Annotated[str, Meta(min_length=1, max_length=4096)]
    """A URL: `log:NAME` or `log:///PATH` (embedded), `kafka://HOST:PORT`, `nats://HOST:PORT`,
    `redis://HOST:PORT/DB`, `pulsar://HOST:PORT`. `${NAME}` in it is an environment variable, for
    passwords.
    """
    topics: Annotated[tuple[_Topic, ...], Meta(min_length=1, max_length=64)]
    """Topics to read."""
    group: Annotated[str, Meta(min_length=1, max_length=249)] | None = None
    """Consumer group that stores the offsets; null for the stream's name."""
    start: Literal["earliest", "latest"] = "earliest"
    """Start of a group without offsets: all existing records, or new records only."""
    session_timeout_s: Annotated[float, Meta(ge=1.0, le=1800.0)] = 10.0
    """Time without a heartbeat after which other workers take over. Unit: seconds."""
    group_protocol: Literal["auto", "classic", "consumer"] = "auto"
    """Kafka's group protocol. `consumer` is that of KIP-848: workers set `session_timeout_s` as the
    group's session timeout, which the brokers must permit (45 s or more by default). `auto`:
    `consumer` if the group has a session timeout of at most `session_timeout_s`, else `classic`."""


class StreamFormatSpec(SpecPart, frozen=True, kw_only=True):
    """Encoding of the records' values."""

    kind: FormatKind = FormatKind.JSON
    """`json`: an object with a field for each input; `open_inference`: the body of a request;
    `openai`: the same, of OpenAI's API; `raw`: the bytes of the only input; the others need a
    schema registry."""
    fields: dict[str, str] = field(default_factory=dict)
    """Record field of each input, if it differs from the input's name."""
    columns: dict[str, list[str]] = field(default_factory=dict)
    """Record fields that are the columns of a matrix input, in order; an empty list takes the names
    in the model.
    """
    options: dict[str, Any] = field(default_factory=dict)
    """Options of a format with a schema registry."""


class OpenAIPath(StrEnum):
    """Path of OpenAI's API that a stream calls."""

    CHAT = "/v1/chat/completions"
    COMPLETIONS = "/v1/completions"
    EMBEDDINGS = "/v1/embeddings"


_SET_BY_STREAM: Final = frozenset(
    {"model", "prompt", "input", "n", "stream", "stream_options", "encoding_format"}
)


class StreamOpenAISpec(SpecPart, frozen=True, kw_only=True):
    """Requests of OpenAI's API for the records of a stream, instead of tensors.

    The input is `text`. Outputs are `text`, `finish_reason`, `prompt_tokens` and
    `completion_tokens`, or `embedding`.
    """

    path: OpenAIPath = OpenAIPath.CHAT
    """Path that answers records. A text to embed shares its request with others."""
    body: dict[str, Any] = field(default_factory=dict)
    """Further fields of each request, such as `max_tokens`, `response_format` or `dimensions`. The
    text of a record follows `messages` as the user's message."""

    def __post_init__(self) -> None:
        if names := sorted(_SET_BY_STREAM & self.body.keys()):
            msg = f"the stream sets '{names[0]}'; remove it from 'body'"
            raise ValueError(msg)
        messages = self.body.get("messages", [])
        if "messages" in self.body and self.path is not OpenAIPath.CHAT:
            msg = f"'messages' in 'body' are for {OpenAIPath.CHAT}, not for {self.path}"
            raise ValueError(msg)
        if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
            msg = "'messages' in 'body' are a list of objects with 'role' and 'content'"
            raise ValueError(msg)


class StreamOutputSpec(SpecPart, frozen=True, kw_only=True):
    """Content of an output record besides the model's outputs."""

    key: Annotated[str, Meta(max_length=300)] = ""
    """Input field that is the output record's key; empty for the input record's key."""
    outputs: Annotated[list[str], Meta(max_length=1000)] = field(default_factory=list)
    """Outputs of the model to write; empty for all."""
    fields: Annotated[list[str], Meta(max_length=1000)] = field(default_factory=list)
    """Input fields to copy to the output record."""
    headers: Literal["all"] | Annotated[tuple[str, ...], Meta(max_length=100)] = (
        "traceparent",
        "tracestate",
    )
    """Input headers to copy to the output record: names, or `all`."""
    timestamps: Timestamps = Timestamps.SOURCE
    """Timestamp of an output record: that of its input record, or the time of writing."""
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
    """Sink of a stream, at the same broker, and the content of its records."""

    topic: _Topic
    """Topic to write; created if it does not exist."""
    output: Annotated[StreamOutputSpec, FLAT] = StreamOutputSpec()
    format: StreamFormatSpec | None = None
    """Null for the stream's format. See StreamFormatSpec."""


class StreamErrorsSpec(SpecPart, frozen=True, kw_only=True):
    """Treatment of records without a prediction, and of temporary errors."""

    policy: FailurePolicy = FailurePolicy.DEAD_LETTER
    """To `dead_letters` with the reason; or counted and dropped; or the stream stops before it."""
    first_delay_s: Annotated[float, Meta(gt=0.0, le=3600.0)] = 0.1
    """First pause before a temporary error is retried; it doubles. Unit: seconds."""
    max_delay_s: Annotated[float, Meta(gt=0.0, le=3600.0)] = 10.0
    """Longest pause. Unit: seconds."""
    retry_for_s: Annotated[float, Meta(ge=0.0)] | None = 600.0
    """How long to retry before the error counts as the record's; null for no limit. Unit: seconds.
    """
    max_age_s: Annotated[float, Meta(gt=0.0)] | None = None
    """Records older than this are not scored; null for any age. Unit: seconds."""


class Function(StrEnum):
    """Aggregate of a window's records."""

    COUNT = "count"
    SUM = "sum"
    MIN = "min"
    MAX = "max"
    MEAN = "mean"


class StreamWindowSpec(SpecPart, frozen=True, kw_only=True):
    """Aggregate per key over a time window, as a further field of each record."""

    name: Annotated[str, Meta(min_length=1, max_length=300)]
    """Name of the field that records get."""
    size_s: Annotated[float, Meta(ge=MIN_WINDOW_S, le=LONGEST_WINDOW_S)]
    """Length of the window. Unit: seconds of the records' time."""
    slide_s: Annotated[float, Meta(ge=MIN_WINDOW_S, le=LONGEST_WINDOW_S)] | None = None
    """Windows end at multiples of this since 1970; null for tumbling windows, each of which begins
    where the previous one ends. Unit: seconds.
    """
    function: Function = Function.COUNT
    """Aggregate function."""
    field: Annotated[str, Meta(max_length=300)] = ""
    """Field to aggregate; `count` without a field counts all records."""
    key: Annotated[str, Meta(max_length=300)] = ""
    """Field with the key; empty for the record's key."""


class StreamWindowsSpec(SpecPart, frozen=True, kw_only=True):
    """Windows of a stream. They need a topic with partitions: each window counts one partition."""

    windows: Annotated[list[StreamWindowSpec], Meta(min_length=1, max_length=256)]
    """See StreamWindowSpec."""
    time: Annotated[str, Meta(max_length=300)] = ""
    """Field with a record's time (Unix seconds, or ISO 8601 with a zone); empty for the record's
    timestamp.
    """
    state: Annotated[str, DERIVED] = ""
    """Folder of the state; empty for a folder in the stream's home."""
    lateness_s: Annotated[float, Meta(ge=0.0, le=LONGEST_WINDOW_S)] = 60.0
    """How much older than the newest record of its partition a record may be; an older one is
    scored but not counted, with the windows of the oldest time that still counts. Unit: seconds.
    """
    ahead_s: Annotated[float, Meta(ge=0.0, le=LONGEST_WINDOW_S)] = 300.0
    """How far a record's time may be in the future. Unit: seconds."""
    checkpoint_s: Annotated[float, Meta(ge=0.0, le=3600.0)] = 0.2
    """Interval of checkpoints to disk; later records are read again after a crash. Unit: seconds.
    """
