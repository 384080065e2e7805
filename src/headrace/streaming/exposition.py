"""A stream worker's figures as Prometheus text."""

import time
from collections.abc import Iterator
from pathlib import Path
from resource import getpagesize
from typing import Final

from headrace.observe import told
from headrace.observe.text import histogram_lines, metric_head, single
from headrace.streaming.counters import Counters, WindowCounters
from headrace.streaming.status import State, StreamStatus

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
_PLACES: Final = told(12)


def exposition(counters: Counters, status: StreamStatus) -> bytes:
    """All of it, in Prometheus' text format 0.0.4."""
    labels = f'stream="{_escaped(status.stream)}"'
    lines = (
        *_counts(counters, labels),
        *_histograms(counters, labels),
        *_windows(counters.windows, labels),
        *_state(status, labels),
        *_process(labels),
    )
    return "\n".join(lines).encode() + b"\n"


def _counts(counters: Counters, labels: str) -> Iterator[str]:
    for name, text, value in (
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
        yield from single(f"headrace_stream_{name}_total", "counter", text, labels, value)
    name = "headrace_stream_records_without_answer_total"
    yield from metric_head(name, "counter", "Records that have no answer, by the error's code.")
    for code, value in sorted(counters.without.items()):
        yield f'{name}{{{labels},code="{code}"}} {value}'


def _histograms(counters: Counters, labels: str) -> Iterator[str]:
    for name, text, histogram in (
        ("latency", "Seconds from a record's timestamp to its answer's delivery.", "latency"),
        ("score", "Seconds to decode, run and encode a micro-batch.", "score"),
        ("deliver", "Seconds to hand answers to the broker.", "deliver"),
    ):
        found = getattr(counters, histogram)
        yield from histogram_lines(f"headrace_stream_{name}_seconds", text, found, labels, _PLACES)
    batches = counters.batches
    places = range(len(batches.bounds))
    text = "Records of a micro-batch."
    yield from histogram_lines("headrace_stream_batch_records", text, batches, labels, places)


def _windows(counters: WindowCounters, labels: str) -> Iterator[str]:
    """Nothing for streams that have none."""
    if not (counters.opened or counters.rebuilt or counters.checkpoints.count):
        return
    for name, text, value in (
        ("late_records", "Records that came too late to be counted in windows.", counters.late),
        ("states_opened", "States of windows that were found and read on from.", counters.opened),
        ("states_rebuilt", "States of windows that were made again of the log.", counters.rebuilt),
        ("states_incomplete", "Those of them that the log had not all for.", counters.incomplete),
        ("restored_records", "Records read again for windows only.", counters.restored_records),
    ):
        yield from single(f"headrace_stream_window_{name}_total", "counter", text, labels, value)
    name, text = "headrace_stream_window_keys", "Keys whose windows are in memory."
    yield from single(name, "gauge", text, labels, counters.keys)
    name, text = "headrace_stream_window_checkpoint_seconds", "Seconds to write windows' states."
    yield from histogram_lines(name, text, counters.checkpoints, labels, _PLACES)


def _state(status: StreamStatus, labels: str) -> Iterator[str]:
    for name, text, value in (
        ("waiting", "Records that were read and wait for a run.", status.waiting),
        ("in_flight", "Records that are scored, or wait for delivery.", status.in_flight),
        ("places", "Partitions that are this member's.", len(status.places)),
        ("trouble", "1 if nothing comes or goes at the moment.", int(bool(status.trouble))),
        (
            "rows_differ",
            "1 if a row of a declared model had another answer alone than beside others.",
            int(bool(status.row_problem)),
        ),
    ):
        yield from single(f"headrace_stream_{name}", "gauge", text, labels, value)
    for name, text, attribute in (
        ("lag_records", "Records that wait in the log, by partition.", "lag_records"),
        ("lag_seconds", "Seconds since the oldest of them was written.", "lag_s"),
    ):
        yield from metric_head(f"headrace_stream_{name}", "gauge", text)
        for place in status.places:
            value_of = getattr(place, attribute)
            if value_of is not None:
                where = f'topic="{_escaped(place.topic)}",partition="{place.partition}"'
                yield f"headrace_stream_{name}{{{labels},{where}}} {value_of}"
    yield from metric_head("headrace_stream_state", "gauge", "1 for what the worker is at.")
    for state in State:
        yield f'headrace_stream_state{{{labels},state="{state}"}} {int(state is status.state)}'


def _process(labels: str) -> Iterator[str]:
    text = "CPU seconds used by the worker."
    name = "headrace_stream_cpu_seconds_total"
    yield from single(name, "counter", text, labels, time.process_time())
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    text = "Resident memory of the worker."
    name = "headrace_stream_resident_memory_bytes"
    yield from single(name, "gauge", text, labels, pages * getpagesize())


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
