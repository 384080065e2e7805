"""What one stream worker is told at its start: the message from the control plane, as JSON.

Durations are seconds, sizes bytes.
"""

from collections.abc import Iterator
from enum import StrEnum
from typing import Any

import msgspec

from headrace.core import InvalidArgumentError, ReplicaSettings
from headrace.streaming.broker import Delivery, Start
from headrace.streaming.windows.settings import WindowsSettings, window_mistakes


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


class Policy(StrEnum):
    """What becomes of a record that has no answer."""

    DEAD_LETTER = "dead_letter"
    """It goes to another topic, with the reason."""
    SKIP = "skip"
    """It is counted and forgotten."""
    STOP = "stop"
    """The stream stops before it."""


class FormatSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How values become tensors, or answers values.

    `fields`: what an input is called in the records, where that is not its name. `columns`: for an
    input that is a matrix, the fields that are its columns, in order; an empty list takes the names
    that the model knows. `options`: what a format with a schema registry needs besides.
    """

    kind: FormatKind = FormatKind.JSON
    fields: dict[str, str] = {}
    columns: dict[str, list[str]] = {}
    options: dict[str, Any] = {}


class ErrorSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens to records that have no answer.

    Errors that may pass (a store or an endpoint that is away or overloaded) are tried again, with
    pauses from `first_delay_s`, doubled up to `max_delay_s`. Meanwhile the stream waits; after
    `retry_for_s` (None: never) they count as the records'. `max_age_s`: what was written longer ago
    is not scored any more; None for any age.
    """

    policy: Policy = Policy.DEAD_LETTER
    first_delay_s: float = 0.1
    max_delay_s: float = 10.0
    retry_for_s: float | None = 600.0
    max_age_s: float | None = None


class EndpointSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
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


class OutputSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What an answer holds besides the model's outputs.

    `key`: the field of the input that is the answer's key; empty for the input's own. `outputs`:
    those that are wanted; empty for all. `fields`: of the input that are passed on. `headers`: of
    the input that are passed on.
    """

    key: str = ""
    outputs: list[str] = []
    fields: list[str] = []
    headers: tuple[str, ...] = ("traceparent", "tracestate")


class StreamSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One stream worker: what it reads, what scores it, where answers go.

    `broker`: a URL, whose scheme says which kind. `member`: the same over restarts. One of `model`
    and `endpoint` is given. `sink_format`: None for the same as `format`. `max_delay_s`: how long a
    batch waits for company although the model is free. `commit_interval_s`: what is exactly once is
    delivered at most so often. `model_threads`: batches that run at once; None for one per usable
    core, at most 4. `handover_s`: how long what is under way may take when a place goes to another
    member. `paused`: whether it starts paused. `home`: where embedded logs lie that have a name
    only, and state. `windows`: counts and sums per key, which models take as fields of a record.
    """

    name: str
    broker: str
    topics: list[str]
    sink: str
    group: str
    member: str
    dead_letters: str = ""
    model: ReplicaSettings | None = None
    endpoint: EndpointSettings | None = None
    format: FormatSettings = FormatSettings()
    sink_format: FormatSettings | None = None
    output: OutputSettings = OutputSettings()
    errors: ErrorSettings = ErrorSettings()
    windows: WindowsSettings | None = None
    delivery: Delivery = Delivery.AT_LEAST_ONCE
    start: Start = Start.LATEST
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


def check_settings(settings: StreamSettings) -> None:
    """Refuse what cannot work, before anything is opened.

    Raises:
        InvalidArgumentError: The text names the setting.
    """
    for wrong, why in (
        (not settings.topics, "topics names none to read"),
        (
            settings.sink in settings.topics,
            f"sink '{settings.sink}' is read too: answers would be scored again, for ever",
        ),
        (
            settings.dead_letters in settings.topics,
            f"dead_letters '{settings.dead_letters}' is read too: its records would never end",
        ),
        (
            settings.errors.policy is Policy.DEAD_LETTER and not settings.dead_letters,
            "errors.policy is dead_letter, so dead_letters has to name a topic (or skip, or stop)",
        ),
        (
            (settings.model is None) == (settings.endpoint is None),
            "name one of model and endpoint",
        ),
        (settings.max_batch_size < 1, "max_batch_size is at least 1"),
        (settings.max_delay_s < 0, "max_delay_s is not negative"),
        (settings.commit_interval_s < 0, "commit_interval_s is not negative"),
        (
            settings.model_threads is not None and settings.model_threads < 1,
            "model_threads is at least 1",
        ),
        (settings.errors.first_delay_s <= 0, "errors.first_delay_s is more than 0"),
        (
            settings.errors.max_delay_s < settings.errors.first_delay_s,
            "errors.max_delay_s is less than errors.first_delay_s",
        ),
        (not settings.name or "/" in settings.name, "name is not empty and has no '/'"),
        *_of_windows(settings),
    ):
        if wrong:
            msg = f"stream '{settings.name}': {why}"
            raise InvalidArgumentError(msg)


def _of_windows(settings: StreamSettings) -> Iterator[tuple[bool, str]]:
    if settings.windows is None:
        return
    kind = settings.format.kind
    yield (
        kind in {FormatKind.RAW, FormatKind.OPEN_INFERENCE},
        f"windows are added to the fields of a record, and the format {kind} has none",
    )
    for mistake in window_mistakes(settings.windows):
        yield True, mistake
