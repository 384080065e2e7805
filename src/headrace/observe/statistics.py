"""What a replica counts about its model: Triton's statistics, and histograms of phases."""

from dataclasses import dataclass, field

from headrace.observe.histogram import ROWS_BOUNDS, SECONDS_BOUNDS, Exemplars, Histogram


@dataclass(slots=True)
class Duration:
    """How often something happened and how long it took in all, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count `count` more events that took `ns` together."""
        self.count += count
        self.ns += ns


@dataclass(slots=True, kw_only=True)
class BatchStatistics:
    """What batches of one size took; `count`s are executions."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True, kw_only=True)
class ModelStatistics:
    """One model version's counters since its replica started.

    `inference_count` counts rows, `execution_count` runs of the model; the `Duration`s count
    requests. `last_inference_ms` is in milliseconds since 1970, 0 before the first.
    `failures` counts by reason: REJECTED, CANCELED, BACKEND, OTHER.
    """

    name: str
    version: str
    last_inference_ms: int = 0
    inference_count: int = 0
    execution_count: int = 0
    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    batches: dict[int, BatchStatistics] = field(default_factory=dict)
    failures: dict[str, int] = field(
        default_factory=lambda: {"REJECTED": 0, "CANCELED": 0, "BACKEND": 0, "OTHER": 0}
    )


@dataclass(slots=True, kw_only=True)
class PhaseHistograms:
    """Seconds per request by phase, and rows per batch.

    `preprocess` is bytes to tensors; `queue_wait` until its batch is formed; `compute` joins, runs
    and splits the batch; `postprocess` is tensors to bytes, as the mean of its batch; `request` is
    from the last byte of the request to the end of `compute`, and `exemplars` are requests of it.
    """

    request: Histogram = field(default_factory=Histogram)
    preprocess: Histogram = field(default_factory=Histogram)
    queue_wait: Histogram = field(default_factory=Histogram)
    compute: Histogram = field(default_factory=Histogram)
    postprocess: Histogram = field(default_factory=Histogram)
    batch_rows: Histogram = field(default_factory=lambda: Histogram(ROWS_BOUNDS))
    exemplars: Exemplars = field(default_factory=lambda: Exemplars(len(SECONDS_BOUNDS) + 1))
