"""Counters of a stream worker and their metrics.

The thread that owns the session writes the counters; others read them.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import Final

from headrace.core import Code
from headrace.core.processes import resident_bytes
from headrace.observe import Histogram, reported_indexes
from headrace.observe.metrics import (
    Family,
    Labels,
    counter,
    gauge,
    histogram,
    histogram_sample,
    text,
)
from headrace.streaming.in_flight import DueDelivery
from headrace.streaming.settings import StreamStatus, WorkerState

_ROWS_BOUNDS: Final = tuple(float(1 << power) for power in range(14))
"""Upper bounds for the sizes of micro-batches: 1, 2, 4, ... 8192 records."""


def _counter(name: str, meaning: str) -> int:
    """Return a field that is reported as the counter `name`; `meaning` is its help."""
    return field(default=0, metadata={name: meaning})


@dataclass(slots=True)
class WindowCounters:
    """Counters of windows."""

    late: int = _counter("late_records", "Records that came too late to be counted in windows.")
    opened: int = _counter("states_opened", "States of windows that were found and read on from.")
    rebuilt: int = _counter("states_rebuilt", "States of windows that were made again of the log.")
    incomplete: int = _counter("states_incomplete", "Those of them that the log had not all for.")
    restored_records: int = _counter("restored_records", "Records read again for windows only.")
    keys: int = 0
    """Keys in memory now."""
    checkpoints: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class Counters:
    """Counters since the worker started."""

    read: int = _counter("records_read", "Records that were read.")
    answered: int = _counter("records_answered", "Records whose answers were handed to the broker.")
    dead_letters: int = _counter("dead_letters", "Records that went to the dead-letter topic.")
    runs: int = _counter("model_runs", "Runs of the model.")
    """A batch of records with several shapes takes several."""
    rows: int = _counter("rows", "Rows that were run.")
    retries: int = _counter("retries", "Batches that were tried again.")
    expired: int = _counter("records_expired", "Records that retention deleted unread.")
    sessions: int = _counter("sessions", "How often the worker joined its group.")
    assigned: int = _counter("places_gained", "Partitions that came to this member.")
    revoked: int = _counter("places_given_up", "Partitions that went to another member.")
    lost: int = _counter("places_lost", "Partitions that were taken away.")
    failed: dict[Code, int] = field(default_factory=dict)
    """Records without an answer, by error code."""
    batches: Histogram = field(default_factory=lambda: Histogram(_ROWS_BOUNDS))
    score: Histogram = field(default_factory=Histogram)
    latency: Histogram = field(default_factory=Histogram)
    """Seconds from a record's timestamp until its answer was passed to the broker."""
    deliver: Histogram = field(default_factory=Histogram)
    windows: WindowCounters = field(default_factory=WindowCounters)

    def delivered(self, due: DueDelivery, *, now_s: float, seconds: float) -> None:
        """Count answers that were passed to the broker.

        Args:
            now_s: Unix time.
            seconds: How long passing them took.
        """
        self.deliver.observe(seconds)
        self.answered += len(due.answered)
        ages_s = [now_s - record.timestamp_s for record in due.answered if record.timestamp_s > 0]
        if ages_s and min(ages_s) < 0.0:  # of another machine's clock
            ages_s = [max(age_s, 0.0) for age_s in ages_s]
        self.latency.observe_all(ages_s)
        for failure in due.failed:
            code = failure.error.code
            self.failed[code] = self.failed.get(code, 0) + 1
            self.dead_letters += failure.dead_letter is not None


_INDEXES: Final = reported_indexes(12)


def render_metrics(counters: Counters, status: StreamStatus) -> bytes:
    """Return all metrics in Prometheus text format 0.0.4."""
    labels: Labels = (("stream", status.stream),)
    return text(
        [
            *_counts(counters, labels),
            *_histograms(counters, labels),
            *_windows(counters.windows, labels),
            *_state(status, labels),
            *_process(labels),
        ]
    )


