"""Where does a stream read and write, and how are the values of records written?"""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Field, Strict

from headrace.core.spec_base import SpecModel

FormatName = Literal["json", "open_inference", "raw", "avro", "protobuf"]
_WITHOUT_FIELDS: Final = ("raw", "open_inference")
_TOPIC_PATTERN: Final = r"^[A-Za-z0-9._-]{1,249}$"
Topic = Annotated[str, Field(pattern=_TOPIC_PATTERN)]
Texts = Annotated[tuple[str, ...], Strict(strict=False)]


class StreamSourceSpec(SpecModel):
    """Where a stream reads."""

    broker: str = Field(
        min_length=1,
        max_length=4096,
        description="A URL: `log:NAME` or `log:///PATH` (embedded), `kafka://HOST:PORT`, "
        "`nats://HOST:PORT`, `redis://HOST:PORT/DB`, `pulsar://HOST:PORT`. `${NAME}` in it is a "
        "variable of the environment, for passwords.",
    )
    topics: Annotated[tuple[Topic, ...], Strict(strict=False)] = Field(
        min_length=1, max_length=64, description="What is read."
    )
    group: str | None = Field(
        default=None,
        min_length=1,
        max_length=249,
        description="Whose offsets say what is done; null for the stream's name.",
    )
    start: Literal["earliest", "latest"] = Field(
        default="earliest",
        description="Where it begins if the group never read: with all that is there, or what "
        "comes from then on.",
    )
    session_timeout_s: float = Field(
        default=10.0,
        ge=1.0,
        le=1800.0,
        description="After how long without a sign of life others take over. Unit: seconds.",
    )


class StreamSinkSpec(SpecModel):
    """Where answers go, at the same broker, and what is in them."""

    topic: Topic = Field(description="What is written; made if it is not there.")
    key: str = Field(
        default="",
        max_length=300,
        description="The field of the input that is the answer's key; empty for the input's own.",
    )
    outputs: Texts = Field(
        default=(), max_length=1000, description="The model's outputs that are wanted; empty: all."
    )
    fields: Texts = Field(
        default=(), max_length=1000, description="Fields of the input that answers have too."
    )
    headers: Literal["all"] | Annotated[Texts, Field(max_length=100)] = Field(
        default=("traceparent", "tracestate"),
        description="Headers of the input that answers have too: names, or `all`.",
    )
    timestamps: Literal["source", "now"] = Field(
        default="source",
        description="The timestamp of an answer: that of its input record, or the time of writing.",
    )
    tombstones: Literal["forward", "skip"] | None = Field(
        default=None,
        description="Records without a value delete their key from a compacted topic: `forward` "
        "writes such a record with the same key, `skip` writes nothing. Null: `forward`, or "
        "`skip` where `key` names a field, which these records do not have.",
    )
    format: "StreamFormatSpec | None" = Field(
        default=None, description="Null for the same as the stream's. See StreamFormatSpec."
    )


class StreamFormatSpec(SpecModel):
    """How the values of records are written."""

    kind: FormatName = Field(
        default="json",
        description="`json`: an object with a field for each input; `open_inference`: the body of "
        "a request; `raw`: the bytes of the only input; the others need a schema registry.",
    )
    fields: dict[str, str] = Field(
        default_factory=dict, description="What an input is called in records, if not as it is."
    )
    columns: dict[str, Texts] = Field(
        default_factory=dict,
        description="For an input that is a matrix, the fields that are its columns, in order; an "
        "empty list takes the names that the model knows.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="What a format with a schema registry needs besides."
    )


StreamSinkSpec.model_rebuild()


def kind_without_fields(stream: Mapping[Any, Any]) -> str | None:
    """The kind of a stream's format, of the raw document, if its records have no fields by name."""
    told = stream.get("format")
    kind = told.get("kind") if isinstance(told, Mapping) else None
    return kind if isinstance(kind, str) and kind in _WITHOUT_FIELDS else None
