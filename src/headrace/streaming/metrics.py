"""Counters of a stream worker and their metrics.

The thread that owns the session writes the counters; others read them.
"""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
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

ROWS_BOUNDS = tuple(float(1 << power) for power in range(14))
"""Upper bounds for the sizes of micro-batches: 1, 2, 4, ... 8192 records."""


@dataclass(slots=True)
class WindowCounters:
    """Counters of windows."""

    late: int = 0
    """Records that arrived too late to be counted."""
    keys: int = 0
    """Keys in memory now."""
    opened: int = 0
    """States that were opened and continued."""
    rebuilt: int = 0
    """States that were rebuilt from the topic."""
    incomplete: int = 0
    """Rebuilt states that may miss records that retention has deleted."""
    restored_records: int = 0
    """Records that were read again only to restore windows."""
    checkpoints: Histogram = field(default_factory=Histogram)


@dataclass(slots=True)
class Counters:
    """Counters since the worker started."""

    read: int = 0
    answered: int = 0
    dead_letters: int = 0
    """Records that were written to the dead-letter topic."""
    failed: dict[Code, int] = field(default_factory=dict)
    """Records without an answer, by error code."""
    batches: Histogram = field(default_factory=lambda: Histogram(ROWS_BOUNDS))
    score: Histogram = field(default_factory=Histogram)
    latency: Histogram = field(default_factory=Histogram)
    """Seconds from a record's timestamp until its answer was passed to the broker."""
    deliver: Histogram = field(default_factory=Histogram)
    runs: int = 0
    """Runs of the model: a batch of records with several shapes takes several runs."""
    rows: int = 0
    """Rows in these runs."""
    retries: int = 0
    expired: int = 0
    """Records that retention deleted before they were read."""
    sessions: int = 0
    assigned: int = 0
    revoked: int = 0
    lost: int = 0
    windows: WindowCounters = field(default_factory=WindowCounters)

    def scored(self, *, seconds: float, runs: int, rows: int) -> None:
        """Count a finished attempt of a batch."""
        self.score.observe(seconds)
        self.runs += runs
        self.rows += rows

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
    for name, meaning, value in (
        ("records_read", "Records that were read.", counters.read),
        ("records_answered", "Records whose answers were handed to the broker.", counters.answered),
        ("dead_letters", "Records that went to the dead-letter topic.", counters.dead_letters),
        ("batches", "Micro-batches that were taken.", counters.batches.count),
        ("model_runs", "Runs of the model.", counters.runs),
        ("rows", "Rows that were run.", counters.rows),
        ("retries", "Batches that were tried again.", counters.retries),
        ("records_expired", "Records that retention deleted unread.", counters.expired),
        ("sessions", "How often the worker joined its group.", counters.sessions),
        ("places_gained", "Partitions that came to this member.", counters.assigned),
        ("places_given_up", "Partitions that went to another member.", counters.revoked),
        ("places_lost", "Partitions that were taken away.", counters.lost),
    ):
        yield counter(f"headrace_stream_{name}_total", meaning, [(labels, value)])
    yield counter(
        "headrace_stream_records_without_answer_total",
        "Records that have no answer, by the error's code.",
        [((*labels, ("code", code)), count) for code, count in sorted(counters.failed.items())],
    )


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
    for name, meaning, value in (
        ("late_records", "Records that came too late to be counted in windows.", counters.late),
        ("states_opened", "States of windows that were found and read on from.", counters.opened),
        ("states_rebuilt", "States of windows that were made again of the log.", counters.rebuilt),
        ("states_incomplete", "Those of them that the log had not all for.", counters.incomplete),
        ("restored_records", "Records read again for windows only.", counters.restored_records),
    ):
        yield counter(f"headrace_stream_window_{name}_total", meaning, [(labels, value)])
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
