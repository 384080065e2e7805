"""A replica's figures as Prometheus text, under names that people's dashboards already use."""

import resource
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from headrace.observe import Histogram

if TYPE_CHECKING:
    from headrace.serving.state import ReplicaState

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"

_PHASES: Final = {
    "request": "Seconds from a request's last byte until its batch was computed.",
    "preprocess": "Seconds from bytes to tensors.",
    "queue_wait": "Seconds in the queue until a batch was formed.",
    "compute": "Seconds to join, run and split the batch that held the request.",
    "postprocess": "Seconds from tensors to bytes, mean of the batch.",
}


def exposition(state: "ReplicaState") -> bytes:
    """The metrics of `state`, in Prometheus' text format 0.0.4."""
    return "\n".join(_lines(state)).encode() + b"\n"


def _lines(state: "ReplicaState") -> Iterator[str]:
    labels = f'model="{state.name}",version="{state.version}"'
    yield from _triton(state, labels)
    for phase, text in _PHASES.items():
        yield from _histogram(
            f"headrace_{phase}_seconds", text, getattr(state.phases, phase), labels
        )
    yield from _histogram(
        "headrace_batch_rows", "Rows per run of the model.", state.phases.batch_rows, labels
    )
    yield from _kserve(state)
    in_flight = state.served.engine.in_flight if state.served else 0
    yield from _single(
        "headrace_requests_in_flight", "gauge", "Requests queued or running.", labels, in_flight
    )
    yield from _single(
        "headrace_replica_ready",
        "gauge",
        "1 if the replica takes requests.",
        labels,
        int(state.is_ready),
    )
    yield from _process(labels)


def _triton(state: "ReplicaState", labels: str) -> Iterator[str]:
    """Triton's counters, with its names, units and labels."""
    s = state.statistics
    yield from _single(
        "nv_inference_request_success",
        "counter",
        "Number of successful inference requests.",
        labels,
        s.success.count,
    )
    name = "nv_inference_request_failure"
    yield from _head(name, "counter", "Number of failed inference requests.")
    for reason, count in s.failures.items():
        yield f'{name}{{{labels},reason="{reason}"}} {count}'
    waiting = state.served.engine.waiting if state.served else 0
    for name, kind, text, value in (
        ("nv_inference_count", "counter", "Number of inferences (rows).", s.inference_count),
        ("nv_inference_exec_count", "counter", "Number of model executions.", s.execution_count),
        ("nv_inference_pending_request_count", "gauge", "Requests awaiting execution.", waiting),
        (
            "nv_inference_request_duration_us",
            "counter",
            "Cumulative request duration in microseconds.",
            s.success.ns // 1000,
        ),
        (
            "nv_inference_queue_duration_us",
            "counter",
            "Cumulative queue duration in microseconds.",
            s.queue.ns // 1000,
        ),
        (
            "nv_inference_compute_input_duration_us",
            "counter",
            "Cumulative compute input duration in microseconds.",
            s.compute_input.ns // 1000,
        ),
        (
            "nv_inference_compute_infer_duration_us",
            "counter",
            "Cumulative compute inference duration in microseconds.",
            s.compute_infer.ns // 1000,
        ),
        (
            "nv_inference_compute_output_duration_us",
            "counter",
            "Cumulative compute output duration in microseconds.",
            s.compute_output.ns // 1000,
        ),
    ):
        yield from _single(name, kind, text, labels, value)


def _kserve(state: "ReplicaState") -> Iterator[str]:
    """KServe's histograms of its Python server."""
    labels = f'model_name="{state.name}"'
    for name, phase in (
        ("request_preprocess_seconds", state.phases.preprocess),
        ("request_predict_seconds", state.phases.compute),
        ("request_postprocess_seconds", state.phases.postprocess),
    ):
        text = f"KServe's {name.removeprefix('request_').removesuffix('_seconds')} latency."
        yield from _histogram(name, text, phase, labels)


def _process(labels: str) -> Iterator[str]:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    yield from _single(
        "headrace_replica_cpu_seconds_total",
        "counter",
        "CPU seconds used by the replica.",
        labels,
        usage.ru_utime + usage.ru_stime,
    )
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    yield from _single(
        "headrace_replica_resident_memory_bytes",
        "gauge",
        "Resident memory of the replica.",
        labels,
        pages * resource.getpagesize(),
    )


def _head(name: str, kind: str, text: str) -> Iterator[str]:
    yield f"# HELP {name} {text}"
    yield f"# TYPE {name} {kind}"


def _single(name: str, kind: str, text: str, labels: str, value: float) -> Iterator[str]:
    yield from _head(name, kind, text)
    yield f"{name}{{{labels}}} {value}"


def _histogram(name: str, text: str, histogram: Histogram, labels: str) -> Iterator[str]:
    yield from _head(name, "histogram", text)
    total = 0
    for bound, count in zip((*histogram.bounds, "+Inf"), histogram.counts, strict=True):
        total += count
        yield f'{name}_bucket{{{labels},le="{bound}"}} {total}'
    yield f"{name}_sum{{{labels}}} {histogram.sum}"
    yield f"{name}_count{{{labels}}} {total}"
