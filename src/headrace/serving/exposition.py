"""A replica's figures as Prometheus text, under names that people's dashboards already use."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final

from headrace.observe import BRIEF_PLACES, Exemplars, told
from headrace.observe.text import histogram_lines, metric_head, single
from headrace.pipeline import Pipeline
from headrace.serving.memory import cpu_s, resident_bytes

if TYPE_CHECKING:
    from headrace.serving.state import ReplicaState

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
WITH_EXEMPLARS: Final = b"exemplars"
"""In the query by which the control plane asks for examples too."""
BRIEF: Final = b"brief"
"""In the query by which the control plane asks for few buckets, and for no metric twice."""

_FINE: Final = told(24)
"""Within 5 % also of latencies that hardly spread, as a model's are."""
_MEDIUM: Final = told(12)
"""Within 5 % of what spreads widely, as waiting does."""
_COARSE: Final = told(6)

_PHASES: Final = {
    "request": ("Seconds from a request's last byte until its batch was computed.", _FINE),
    "preprocess": ("Seconds from bytes to tensors.", _MEDIUM),
    "queue_wait": ("Seconds in the queue until a batch was formed.", _MEDIUM),
    "compute": ("Seconds to join, run and split the batch that held the request.", _FINE),
    "postprocess": ("Seconds from tensors to bytes, mean of the batch.", _MEDIUM),
}


def exposition(state: "ReplicaState", query: bytes = b"") -> bytes:
    """The metrics of `state`, in Prometheus' text format 0.0.4.

    Args:
        query: May hold `WITH_EXEMPLARS`, which only OpenMetrics knows, and `BRIEF`.
    """
    labels = model_labels(state)
    exemplars = state.phases.exemplars if WITH_EXEMPLARS in query else None
    lines = (
        *_model(state, labels, exemplars, is_brief=BRIEF in query),
        *process_lines(labels),
    )
    return "\n".join(lines).encode() + b"\n"


class JoinedExposition:
    """The same of several models in one process: metrics of each are added, then the text is taken.

    A metric's samples stand together under one head, as Prometheus wants them. Those that differ in
    nothing but the version, which KServe's have no label for, are added up.
    """

    def __init__(self) -> None:
        self._heads: dict[str, list[str]] = {}
        self._samples: dict[str, dict[str, str]] = {}

    def add_model(self, state: "ReplicaState", query: bytes = b"") -> None:
        """Add the metrics of one model: half a millisecond, or a fifth of it if `BRIEF`."""
        self.add(_model(state, model_labels(state), is_brief=BRIEF in query))

    def add(self, lines: Iterable[str]) -> None:
        """Add lines, of which each metric's begin with its head."""
        samples: dict[str, str] = {}
        for line in lines:
            if line.startswith("#"):
                name = line.split(" ", 3)[2]
                head = self._heads.setdefault(name, [])
                if line not in head:
                    head.append(line)
                samples = self._samples.setdefault(name, {})
            else:
                series, _, value = line.rpartition(" ")
                before = samples.get(series)
                samples[series] = value if before is None else _sum(before, value)

    def text(self) -> bytes:
        """All of it."""
        lines = (
            line
            for name, head in self._heads.items()
            for line in (*head, *map(" ".join, self._samples[name].items()))
        )
        return "\n".join(lines).encode() + b"\n"


def _sum(one: str, other: str) -> str:
    total = float(one) + float(other)
    return str(int(total)) if total.is_integer() else repr(total)


def model_labels(state: "ReplicaState") -> str:
    """What tells a model's samples apart."""
    return f'model="{state.name}",version="{state.version}"'


