"""What may stand under `streams` in the spec file: log in, answers out."""

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import Discriminator, Field, Strict, Tag

from headrace.core.names import NAME_PATTERN
from headrace.core.spec_base import SpecModel
from headrace.core.spec_features import FeaturesSpec, feature_disagreements
from headrace.core.spec_yaml import SpecMistake

FormatName = Literal["json", "open_inference", "raw", "avro", "protobuf"]
_TOPIC_PATTERN: Final = r"^[A-Za-z0-9._-]{1,249}$"
_Topic = Annotated[str, Field(pattern=_TOPIC_PATTERN)]
_Texts = Annotated[tuple[str, ...], Strict(strict=False)]


class StreamSourceSpec(SpecModel):
    """Where a stream reads."""

    broker: str = Field(
        min_length=1,
        max_length=4096,
        description="A URL: `log:NAME` or `log:///PATH` (embedded), `kafka://HOST:PORT`, "
        "`nats://HOST:PORT`, `redis://HOST:PORT/DB`, `pulsar://HOST:PORT`. `${NAME}` in it is a "
        "variable of the environment, for passwords.",
    )
    topics: Annotated[tuple[_Topic, ...], Strict(strict=False)] = Field(
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

    topic: _Topic = Field(description="What is written; made if it is not there.")
    key: str = Field(
        default="",
        max_length=300,
        description="The field of the input that is the answer's key; empty for the input's own.",
    )
    outputs: _Texts = Field(
        default=(), max_length=1000, description="The model's outputs that are wanted; empty: all."
    )
    fields: _Texts = Field(
        default=(), max_length=1000, description="Fields of the input that answers have too."
    )
    headers: _Texts = Field(
        default=("traceparent", "tracestate"),
        max_length=100,
        description="Headers of the input that answers have too.",
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
    columns: dict[str, _Texts] = Field(
        default_factory=dict,
        description="For an input that is a matrix, the fields that are its columns, in order; an "
        "empty list takes the names that the model knows.",
    )
    options: dict[str, Any] = Field(
        default_factory=dict, description="What a format with a schema registry needs besides."
    )


class StreamErrorsSpec(SpecModel):
    """What becomes of records that have no answer, and of errors that may pass."""

    policy: Literal["dead_letter", "skip", "stop"] = Field(
        default="dead_letter",
        description="To `dead_letters` with the reason; or counted and left out; or the stream "
        "stops before it.",
    )
    first_delay_s: float = Field(
        default=0.1,
        gt=0.0,
        le=3600.0,
        description="The first pause before what may pass is tried again; it doubles. Unit: "
        "seconds.",
    )
    max_delay_s: float = Field(
        default=10.0, gt=0.0, le=3600.0, description="The longest pause. Unit: seconds."
    )
    retry_for_s: float | None = Field(
        default=600.0,
        ge=0.0,
        description="How long it is tried again before it counts as the record's error; null for "
        "ever. Unit: seconds.",
    )
    max_age_s: float | None = Field(
        default=None,
        gt=0.0,
        description="What was written longer ago is not scored any more; null for any age. Unit: "
        "seconds.",
    )


class StreamWorkersSpec(SpecModel):
    """How many processes share the partitions, by how far they are behind."""

    min: int = Field(default=1, ge=1, le=1024, description="At least. Unit: processes.")
    max: int = Field(ge=1, le=1024, description="At most, and never more than partitions.")
    target_lag_s: float = Field(
        default=10.0,
        gt=0.0,
        le=86_400.0,
        description="How old the oldest record may be that waits. Unit: seconds.",
    )


def _kind_of_workers(value: object) -> str:
    return "number" if isinstance(value, int) else "bounds"


_Workers = Annotated[
    Annotated[int, Field(ge=1, le=1024), Tag("number")]
    | Annotated[StreamWorkersSpec, Tag("bounds")],
    Discriminator(_kind_of_workers),
]


class StreamSpec(SpecModel):
    """Scores the records of a log with a model, and writes the answers to another."""

    name: str = Field(
        pattern=NAME_PATTERN, description="What commands name, and what members are called after."
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="A model file or directory (relative to the spec file), or a registry "
        "reference NAME[:VERSION], which the stream's own processes run.",
    )
    endpoint: str | None = Field(
        default=None,
        pattern=NAME_PATTERN,
        description="Instead of `model`: an endpoint of this file, asked through the gateway.",
    )
    api_key_file: str | None = Field(
        default=None,
        max_length=4096,
        description="With `endpoint`: a file with the key that it asks for.",
    )
    features: FeaturesSpec | None = Field(
        default=None, description="Records name entities, whose features are looked up."
    )
    source: StreamSourceSpec = Field(description="See StreamSourceSpec.")
    sink: StreamSinkSpec = Field(description="See StreamSinkSpec.")
    format: StreamFormatSpec = Field(
        default=StreamFormatSpec(), description="See StreamFormatSpec."
    )
    delivery: Literal["at_least_once", "exactly_once"] = Field(
        default="at_least_once",
        description="What a crash may do: some answers twice, or none (for who reads committed "
        "records only).",
    )
    max_batch_size: int = Field(
        default=256, ge=1, le=65_536, description="Records scored together. Unit: records."
    )
    max_delay_s: float = Field(
        default=0.0,
        ge=0.0,
        le=60.0,
        description="How long a batch waits for company while the model is free. Unit: seconds.",
    )
    errors: StreamErrorsSpec = Field(
        default=StreamErrorsSpec(), description="See StreamErrorsSpec."
    )
    dead_letters: _Topic | None = Field(
        default=None,
        description="Where records go that have no answer; null for `NAME-dead-letters`.",
    )
    workers: _Workers = Field(
        default=1,
        description="Processes that share the partitions: a number, or bounds. See "
        "StreamWorkersSpec.",
    )
    model_threads: int | None = Field(
        default=None, ge=1, le=1024, description="Runs of the model at once in a process."
    )
    labels: dict[str, _Texts] = Field(
        default_factory=dict, description="Class names by output name, for `classification`."
    )
    runtime: str = Field(
        default="",
        pattern=r"^[a-z0-9_]{0,64}$",
        description="Which runtime loads the model; empty detects it from the file.",
    )
    allow_code: bool = Field(
        default=False,
        description="Whether a model may be of a format that runs code of its author's.",
    )
    drain_timeout_s: float = Field(
        default=30.0,
        gt=0.0,
        le=3600.0,
        description="How long a process may take to finish what it has. Unit: seconds.",
    )
    paused: bool = Field(default=False, description="Whether it takes no records at first.")

    @property
    def dead_letter_topic(self) -> str:
        """Where records go that have no answer; empty if the policy is another."""
        if self.errors.policy != "dead_letter":
            return ""
        return self.dead_letters or f"{self.name}-dead-letters"

    @property
    def bounds(self) -> StreamWorkersSpec:
        """How many processes there may be; one number is both bounds."""
        if isinstance(self.workers, int):
            return StreamWorkersSpec(min=self.workers, max=self.workers)
        return self.workers


StreamSinkSpec.model_rebuild()


def stream_disagreements(document: Mapping[Any, Any]) -> list[SpecMistake]:
    """What is wrong between fields of streams that may each be right; of the raw document."""
    found: list[SpecMistake] = []
    first_use: dict[str, int] = {}
    items = [one for one in _items(document.get("endpoints")) if isinstance(one, Mapping)]
    endpoints = [name for one in items if isinstance(name := one.get("name"), str)]
    for i, stream in enumerate(_items(document.get("streams"))):
        if not isinstance(stream, Mapping):
            continue
        place = f"streams[{i}]"
        found += _of_one(stream, place, endpoints)
        name = stream.get("name")
        if isinstance(name, str) and first_use.setdefault(name, i) != i:
            message = f"{name!r} is already the name of streams[{first_use[name]}]"
            found.append(SpecMistake(place=f"{place}.name", message=message))
    return found


def _of_one(stream: Mapping[Any, Any], place: str, endpoints: list[str]) -> list[SpecMistake]:
    said = [
        *_what_scores(stream, place, endpoints),
        *_topics(stream, place),
        *_numbers(stream, place),
    ]
    return [SpecMistake(place=p, message=m) for p, m in said] + feature_disagreements(
        {"network": True, **stream}, place
    )


def _what_scores(
    stream: Mapping[Any, Any], place: str, endpoints: list[str]
) -> list[tuple[str, str]]:
    model, endpoint = stream.get("model"), stream.get("endpoint")
    if model is not None and endpoint is not None:
        return [(f"{place}.endpoint", "'model' and 'endpoint' exclude each other; keep one")]
    if model is None and endpoint is None:
        return [(place, "needs 'model', or 'endpoint' for one of this file")]
    if endpoint is None:
        if stream.get("api_key_file") is not None:
            return [(f"{place}.api_key_file", "is for a stream with 'endpoint'")]
        return []
    found = [
        (f"{place}.{key}", "stands beside 'endpoint', which has its own")
        for key in _OF_A_MODEL
        if stream.get(key)
    ]
    if isinstance(endpoint, str) and endpoint not in endpoints:
        told = f"there are: {', '.join(endpoints)}" if endpoints else "'endpoints' names none"
        found.append((f"{place}.endpoint", f"there is no endpoint {endpoint!r}; {told}"))
    return found


_OF_A_MODEL: Final = ("features", "labels", "runtime", "allow_code")


def _topics(stream: Mapping[Any, Any], place: str) -> list[tuple[str, str]]:
    source, sink = stream.get("source"), stream.get("sink")
    topics = _items(source.get("topics")) if isinstance(source, Mapping) else []
    written = sink.get("topic") if isinstance(sink, Mapping) else None
    letters = stream.get("dead_letters")
    found = []
    if written is not None and written in topics:
        message = f"{written!r} is read too: answers would be scored again, for ever"
        found.append((f"{place}.sink.topic", message))
    if letters is not None and letters in topics:
        message = f"{letters!r} is read too: its records would never end"
        found.append((f"{place}.dead_letters", message))
    if letters is not None and letters == written:
        message = f"{letters!r} is where answers go; take another topic"
        found.append((f"{place}.dead_letters", message))
    errors = stream.get("errors")
    policy = errors.get("policy") if isinstance(errors, Mapping) else None
    if letters is not None and policy in ("skip", "stop"):
        message = f"stands beside `policy: {policy}`, which sends nothing there"
        found.append((f"{place}.dead_letters", message))
    return found


def _numbers(stream: Mapping[Any, Any], place: str) -> list[tuple[str, str]]:
    found = []
    workers, errors = stream.get("workers"), stream.get("errors")
    if isinstance(workers, Mapping):
        low, high = workers.get("min", 1), workers.get("max")
        if _is_number(low) and _is_number(high) and low > high:
            found.append((f"{place}.workers.min", f"is {low}, more than 'max', {high}"))
    if isinstance(errors, Mapping):
        first, last = errors.get("first_delay_s", 0.1), errors.get("max_delay_s", 10.0)
        if _is_number(first) and _is_number(last) and first > last:
            found.append((f"{place}.errors.max_delay_s", f"is {last}, less than the first delay"))
    return found


def _is_number(value: Any) -> bool:  # noqa: ANN401  # whatever stands there
    return isinstance(value, int | float) and not isinstance(value, bool)


def _items(value: object) -> list[Any]:
    return list(value) if isinstance(value, list | tuple) else []
