"""Histograms of latencies and batch sizes, and a replica's statistics of its model.

A quantile is interpolated inside its bucket, so the bucket's width bounds its error. Processes keep
fine buckets: 48 per decade, none wider than a twentieth. An exposition has every second bound, or
fewer, because each bound is a time series in the scraper.
"""

import re
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import log
from typing import Final

PER_DECADE: Final = 48
_DECADES: Final = range(-5, 2)
FINE_S: Final = (
    *(
        float(f"{10 ** (step / PER_DECADE):.3g}e{decade}")
        for decade in _DECADES
        for step in range(PER_DECADE)
    ),
    100.0,
)
"""From 10 us to 100 s."""
_EXACT_FROM_S: Final = 0.0005
_EXACT_UNTIL_S: Final = 10.0
_COARSE: Final = 6
_BRIEF_FROM_S: Final = 0.0001


def reported_indexes(per_decade: int) -> tuple[int, ...]:
    """Return indexes of `FINE_S` to report: `per_decade` from 0.5 ms to 10 s, 6 elsewhere."""
    return tuple(
        index
        for index, bound in enumerate(FINE_S)
        if index % (PER_DECADE // _COARSE) == 0
        or (_EXACT_FROM_S <= bound <= _EXACT_UNTIL_S and index % (PER_DECADE // per_decade) == 0)
    )


BRIEF_INDEXES: Final = tuple(
    index
    for index, bound in enumerate(FINE_S)
    if index % (PER_DECADE // 3) == 0 and _BRIEF_FROM_S <= bound <= _EXACT_UNTIL_S
)
"""Indexes of the bounds that are reported for each of many models: 3 per decade, 0.1 ms to 10 s."""
_TWO_DIGITS: Final = (
    1.0, 1.1, 1.2, 1.3, 1.5, 1.6, 1.8, 2.0, 2.2, 2.4, 2.7, 3.0,
    3.3, 3.6, 3.9, 4.3, 4.7, 5.1, 5.6, 6.2, 6.8, 7.5, 8.2, 9.1,
)  # fmt: skip
_FEW_DIGITS: Final = frozenset({1.0, 1.5, 2.2, 3.3, 4.7, 6.8})
TWO_DIGITS_S: Final = (
    *(
        bound
        for decade in range(-4, 2)
        for digits in _TWO_DIGITS
        if _EXACT_FROM_S <= (bound := float(f"{digits}e{decade}")) <= _EXACT_UNTIL_S
        or digits in _FEW_DIGITS
    ),
    100.0,
)
"""From 0.1 ms to 100 s, 24 per decade from 0.5 ms to 10 s: also bounds of Envoy's buckets."""
_HALF_OF_THEM: Final = frozenset(
    float(f"{digits}e{decade}") for decade in range(-4, 3) for digits in _TWO_DIGITS[::2]
)
BRIEF_TWO_DIGITS_S: Final = tuple(bound for bound in TWO_DIGITS_S if bound in _HALF_OF_THEM)
"""Of `TWO_DIGITS_S`, 12 per decade from 0.5 ms to 10 s."""
SECONDS_BOUNDS: Final = FINE_S
"""Upper bounds of latencies."""
ROWS_BOUNDS: Final = tuple(float(1 << power) for power in range(11))
"""Upper bounds for batch sizes: 1, 2, 4, ... 1024 rows."""
_SORTED_FROM: Final = 16
_IS_COMPILED: Final = not __file__.endswith(".py")


class Histogram:
    """Counts by bucket, and the sum, as in Prometheus. Not thread-safe.

    Bounds are positive. If each is about the same multiple of the previous one, a bucket is
    computed directly; otherwise the bounds are searched.
    """

    __slots__ = ("_first", "_last", "_per_log", "bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = SECONDS_BOUNDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self._first, self._last = bounds[0], bounds[-1]
        self._per_log = (len(bounds) - 1) / log(self._last / self._first) if bounds[1:] else 0.0

    def place_of(self, value: float) -> int:
        """Return the index of the bucket of `value`: of the first bound that is not below it.

        Compiled, this takes a third of the time of bisection, whose eight comparisons are of Python
        floats; interpreted it takes 1.5x as long.
        """
        if not value > self._first:
            return 0
        bounds = self.bounds
        if value > self._last:
            return len(bounds)
        index = int(log(value / self._first) * self._per_log) + 1
        while bounds[index - 1] >= value:
            index -= 1
        while bounds[index] < value:
            index += 1
        return index

    def observe(self, value: float, count: int = 1) -> int:
        """Count `value` `count` times; return the index of its bucket."""
        index = self.place_of(value) if _IS_COMPILED else bisect_left(self.bounds, value)
        self.counts[index] += count
        self.sum += value * count
        return index

    def observe_all(self, values: Sequence[float]) -> None:
        """Count each of `values` once, at half the cost of as many calls of `observe` or less.

        Many values are sorted, and then searched for the end of each bucket.
        """
        bounds, counts = self.bounds, self.counts
        self.sum += sum(values)
        if len(values) < _SORTED_FROM:
            for value in values:
                counts[self.place_of(value) if _IS_COMPILED else bisect_left(bounds, value)] += 1
            return
        ordered = sorted(values)
        begin, end = 0, len(ordered)
        while begin < end:
            index = bisect_left(bounds, ordered[begin])
            past = end if index == len(bounds) else bisect_right(ordered, bounds[index], begin)
            counts[index] += past - begin
            begin = past

    @property
    def count(self) -> int:
        """Return the number of observed values."""
        return sum(self.counts)

    def below(self, indexes: Sequence[int]) -> list[int]:
        """Return the cumulative counts at the bounds at `places`, then the count of all values."""
        running = list(accumulate(self.counts))
        return [*(running[index] for index in indexes), running[-1]]

    def quantile(self, q: float) -> float:
        """Return quantile `q` (0 to 1), interpolated inside its bucket; 0 without values."""
        rank = q * self.count
        below = 0
        lower = 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            if count and below + count >= rank:
                return lower + (bound - lower) * (rank - below) / count
            below += count
            lower = bound
        return self.bounds[-1] if self.count else 0.0


RENEWED_AFTER_S: Final = 1.0
_WORD: Final = re.compile(r"[A-Za-z0-9_.:/@+=-]{1,100}")  # OpenMetrics: 128 with the label's name


class Exemplars:
    """Newest request in each bucket, updated at most once a second; otherwise one comparison.

    The caller compares `due` with the time before it determines a request's identity.
    """

    __slots__ = ("due", "entries")

    def __init__(self, bounds: int) -> None:
        self.due = [0.0] * bounds
        self.entries: dict[int, tuple[str, str, float, float]] = {}

    def keep(self, index: int, value: float, identity: tuple[str, str], now: float) -> None:
        """Store a request as the exemplar of a bucket.

        Args:
            index: Index of the bucket.
            identity: Label and value of the request's id. An id with other characters than `_WORD`
                is dropped: callers choose ids, and not every parser handles quotes.
            now: Monotonic time.
        """
        self.due[index] = now + RENEWED_AFTER_S
        name, trace_id = identity
        if _WORD.fullmatch(trace_id):
            observed_at = time.time()  # noqa: TID251  # for people
            self.entries[index] = (name, trace_id, value, observed_at)

    def between(self, after: int, until: int) -> tuple[str, str, float, float] | None:
        """Return the newest exemplar of the buckets `(after, until]`: label, id, value, time."""
        exemplars = [
            self.entries[index] for index in range(after + 1, until + 1) if index in self.entries
        ]
        return max(exemplars, key=lambda exemplar: exemplar[-1], default=None)


@dataclass(slots=True)
class Duration:
    """Number of events and their total duration in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int, count: int = 1) -> None:
        """Count `count` more events that took `ns` together."""
        self.count += count
        self.ns += ns


@dataclass(slots=True, kw_only=True)
class BatchStatistics:
    """Times of batches of one size; `count`s are executions."""

    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)


@dataclass(slots=True, kw_only=True)
class ModelStatistics:
    """Counters of one model version since its replica started.

    `inference_count` counts rows, `execution_count` runs of the model; the `Duration`s count
    requests. `last_inference_ms` is in milliseconds since 1970, 0 before the first. `failures`
    counts by reason: REJECTED, CANCELED, BACKEND, OTHER.
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

    `preprocess` is bytes to tensors; `queue_wait` lasts until the request's batch is formed;
    `compute` joins, runs and splits the batch; `postprocess` is tensors to bytes, as the mean of
    its batch; `request` is from the last byte of the request to the end of `compute`, and
    `exemplars` are requests of it.
    """

    request: Histogram = field(default_factory=Histogram)
    preprocess: Histogram = field(default_factory=Histogram)
    queue_wait: Histogram = field(default_factory=Histogram)
    compute: Histogram = field(default_factory=Histogram)
    postprocess: Histogram = field(default_factory=Histogram)
    batch_rows: Histogram = field(default_factory=lambda: Histogram(ROWS_BOUNDS))
    exemplars: Exemplars = field(default_factory=lambda: Exemplars(len(SECONDS_BOUNDS) + 1))
