"""Where a request's time goes, one histogram per phase."""

from dataclasses import dataclass, field

from headrace.observe.exemplars import Exemplars
from headrace.observe.histogram import ROWS_BOUNDS, SECONDS_BOUNDS, Histogram


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
