"""What the spec file says under `streams`: log in, answers out."""

from typing import Annotated, Final, Literal

from pydantic import Discriminator, Field, Strict, Tag

from headrace.core.names import NAME_PATTERN
from headrace.core.spec.base import SpecModel
from headrace.core.spec.features import EndpointFeaturesSpec, StoreName
from headrace.core.spec.stream_parts import (
    TOPIC_PATTERN,
    FailurePolicy,
    StreamErrorsSpec,
    StreamFormatSpec,
    StreamSinkSpec,
    StreamSourceSpec,
    StreamWindowsSpec,
)

_Topic = Annotated[str, Field(pattern=TOPIC_PATTERN)]
_Texts = Annotated[tuple[str, ...], Strict(strict=False)]


_Column = Annotated[str, Field(min_length=1, max_length=300)]


class StreamPushSpec(SpecModel):
    """Records are rows of a feature view, whose values they become in the online store."""

    view: str = Field(
        min_length=1,
        max_length=128,
        description="Of what `headrace features apply` put in force; kept as it was when the "
        "stream was applied.",
    )
    fields: dict[_Column, _Column] = Field(
        default_factory=dict,
        description="By join key or feature: what it is called in records, or which window it is, "
        "where that is not its name.",
    )
    time: str = Field(
        default="",
        max_length=300,
        description="The field with the time of what happened (Unix seconds, or ISO 8601 with a "
        "zone); empty for the record's timestamp.",
    )
    online_store: StoreName | None = Field(
        default=None, description="One of `online_stores`, by name. Null: the home's own."
    )
    timeout_s: float = Field(
        default=5.0, gt=0.0, le=600.0, description="How long a write may take. Unit: seconds."
    )


USUAL_LAG_S: Final = 60.0
_DAY_S: Final = 86_400.0


class StreamAlertsSpec(SpecModel):
    """What a stream may do before an alert fires; that it does not run at all always does."""

    lag_s: float | None = Field(
        default=USUAL_LAG_S,
        gt=0.0,
        le=366 * _DAY_S,
        description="How old the oldest record that waits may be for five minutes; null for any "
        "age. Where it is left out, `workers.target_lag_s` counts if that is given. Unit: seconds.",
    )
    dead_letters: int | None = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        description="How many dead letters of five minutes are no news, if that goes on for ten; "
        "null for any number. Unit: records.",
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
    """Scores the records of a log with a model, and writes the answers to another.

    With `push` and neither `model`, `endpoint` nor `sink`, it only fills an online store.
    """

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
        description="With an endpoint: a file with the key that it asks for.",
    )
    features: EndpointFeaturesSpec | None = Field(
        default=None, description="Records name entities, whose features are looked up."
    )
    source: StreamSourceSpec = Field(description="See StreamSourceSpec.")
    sink: StreamSinkSpec | None = Field(
        default=None, description="Null for a stream that only pushes. See StreamSinkSpec."
    )
    format: StreamFormatSpec = Field(
        default=StreamFormatSpec(), description="See StreamFormatSpec."
    )
    nulls: Literal["nan", "error"] = Field(
        default="nan",
        description="What a null is to an input of floats: NaN, a missing value, or an error of "
        "its record.",
    )
    windows: StreamWindowsSpec | None = Field(
        default=None,
        description="Counts and sums per key, which records then have as fields. See "
        "StreamWindowsSpec.",
    )
    push: StreamPushSpec | None = Field(
        default=None,
        description="Records are rows of a feature view, and go to the online store before they "
        "are scored. See StreamPushSpec.",
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
    rows_independent: bool = Field(
        default=False,
        description="Declares that records that are scored together do not influence each other's "
        "answers, as `batching.rows_independent` of an endpoint. A row is run alone at times and "
        "compared; the stream's status says if one differs.",
    )
    drain_timeout_s: float = Field(
        default=30.0,
        gt=0.0,
        le=3600.0,
        description="How long a process may take to finish what it has. Unit: seconds.",
    )
    paused: bool = Field(default=False, description="Whether it takes no records at first.")
    alerts: StreamAlertsSpec = Field(default=StreamAlertsSpec(), description="What is told of it.")

    @property
    def dead_letter_topic(self) -> str:
        """Where records go that have no answer; empty if the policy is another."""
        if self.errors.policy is not FailurePolicy.DEAD_LETTER:
            return ""
        return self.dead_letters or f"{self.name}-dead-letters"

    @property
    def bounds(self) -> StreamWorkersSpec:
        """How many processes there may be; one number is both bounds."""
        if isinstance(self.workers, int):
            return StreamWorkersSpec(min=self.workers, max=self.workers)
        return self.workers
