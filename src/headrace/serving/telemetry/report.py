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
    """Counts of predictions since counting began, for requests of the traffic split."""

    output: str = ""
    kind: str = ""
    """`class`, `score`, or empty where the output is neither."""
    counts: dict[str, int] = {}
    """By class name, or by the upper edge of the score's bucket."""
    skipped: int = 0
    """Answers that were not counted (too many classes)."""


class SampledTensor(msgspec.Struct, frozen=True, kw_only=True):
    """Copy of a tensor: `data` in NumPy's `dtype`, or `items` where that is `O`."""

    name: str
    dtype: str
    shape: list[int]
    data: bytes = b""
    items: list[bytes] = []


class RecordedAnswer(msgspec.Struct, frozen=True, array_like=True):
    """One response of a replica, kept for a rollout."""

    answer_id: str
    """The id that the gateway gave the request and its copy, otherwise the request's id."""
    unit: str = ""
    outputs: list[SampledTensor] = []
    """Outputs to compare with a shadow's; only responses of pairs have them."""
    failed: bool = False
    """Whether the request got an error instead."""

    @property
    def size_bytes(self) -> int:
        """Return the approximate memory size of the response."""
        sizes = (len(output.data) + sum(map(len, output.items)) for output in self.outputs)
        return _OVERHEAD_BYTES + sum(sizes)


class AnswersPage(msgspec.Struct, frozen=True, kw_only=True):
    """Responses after a cursor, oldest first, and the cursor for the next page.

    An empty page follows the last one. Responses that exceeded the buffer are missing.
    """

    cursor: int
    answers: list[RecordedAnswer]


class ReplicaReport(msgspec.Struct, frozen=True, kw_only=True):
    """Counters since the process started, and current values. Seconds and bytes.

    `request_s`, `run_s`, `busy_s` and `loop_s` serve the autoscaler; 0 if unknown.
    """

    replica: str
    model: str
    version: str
    at: float
    """Time of the report. Unit: seconds, monotonic."""
    ready: bool
    in_flight: int = 0
    """Requests that were accepted and not answered, queued ones included."""
    queued: int = 0
    received: int = 0
    """0 for a language model, which does not count requests."""
    answered: int = 0
    """0 for a language model."""
    failed: int = 0
    queue_wait_s: float = 0.0
    bounds_s: list[float] = []
    """Upper bounds of the buckets of both histograms; each has one more count for larger values."""
    queue_wait: list[int] = []
    request: list[int] = []
    cpu_s: float = 0.0
    """CPU time of the process."""
    request_s: float = 0.0
    """Sum of the durations of all answered requests."""
    run_s: float = 0.0
    """Sum of the run times of all answered requests."""
    busy_s: float = 0.0
    """Sum of the durations of all runs; a batch counts once."""
    loop_s: float = 0.0
    """CPU time of the event loop's thread."""
    rss_bytes: int = 0
    peak_rss_bytes: int = 0
    intra_op_threads: int = 0
    max_concurrent_runs: int = 0
    predictions: PredictionCounts | None = None
    observing: str = ""
    """Current observation settings, as sent to `PUT /internal/observe`."""
    device: DeviceUse | None = None
    """Devices that run the model; None before it is loaded, for a pool's copy, and if the
    runtime does not report it."""


class ModelLoad(msgspec.Struct, frozen=True, kw_only=True):
    """Load of one model of a process, in running totals. Seconds."""

    model: str
    version: str
    since: float
    """Start of counting, monotonic; a new value means that counting restarted."""
    at: float
    """Time of the report, monotonic."""
    batches: int = 0
    rows: int = 0
    """Rows in all `batches` together."""
    waited: int = 0
    """Requests that were queued."""
    queue_s: float = 0.0
    """Total time of `waited` requests in the queue."""
    in_flight_s: float = 0.0
    """Total time of all requests in the process, current ones included: its growth per second is
    the concurrency."""
    batching: BatchingReport | None = None
    """Batching limits; None before the model was first loaded."""


class HostedReport(msgspec.Struct, frozen=True, kw_only=True):
    """State of one model in a pool's copy."""

    model: str
    version: str
    phase: str
    """`unloaded`, `loading`, `loaded` or `failed`, with the `reason`."""
    size_bytes: int = 0
    """Memory of the loaded model, as measured in its load check; 0 before."""
    in_flight: int = 0
    waiting: int = 0
    """Requests that wait for the model to be loaded."""
    loads: int = 0
    """Loads since it was declared."""
    unloads: int = 0
    """Unloads since it was declared."""
    reason: str = ""
    device: DeviceUse | None = None
    """As in `ReplicaReport`."""


