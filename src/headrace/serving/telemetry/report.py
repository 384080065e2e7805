"""Messages between replica and control plane: reports, samples, drift."""

import hashlib
from collections.abc import Iterable
from typing import Final

import msgspec

from headrace.core import ReplicaSettings
from headrace.core.devices import DeviceUse
from headrace.observe.features import FeatureBins, FeatureValues, ValueCounts
from headrace.observe.row_checks import BatchingReport
from headrace.observe.spans import SpanRecord

_OVERHEAD_BYTES: Final = 256


class PredictionCounts(msgspec.Struct, frozen=True, kw_only=True):
    """Answers since counting began, of requests that came by the traffic split.

    `kind`: `class`, `score`, or empty where the output is neither. `counts`: by class name, or by
    the upper edge of the score's bucket. `skipped`: answers that were not counted (too many
    classes).
    """

    output: str = ""
    kind: str = ""
    counts: dict[str, int] = {}
    skipped: int = 0


class SampledTensor(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor as it was: `data` in NumPy's `dtype`, or `items` where that is `O`."""

    name: str
    dtype: str
    shape: list[int]
    data: bytes = b""
    items: list[bytes] = []


class RecordedAnswer(msgspec.Struct, frozen=True, array_like=True):
    """One answer of a replica, kept for a rollout."""

    answer_id: str
    """The id that the gateway gave the request and its copy, else the request's id."""
    unit: str = ""
    outputs: list[SampledTensor] = []
    """What a shadow's answer is compared by; only answers kept for pairs have it."""
    failed: bool = False
    """The request got an error instead."""

    @property
    def size_bytes(self) -> int:
        """The memory that the answer takes, about."""
        sizes = (len(output.data) + sum(map(len, output.items)) for output in self.outputs)
        return _OVERHEAD_BYTES + sum(sizes)


class AnswersPage(msgspec.Struct, frozen=True, kw_only=True):
    """Answers that followed a cursor, oldest first, and the cursor to ask with next.

    An empty page follows the last one. Answers that found no room are missing.
    """

    cursor: int
    answers: list[RecordedAnswer]


class ReplicaReport(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the process started, and what is now. Seconds and bytes.

    `in_flight`: requests taken and not answered, queued ones included. `bounds_s`: upper bounds of
    both histograms' buckets; each has one count more, for what is above. `cpu_s`: processor time of
    the process. `observing`: what `PUT /internal/observe` asked for, as it asked.

    For the autoscaler: `request_s` is the sum of all answered requests' durations, `run_s` that of
    all answered requests' runs, `busy_s` of all runs (a batch counts once), and `loop_s` the
    processor time of the event loop's thread. 0 where it is not known. `device`: on what the model
    runs; None before it is loaded, of a pool's copy, and where its runtime does not say.
    """

    replica: str
    model: str
    version: str
    at: float
    ready: bool
    in_flight: int = 0
    queued: int = 0
    received: int = 0
    answered: int = 0
    failed: int = 0
    queue_wait_s: float = 0.0
    bounds_s: list[float] = []
    queue_wait: list[int] = []
    request: list[int] = []
    cpu_s: float = 0.0
    request_s: float = 0.0
    run_s: float = 0.0
    busy_s: float = 0.0
    loop_s: float = 0.0
    rss_bytes: int = 0
    peak_rss_bytes: int = 0
    intra_op_threads: int = 0
    max_concurrent_runs: int = 0
    predictions: PredictionCounts | None = None
    observing: str = ""
    device: DeviceUse | None = None


class ModelLoad(msgspec.Struct, frozen=True, kw_only=True):
    """How busy one model of a process is, in running totals. Seconds; `since` and `at` monotonic.

    `since`: when it began to count; another one says that it counts anew. `batches` had `rows`
    together. `waited` requests were in the queue for `queue_s` together. `in_flight_s`: how long
    all requests were here, those that still are included, so that its growth by the second is how
    many there are at once. `batching`: None before the model was first loaded.
    """

    model: str
    version: str
    since: float
    at: float
    batches: int = 0
    rows: int = 0
    waited: int = 0
    queue_s: float = 0.0
    in_flight_s: float = 0.0
    batching: BatchingReport | None = None


class HostedReport(msgspec.Struct, frozen=True, kw_only=True):
    """One model of a pool's copy.

    `phase`: `unloaded`, `loading`, `loaded` or `failed`, with the `reason`. `size_bytes`: what it
    takes when loaded, as measured when it was tried; 0 before. `waiting`: requests that wait for it
    to be loaded. `loads` and `unloads` count since it was declared. `device`: as `ReplicaReport`.
    """

    model: str
    version: str
    phase: str
    size_bytes: int = 0
    in_flight: int = 0
    waiting: int = 0
    loads: int = 0
    unloads: int = 0
    reason: str = ""
    device: DeviceUse | None = None


class PoolReport(msgspec.Struct, frozen=True, kw_only=True):
    """One copy of a pool, and its models.

    `digest` is that of the models it was told to host, as `models_digest` makes it; empty before it
    was told. `loaded_bytes`: what loaded models take together, of at most `memory_bytes`.
    """

    pool: str
    replica: str
    digest: str = ""
    loaded_bytes: int = 0
    memory_bytes: int = 0
    max_loaded: int = 0
    models: list[HostedReport] = []


class Observe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a replica shall look at, besides what it always counts; the default is nothing.

    `key` names the rollout; another key starts counting anew. `answers_percent`: which share of the
    answers is kept, chosen by their id so that every replica keeps the same. `pairs`: they are kept
    with their outputs, by the id of the gateway that a request and its copy share.
    """

    key: str = ""
    predictions: bool = False
    output: str = ""
    answers_percent: int = 0
    pairs: bool = False


class RecordingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a replica shall record of single requests; the default is nothing.

    `traces`: spans of those whose `traceparent` says that they are traced. `sample_ratio`: of how
    many the payload is kept, without the tensors (`input.NAME`, `output.NAME`, `caller`) in `drop`.
    `features_ratio`: of how many look-ups what they gave is kept.
    """

    traces: bool = False
    sample_ratio: float = 0.0
    drop: tuple[str, ...] = ()
    features_ratio: float = 0.0


class SpansPage(msgspec.Struct, frozen=True, kw_only=True):
    """Spans that followed a cursor, the cursor to ask with next, and how many were ever lost."""

    cursor: int
    spans: list[SpanRecord]
    dropped: int = 0


class PayloadSample(msgspec.Struct, frozen=True, kw_only=True):
    """A request and its answer. `at`: seconds since 1970; `code`: `OK`, or why there is none."""

    request_id: str
    trace_id: str
    caller: str
    at: float
    duration_s: float
    code: str
    inputs: list[SampledTensor]
    outputs: list[SampledTensor]


class SamplesPage(msgspec.Struct, frozen=True, kw_only=True):
    """Samples that followed a cursor; as `SpansPage`, but in MessagePack."""

    cursor: int
    samples: list[PayloadSample]
    dropped: int = 0


class FeaturesPage(msgspec.Struct, frozen=True, kw_only=True):
    """Features that were served, a line of JSON each; as `SpansPage`."""

    cursor: int
    service: str
    lines: list[str]
    dropped: int = 0


def as_asked(observe: Observe) -> str:
    """What `ReplicaReport.observing` says while a replica does as `observe` asks."""
    return msgspec.json.encode(observe).decode() if observe.key else ""


def models_digest(models: Iterable[ReplicaSettings]) -> str:
    """What tells two lists of a pool's models apart; their order does not matter."""
    ordered = sorted(models, key=lambda model: (model.model_name, model.model_version))
    return hashlib.sha256(msgspec.json.encode(ordered, order="deterministic")).hexdigest()


class DriftPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a replica shall count of requests and answers.

    `key` names the plan; empty for nothing. `bins`: of features that have a reference. `sample`: of
    all others the values themselves are kept, of so many rows at most until they are taken.
    `rows_per_request`: at most so many rows of one request count. `labels`: keep what requests with
    an id got, of `output`.
    """

    key: str = ""
    bins: list[FeatureBins] = []
    sample: int = 0
    rows_per_request: int = 32
    labels: bool = False
    output: str = ""


class SeenAnswer(msgspec.Struct, frozen=True, array_like=True):
    """What a request got for its first row: the name of a class, or a number."""

    request_id: str
    value: str | float


class DriftTaken(msgspec.Struct, frozen=True, kw_only=True):
    """What was counted since the last time somebody asked; then counting begins anew.

    `counts`: in the order of the plan's bins. `values`: of features without bins. `answers`: for
    labels, if the plan says so. `seen`: requests that were looked at. `skipped`: those that came
    while the time for looking was used up. `age_s`: seconds since the first of them was counted.
    """

    key: str = ""
    counts: list[ValueCounts] = []
    values: list[FeatureValues] = []
    answers: list[SeenAnswer] = []
    seen: int = 0
    skipped: int = 0
    age_s: float = 0.0
