"""Spec part `streams`: records in, predictions out."""

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
    StreamOpenAISpec,
    StreamSinkSpec,
    StreamSourceSpec,
    StreamWindowsSpec,
)

_Topic = Annotated[str, Field(pattern=TOPIC_PATTERN)]
_Texts = Annotated[tuple[str, ...], Strict(strict=False)]


_Column = Annotated[str, Field(min_length=1, max_length=300)]


class StreamPushSpec(SpecModel):
    """Records as rows of a feature view, whose values are written to the online store."""

    view: str = Field(
        min_length=1,
        max_length=128,
        description="A feature service of `headrace features apply`, as it was when the stream was "
        "applied.",
    )
    fields: dict[_Column, _Column] = Field(
        default_factory=dict,
        description="Per join key or feature, its name in records, or the window that computes "
        "it, if different from its own name.",
    )
    time: str = Field(
        default="",
        max_length=300,
        description="Field with the event time (Unix seconds, or ISO 8601 with a zone); empty "
        "for the record's timestamp.",
    )
    online_store: StoreName | None = Field(
        default=None,
        description="An entry of `online_stores`, by name. Null: the online store of the home "
        "directory.",
    )
    timeout_s: float = Field(
        default=5.0, gt=0.0, le=600.0, description="How long a write may take. Unit: seconds."
    )


USUAL_LAG_S: Final = 60.0
_DAY_S: Final = 86_400.0


class StreamAlertsSpec(SpecModel):
    """Thresholds of a stream's alerts; a stream that does not run always alerts."""

    lag_s: float | None = Field(
        default=USUAL_LAG_S,
        gt=0.0,
        le=366 * _DAY_S,
        description="Age of the oldest waiting record that alerts if it lasts five minutes; null "
        "for no alert. If omitted, `workers.target_lag_s` is used if set. Unit: seconds.",
    )
    dead_letters: int | None = Field(
        default=0,
        ge=0,
        le=1_000_000_000,
        description="Dead letters in five minutes that are tolerated; more alert if it lasts ten "
        "minutes; null for no alert. Unit: records.",
    )


class StreamWorkersSpec(SpecModel):
    """Number of processes that share the partitions, by consumer lag."""

    min: int = Field(default=1, ge=1, le=1024, description="Minimum. Unit: processes.")
    max: int = Field(
        ge=1, le=1024, description="Maximum, and never more than the number of partitions."
    )
    target_lag_s: float = Field(
        default=10.0,
        gt=0.0,
        le=86_400.0,
        description="Target age of the oldest waiting record. Unit: seconds.",
    )


def _kind_of_workers(value: object) -> str:
    return "number" if isinstance(value, int) else "bounds"


_Workers = Annotated[
    Annotated[int, Field(ge=1, le=1024), Tag("number")]
    | Annotated[StreamWorkersSpec, Tag("bounds")],
    Discriminator(_kind_of_workers),
]


class StreamSpec(SpecModel):
    """Scores the records of a topic with a model, and writes the predictions to another topic.

    With `push` and neither `model`, `endpoint` nor `sink`, it only fills an online store.
    """

    name: str = Field(
        pattern=NAME_PATTERN,
        description="Name for commands; consumer group members are named after it.",
    )
    model: str | None = Field(
        default=None,
        min_length=1,
        max_length=4096,
        description="A model file or directory (relative to the spec file), or a registry "
        "reference NAME[:VERSION], which the stream's processes run.",
    )
    endpoint: str | None = Field(
        default=None,
        pattern=NAME_PATTERN,
        description="Instead of `model`: an endpoint of this file, called through the gateway.",
    )
    api_key_file: str | None = Field(
        default=None,
        max_length=4096,
        description="With an endpoint: file with its API key.",
    )
    openai: StreamOpenAISpec | None = Field(
        default=None,
        description="With an endpoint: calls a path of OpenAI's API. See StreamOpenAISpec.",
    )
    features: EndpointFeaturesSpec | None = Field(
        default=None, description="Looks up features of the entities that records name."
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
        description="How a null in a float input is treated: as NaN, as a missing value, or as "
        "an error of its record.",
    )
    windows: StreamWindowsSpec | None = Field(
        default=None,
        description="Counts and sums per key, added to records as fields. See StreamWindowsSpec.",
    )
    push: StreamPushSpec | None = Field(
        default=None,
        description="Records are rows of a feature view, and are written to the online store "
        "before they are scored. See StreamPushSpec.",
    )
    delivery: Literal["at_least_once", "exactly_once"] = Field(
        default="at_least_once",
        description="Delivery guarantee: duplicates after a crash, or none (for consumers that "
        "read committed records only).",
    )
    max_batch_size: int = Field(
        default=256, ge=1, le=65_536, description="Records scored together. Unit: records."
    )
    max_delay_s: float = Field(
        default=0.0,
        ge=0.0,
        le=60.0,
        description="How long a batch waits for more records while the model is idle. Unit: "
        "seconds.",
    )
    errors: StreamErrorsSpec = Field(
        default=StreamErrorsSpec(), description="See StreamErrorsSpec."
    )
    dead_letters: _Topic | None = Field(
        default=None,
        description="Topic for records that cannot be scored; null for `NAME-dead-letters`.",
    )
    workers: _Workers = Field(
        default=1,
        description="Processes that share the partitions: a number, or bounds. See "
        "StreamWorkersSpec.",
    )
    model_threads: int | None = Field(
        default=None, ge=1, le=1024, description="Parallel runs of the model in a process."
    )
    labels: dict[str, _Texts] = Field(
        default_factory=dict, description="Class names by output name, for `classification`."
    )
    runtime: str = Field(
        default="",
        pattern=r"^[a-z0-9_]{0,64}$",
        description="Runtime that loads the model; empty detects it from the file.",
    )
    allow_code: bool = Field(
        default=False,
        description="Whether the model may have a format that runs its author's code.",
    )
    rows_independent: bool = Field(
        default=False,
        description="Declares that records that are scored together do not influence each other's "
        "predictions, as `batching.rows_independent` of an endpoint. Single rows are "
        "sampled, run alone and compared; the stream's status reports a difference.",
    )
    drain_timeout_s: float = Field(
        default=30.0,
        gt=0.0,
        le=3600.0,
        description="How long a process may take to finish its records on shutdown. Unit: seconds.",
    )
    paused: bool = Field(default=False, description="Whether the stream starts paused.")
    alerts: StreamAlertsSpec = Field(
        default=StreamAlertsSpec(), description="Alerts of the stream."
    )

    @property
    def dead_letter_topic(self) -> str:
        """Return the topic for records without a prediction; empty for another policy."""
        if self.errors.policy is not FailurePolicy.DEAD_LETTER:
            return ""
        return self.dead_letters or f"{self.name}-dead-letters"

    @property
    def bounds(self) -> StreamWorkersSpec:
        """Return the bounds of the number of processes; a single number is both."""
        if isinstance(self.workers, int):
            return StreamWorkersSpec(min=self.workers, max=self.workers)
        return self.workers