class PoolReport(msgspec.Struct, frozen=True, kw_only=True):
    """State of one copy of a pool, and of its models."""

    pool: str
    replica: str
    digest: str = ""
    """`models_digest` of the models that the copy hosts; empty before it received them."""
    loaded_bytes: int = 0
    """Memory of all loaded models."""
    memory_bytes: int = 0
    """Limit of `loaded_bytes`."""
    max_loaded: int = 0
    models: list[HostedReport] = []


class Observe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Data that a replica collects besides its usual counters; nothing by default."""

    key: str = ""
    """Name of the rollout; another key restarts counting."""
    predictions: bool = False
    output: str = ""
    answers_percent: int = 0
    """Share of responses that are kept, chosen by id so that every replica keeps the same ones."""
    pairs: bool = False
    """Whether responses are kept with their outputs, by the gateway id that a request and its
    copy share."""


class RecordingSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Data of single requests that a replica records; nothing by default."""

    traces: bool = False
    """Whether spans are recorded for requests whose `traceparent` is sampled."""
    sample_ratio: float = 0.0
    """Share of requests whose payload is kept, without the tensors in `drop`."""
    drop: tuple[str, ...] = ()
    """Tensors to leave out: `input.NAME`, `output.NAME` or `caller`."""
    features_ratio: float = 0.0
    """Share of look-ups whose features are kept."""


class SpansPage(msgspec.Struct, frozen=True, kw_only=True):
    """Spans after a cursor, the cursor for the next page, and the total number of lost spans."""

    cursor: int
    spans: list[SpanRecord]
    dropped: int = 0


class PayloadSample(msgspec.Struct, frozen=True, kw_only=True):
    """A sampled request and its response."""

    request_id: str
    trace_id: str
    caller: str
    at: float
    """Time of the request. Unit: seconds since 1970."""
    duration_s: float
    code: str
    """`OK`, or the code of the error."""
    inputs: list[SampledTensor]
    outputs: list[SampledTensor]


class SamplesPage(msgspec.Struct, frozen=True, kw_only=True):
    """Samples after a cursor; as `SpansPage`, but in MessagePack."""

    cursor: int
    samples: list[PayloadSample]
    dropped: int = 0


class FeaturesPage(msgspec.Struct, frozen=True, kw_only=True):
    """Served features, one line of JSON each; as `SpansPage`."""

    cursor: int
    service: str
    lines: list[str]
    dropped: int = 0


def as_asked(observe: Observe) -> str:
    """Return the `ReplicaReport.observing` of a replica that observes as `observe` says."""
    return msgspec.json.encode(observe).decode() if observe.key else ""


def models_digest(models: Iterable[ReplicaSettings]) -> str:
    """Return a digest of a pool's list of models; the order does not matter."""
    ordered = sorted(models, key=lambda model: (model.model_name, model.model_version))
    return hashlib.sha256(msgspec.json.encode(ordered, order="deterministic")).hexdigest()


class DriftPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Data that a replica counts for drift detection."""

    key: str = ""
    """Name of the plan; empty for nothing."""
    bins: list[FeatureBins] = []
    """Bins of the features that have a reference."""
    sample: int = 0
    """Rows whose values are kept for all other features, until they are collected."""
    rows_per_request: int = 32
    """Most rows of one request that count."""
    labels: bool = False
    """Whether the `output` of requests with an id is kept."""
    output: str = ""


class SeenAnswer(msgspec.Struct, frozen=True, array_like=True):
    """Prediction for a request's first row: the name of a class, or a number."""

    request_id: str
    value: str | float


class DriftTaken(msgspec.Struct, frozen=True, kw_only=True):
    """Counts since the last collection; each collection restarts counting."""

    key: str = ""
    counts: list[ValueCounts] = []
    """Counts in the order of the plan's bins."""
    values: list[FeatureValues] = []
    """Values of features without bins."""
    answers: list[SeenAnswer] = []
    """Outputs for labels, if the plan keeps them."""
    seen: int = 0
    """Requests that were counted."""
    skipped: int = 0
    """Requests that were skipped because the time budget was spent."""
    age_s: float = 0.0
    """Seconds since the first of them was counted."""
