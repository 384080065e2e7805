"""Metrics of a stream worker."""

import time
from collections.abc import Iterator
from typing import Final

from headrace.core.processes import resident_bytes
from headrace.observe import told
from headrace.observe.metrics import (
    Family,
    Labels,
    counter,
    gauge,
    histogram,
    histogram_sample,
    text,
)
from headrace.streaming.counters import Counters, WindowCounters
from headrace.streaming.status import State, StreamStatus

_PLACES: Final = told(12)


def exposition(counters: Counters, status: StreamStatus) -> bytes:
    """All of them in Prometheus text format 0.0.4."""
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
        ("dead_letters", "Records that went to the dead-letter topic.", counters.letters),
        ("batches", "Micro-batches that were taken.", counters.batches.count),
        ("model_runs", "Runs of the model.", counters.runs),
        ("rows", "Rows that were run.", counters.rows),
        ("retries", "Batches that were tried again.", counters.retries),
        ("sessions", "How often the worker joined its group.", counters.sessions),
        ("places_gained", "Partitions that came to this member.", counters.gained),
        ("places_given_up", "Partitions that went to another member.", counters.given_up),
        ("places_lost", "Partitions that were taken away.", counters.lost),
    ):
        yield counter(f"headrace_stream_{name}_total", meaning, [(labels, value)])
    yield counter(
        "headrace_stream_records_without_answer_total",
        "Records that have no answer, by the error's code.",
        [((*labels, ("code", code)), count) for code, count in sorted(counters.without.items())],
    )


def _histograms(counters: Counters, labels: Labels) -> Iterator[Family]:
    for name, meaning, counted, places in (
        (
            "latency_seconds",
            "Seconds from a record's timestamp to its answer's delivery.",
            counters.latency,
            _PLACES,
        ),
        (
            "score_seconds",
            "Seconds to decode, run and encode a micro-batch.",
            counters.score,
            _PLACES,
        ),
        ("deliver_seconds", "Seconds to hand answers to the broker.", counters.deliver, _PLACES),
        ("batch_records", "Records of a micro-batch.", counters.batches, None),
    ):
        sample = histogram_sample(counted, labels, places)
        yield histogram(f"headrace_stream_{name}", meaning, [sample])


def _windows(counters: WindowCounters, labels: Labels) -> Iterator[Family]:
    """Nothing for streams that have none."""
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
    sample = histogram_sample(counters.checkpoints, labels, _PLACES)
    meaning = "Seconds to write windows' states."
    yield histogram("headrace_stream_window_checkpoint_seconds", meaning, [sample])


def _state(status: StreamStatus, labels: Labels) -> Iterator[Family]:
    for name, meaning, value in (
        ("waiting", "Records that were read and wait for a run.", status.waiting),
        ("in_flight", "Records that are scored, or wait for delivery.", status.in_flight),
        ("places", "Partitions that are this member's.", len(status.places)),
        ("trouble", "1 if nothing comes or goes at the moment.", bool(status.trouble)),
        (
            "rows_differ",
            "1 if a row of a declared model had another answer alone than beside others.",
            bool(status.row_problem),
        ),
    ):
        yield gauge(f"headrace_stream_{name}", meaning, [(labels, value)])
    partitions = [
        ((*labels, ("topic", place.topic), ("partition", str(place.partition))), place)
        for place in status.places
    ]
    yield gauge(
        "headrace_stream_lag_records",
        "Records that wait in the log, by partition.",
        [(where, p.lag_records) for where, p in partitions if p.lag_records is not None],
    )
    yield gauge(
        "headrace_stream_lag_seconds",
        "Seconds since the oldest of them was written.",
        [(where, p.lag_s) for where, p in partitions if p.lag_s is not None],
    )
    yield gauge(
        "headrace_stream_state",
        "1 for what the worker is at.",
        [((*labels, ("state", state)), state is status.state) for state in State],
    )


def _process(labels: Labels) -> Iterator[Family]:
    meaning = "CPU seconds used by the worker."
    yield counter("headrace_stream_cpu_seconds_total", meaning, [(labels, time.process_time())])
    meaning = "Resident memory of the worker."
    yield gauge("headrace_stream_resident_memory_bytes", meaning, [(labels, resident_bytes())])