def _model(
    state: "ReplicaState", labels: str, exemplars: Exemplars | None = None, *, is_brief: bool
) -> Iterator[str]:
    yield from _triton(state, labels)
    for phase, (text, fine_places) in _PHASES.items():
        places = BRIEF_PLACES if is_brief else fine_places
        histogram = getattr(state.phases, phase)
        lines = histogram_lines(f"headrace_{phase}_seconds", text, histogram, labels, places)
        if phase == "request" and exemplars is not None:
            lines = _with_exemplars(lines, places, exemplars)
        yield from lines
    rows = state.phases.batch_rows
    places = tuple(range(len(rows.bounds)))
    yield from histogram_lines(
        "headrace_batch_rows", "Rows per run of the model.", rows, labels, places
    )
    model = state.served.loaded.model if state.served else None
    if isinstance(model, Pipeline):
        yield from _pipeline(model, labels, BRIEF_PLACES if is_brief else _MEDIUM)
    if state.row_checks is not None:
        name = "headrace_row_checks_total"
        yield from metric_head(
            name, "counter", "Rows of batches that were run alone and compared, by outcome."
        )
        for outcome, count in state.row_checks.outcomes.items():
            yield f'{name}{{{labels},outcome="{outcome}"}} {count}'
    if not is_brief:
        yield from _kserve(state)
    in_flight = state.waiting + (state.served.engine.in_flight if state.served else 0)
    yield from single(
        "headrace_requests_in_flight", "gauge", "Requests queued or running.", labels, in_flight
    )
    yield from single(
        "headrace_replica_ready",
        "gauge",
        "1 if the replica takes requests.",
        labels,
        int(state.is_ready),
    )


def _triton(state: "ReplicaState", labels: str) -> Iterator[str]:
    """Triton's counters, with its names, units and labels."""
    s = state.statistics
    yield from single(
        "nv_inference_request_success",
        "counter",
        "Number of successful inference requests.",
        labels,
        s.success.count,
    )
    name = "nv_inference_request_failure"
    yield from metric_head(name, "counter", "Number of failed inference requests.")
    for reason, count in s.failures.items():
        yield f'{name}{{{labels},reason="{reason}"}} {count}'
    waiting = state.waiting + (state.served.engine.waiting if state.served else 0)
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
        yield from single(name, kind, text, labels, value)


def _pipeline(pipeline: Pipeline, labels: str, places: Sequence[int]) -> Iterator[str]:
    """Where a pipeline's time goes, and what its features came to."""
    name = "headrace_pipeline_step_seconds"
    yield from metric_head(name, "histogram", "Seconds of a batch in one step of the pipeline.")
    for step in pipeline.steps:
        lines = histogram_lines(name, "", step.seconds, f'{labels},step="{step.name}"', places)
        yield from (line for line in lines if not line.startswith("#"))
    counts = [c for c in (getattr(s.model, "counts", None) for s in pipeline.steps) if c]
    if not counts:
        return
    name = "headrace_feature_rows_total"
    yield from metric_head(name, "counter", "Rows by how a view's values were found.")
    for one in counts:
        for (view, status), rows in one.rows.items():
            yield f'{name}{{{labels},view="{view}",status="{status}"}} {rows}'
    yield from single(
        "headrace_feature_read_failures_total",
        "counter",
        "Reads of the online store that failed or took too long.",
        labels,
        sum(one.failures for one in counts),
    )
    yield from single(
        "headrace_feature_reads_skipped_total",
        "counter",
        "Batches that did not ask the online store, as it had failed a moment before.",
        labels,
        sum(one.pauses for one in counts),
    )


def _kserve(state: "ReplicaState") -> Iterator[str]:
    """KServe's histograms of its Python server."""
    labels = f'model_name="{state.name}"'
    for name, phase in (
        ("request_preprocess_seconds", state.phases.preprocess),
        ("request_predict_seconds", state.phases.compute),
        ("request_postprocess_seconds", state.phases.postprocess),
    ):
        text = f"KServe's {name.removeprefix('request_').removesuffix('_seconds')} latency."
        yield from histogram_lines(name, text, phase, labels, _COARSE)


def process_lines(labels: str) -> Iterator[str]:
    """What the process uses."""
    yield from single(
        "headrace_replica_cpu_seconds_total",
        "counter",
        "CPU seconds used by the replica.",
        labels,
        cpu_s(),
    )
    yield from single(
        "headrace_replica_resident_memory_bytes",
        "gauge",
        "Resident memory of the replica.",
        labels,
        resident_bytes(),
    )


def _with_exemplars(
    lines: Iterable[str], places: Sequence[int], exemplars: Exemplars
) -> Iterator[str]:
    """The lines of a histogram; those of buckets with an example of what is in them."""
    edges = [-1, *places, len(exemplars.due) - 1]
    bucket = 0
    for line in lines:
        if "_bucket{" not in line:
            yield line
            continue
        found = exemplars.between(edges[bucket], edges[bucket + 1])
        bucket += 1
        if found is None:
            yield line
        else:
            name, content, value, at = found
            yield f'{line} # {{{name}="{content}"}} {value} {at:.3f}'