def _counts(counters: Counters, labels: Labels) -> Iterator[Family]:
    yield from _counters(counters, "headrace_stream", labels)
    meaning = "Micro-batches that were taken."
    yield counter("headrace_stream_batches_total", meaning, [(labels, counters.batches.count)])
    yield counter(
        "headrace_stream_records_without_answer_total",
        "Records that have no answer, by the error's code.",
        [((*labels, ("code", code)), count) for code, count in sorted(counters.failed.items())],
    )


def _counters(counters: Counters | WindowCounters, prefix: str, labels: Labels) -> Iterator[Family]:
    for part in fields(counters):
        for name, meaning in part.metadata.items():
            samples = [(labels, getattr(counters, part.name))]
            yield counter(f"{prefix}_{name}_total", meaning, samples)


def _histograms(counters: Counters, labels: Labels) -> Iterator[Family]:
    for name, meaning, counted in (
        (
            "latency_seconds",
            "Seconds from a record's timestamp to its answer's delivery.",
            counters.latency,
        ),
        ("score_seconds", "Seconds to decode, run and encode a micro-batch.", counters.score),
        ("deliver_seconds", "Seconds to hand answers to the broker.", counters.deliver),
        ("batch_records", "Records of a micro-batch.", counters.batches),
    ):
        indexes = None if counted is counters.batches else _INDEXES
        sample = histogram_sample(counted, labels, indexes)
        yield histogram(f"headrace_stream_{name}", meaning, [sample])


def _windows(counters: WindowCounters, labels: Labels) -> Iterator[Family]:
    """Yield window metrics; nothing for streams without windows."""
    if not (counters.opened or counters.rebuilt or counters.checkpoints.count):
        return
    yield from _counters(counters, "headrace_stream_window", labels)
    meaning = "Keys whose windows are in memory."
    yield gauge("headrace_stream_window_keys", meaning, [(labels, counters.keys)])
    sample = histogram_sample(counters.checkpoints, labels, _INDEXES)
    meaning = "Seconds to write windows' states."
    yield histogram("headrace_stream_window_checkpoint_seconds", meaning, [sample])


def _state(status: StreamStatus, labels: Labels) -> Iterator[Family]:
    for name, meaning, value in (
        ("waiting", "Records that were read and wait for a run.", status.waiting),
        ("in_flight", "Records that are scored, or wait for delivery.", status.in_flight),
        ("places", "Partitions that are this member's.", len(status.partitions)),
        ("trouble", "1 if nothing comes or goes at the moment.", bool(status.problem)),
        (
            "rows_differ",
            "1 if a row of a declared model had another answer alone than beside others.",
            bool(status.row_problem),
        ),
    ):
        yield gauge(f"headrace_stream_{name}", meaning, [(labels, value)])
    partitions = [
        ((*labels, ("topic", partition.topic), ("partition", str(partition.partition))), partition)
        for partition in status.partitions
    ]
    yield gauge(
        "headrace_stream_lag_records",
        "Records that wait in the log, by partition.",
        [(location, p.lag_records) for location, p in partitions if p.lag_records is not None],
    )
    yield gauge(
        "headrace_stream_lag_seconds",
        "Seconds since the oldest of them was written.",
        [(location, p.lag_s) for location, p in partitions if p.lag_s is not None],
    )
    yield gauge(
        "headrace_stream_state",
        "1 for what the worker is at.",
        [((*labels, ("state", state)), state is status.state) for state in WorkerState],
    )


def _process(labels: Labels) -> Iterator[Family]:
    meaning = "CPU seconds used by the worker."
    yield counter("headrace_stream_cpu_seconds_total", meaning, [(labels, time.process_time())])
    meaning = "Resident memory of the worker."
    yield gauge("headrace_stream_resident_memory_bytes", meaning, [(labels, resident_bytes())])
