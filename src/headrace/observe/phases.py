"""Where a request's time goes, one histogram per phase."""

from dataclasses import dataclass, field

from headrace.observe.histogram import ROWS_BOUNDS, Histogram


@dataclass(slots=True, kw_only=True)
class PhaseHistograms:
    """Seconds per request by phase, and rows per batch.

    `preprocess` is bytes to tensors; `queue_wait` until its batch is formed; `compute` joins, runs
    and splits the batch; `postprocess` is tensors to bytes; `request` is all of it.
    """

    request: Histogram = field(default_factory=Histogram)
    preprocess: Histogram = field(default_factory=Histogram)
    queue_wait: Histogram = field(default_factory=Histogram)
    compute: Histogram = field(default_factory=Histogram)
    postprocess: Histogram = field(default_factory=Histogram)
    batch_rows: Histogram = field(default_factory=lambda: Histogram(ROWS_BOUNDS))
