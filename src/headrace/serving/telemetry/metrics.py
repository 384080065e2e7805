"""Metrics of a replica, under the names that existing dashboards use."""

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from headrace.core.processes import resident_bytes
from headrace.observe import BRIEF_INDEXES, Exemplars, reported_indexes
from headrace.observe.metrics import (
    Family,
    Labels,
    counter,
    gauge,
    histogram,
    histogram_sample,
    text,
)
from headrace.pipeline import Pipeline

if TYPE_CHECKING:
    from headrace.serving.state import ReplicaState

WITH_EXEMPLARS: Final = b"exemplars"
"""Value in the query by which the control plane also requests exemplars."""
BRIEF: Final = b"brief"
"""Value in the query by which the control plane requests few buckets and no duplicate metrics."""

_FINE: Final = reported_indexes(24)
"""Within 5 % also for latencies with little spread, such as a model's."""
_MEDIUM: Final = reported_indexes(12)
"""Within 5 % for latencies with a wide spread, such as queue times."""
_COARSE: Final = reported_indexes(6)

_PHASES: Final = {
    "request": ("Seconds from a request's last byte until its batch was computed.", _FINE),
    "preprocess": ("Seconds from bytes to tensors.", _MEDIUM),
    "queue_wait": ("Seconds in the queue until a batch was formed.", _MEDIUM),
    "compute": ("Seconds to join, run and split the batch that held the request.", _FINE),
    "postprocess": ("Seconds from tensors to bytes, mean of the batch.", _MEDIUM),
}


def exposition(state: "ReplicaState", query: bytes = b"") -> bytes:
    """Return the metrics of `state` in Prometheus text format 0.0.4.

    Args:
        query: May hold `WITH_EXEMPLARS`, which only OpenMetrics supports, and `BRIEF`.
    """
    exemplars = state.phases.exemplars if WITH_EXEMPLARS in query else None
    families = [
        *model_families(state, exemplars, is_brief=BRIEF in query),
        *process_families(model_labels(state)),
    ]
    return text(families, exemplars=exemplars is not None)


def model_labels(state: "ReplicaState") -> Labels:
    """Return the labels that identify a model's samples."""
    return (("model", state.name), ("version", state.version))


def model_families(
    state: "ReplicaState", exemplars: Exemplars | None = None, *, is_brief: bool
) -> Iterator[Family]:
    """Yield the metrics of one model; takes half a millisecond, or a fifth of it if brief."""
    labels = model_labels(state)
    yield from _triton(state, labels)
    for phase, (meaning, fine_places) in _PHASES.items():
        locations = BRIEF_INDEXES if is_brief else fine_places
        counted = getattr(state.phases, phase)
        examples = exemplars if phase == "request" else None
        sample = histogram_sample(counted, labels, locations, examples)
        yield histogram(f"headrace_{phase}_seconds", meaning, [sample])
    rows = histogram_sample(state.phases.batch_rows, labels)
    yield histogram("headrace_batch_rows", "Rows per run of the model.", [rows])
    model = state.served.loaded.model if state.served else None
    if isinstance(model, Pipeline):
        yield from _pipeline(model, labels, BRIEF_INDEXES if is_brief else _MEDIUM)
    if state.row_checks is not None:
        yield counter(
            "headrace_row_checks_total",
            "Rows of batches that were run alone and compared, by outcome.",
            [
                ((*labels, ("outcome", outcome)), count)
                for outcome, count in state.row_checks.outcomes.items()
            ],
        )
    if not is_brief:
        yield from _kserve(state)
    in_flight = state.waiting + (state.served.engine.in_flight if state.served else 0)
    meaning = "Requests queued or running."
    yield gauge("headrace_requests_in_flight", meaning, [(labels, in_flight)])
    meaning = "1 if the replica accepts requests."
    yield gauge("headrace_replica_ready", meaning, [(labels, state.is_ready)])


def _triton(state: "ReplicaState", labels: Labels) -> Iterator[Family]:
    """Yield Triton's counters, with its names, units and labels."""
    s = state.statistics
    meaning = "Number of successful inference requests."
    yield counter("nv_inference_request_success", meaning, [(labels, s.success.count)])
    yield counter(
        "nv_inference_request_failure",
        "Number of failed inference requests.",
        [((*labels, ("reason", reason)), count) for reason, count in s.failures.items()],
    )
    meaning = "Number of inferences (rows)."
    yield counter("nv_inference_count", meaning, [(labels, s.inference_count)])
    meaning = "Number of model executions."
    yield counter("nv_inference_exec_count", meaning, [(labels, s.execution_count)])
    waiting = state.waiting + (state.served.engine.waiting if state.served else 0)
    meaning = "Requests awaiting execution."
    yield gauge("nv_inference_pending_request_count", meaning, [(labels, waiting)])
    for name, meaning, duration in (
        ("request", "request", s.success),
        ("queue", "queue", s.queue),
        ("compute_input", "compute input", s.compute_input),
        ("compute_infer", "compute inference", s.compute_infer),
        ("compute_output", "compute output", s.compute_output),
    ):
        yield counter(
            f"nv_inference_{name}_duration_us",
            f"Cumulative {meaning} duration in microseconds.",
            [(labels, duration.ns // 1000)],
        )


def _pipeline(pipeline: Pipeline, labels: Labels, locations: Sequence[int]) -> Iterator[Family]:
    """Yield the time per step of a pipeline, and the statuses of its features."""
    yield histogram(
        "headrace_pipeline_step_seconds",
        "Seconds of a batch in one step of the pipeline.",
        [
            histogram_sample(step.seconds, (*labels, ("step", step.name)), locations)
            for step in pipeline.steps
        ],
    )
    counts = [c for c in (getattr(s.model, "counts", None) for s in pipeline.steps) if c]
    if not counts:
        return
    yield counter(
        "headrace_feature_rows_total",
        "Rows by status of a view's values.",
        [
            ((*labels, ("view", view), ("status", status)), rows)
            for features in counts
            for (view, status), rows in features.rows.items()
        ],
    )
    yield counter(
        "headrace_feature_read_failures_total",
        "Reads of the online store that failed or took too long.",
        [(labels, sum(features.failures for features in counts))],
    )
    yield counter(
        "headrace_feature_reads_skipped_total",
        "Batches that skipped the online store because of a recent failure.",
        [(labels, sum(features.pauses for features in counts))],
    )


def _kserve(state: "ReplicaState") -> Iterator[Family]:
    """Yield the histograms of KServe's Python server."""
    labels = (("model_name", state.name),)
    for name, phase in (
        ("preprocess", state.phases.preprocess),
        ("predict", state.phases.compute),
        ("postprocess", state.phases.postprocess),
    ):
        sample = histogram_sample(phase, labels, _COARSE)
        yield histogram(f"request_{name}_seconds", f"KServe's {name} latency.", [sample])


def process_families(labels: Labels) -> Iterator[Family]:
    """Yield the resource use of the process."""
    meaning = "CPU seconds used by the replica."
    yield counter("headrace_replica_cpu_seconds_total", meaning, [(labels, time.process_time())])
    meaning = "Resident memory of the replica."
    yield gauge("headrace_replica_resident_memory_bytes", meaning, [(labels, resident_bytes())])
