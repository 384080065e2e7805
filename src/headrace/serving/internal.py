"""Control plane requests to a replica over its Unix socket: load, reports, settings.

The load of all models is one short document: a pool may host hundreds of models, and their
histograms would be long.
"""

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from http import HTTPStatus
from typing import Final, TypeVar
from urllib.parse import parse_qs

import msgspec

from headrace.core import InvalidArgumentError, NotFoundError
from headrace.core.headers import CONTROL_HEADER
from headrace.core.internal_token import is_internal
from headrace.core.processes import resident_bytes
from headrace.core.settings import LlmSpec
from headrace.observe.row_checks import BatchingReport, report_of
from headrace.runtimes.gguf import LlmLoad
from headrace.serving.exchange import Exchange
from headrace.serving.memory import peak_bytes
from headrace.serving.routing import Handler
from headrace.serving.state import ReplicaState
from headrace.serving.telemetry.observation import Observer
from headrace.serving.telemetry.recorder import RequestRecorder
from headrace.serving.telemetry.report import (
    AnswersPage,
    ModelLoad,
    Observe,
    RecordingSettings,
    ReplicaReport,
    SamplesPage,
)


def send_loads(exchange: Exchange, states: Iterable[ReplicaState]) -> None:
    """Answer GET /internal/load with a `ModelLoad` per model."""
    exchange.send_json(msgspec.json.encode([model_load(state) for state in states]))


def model_load(state: ReplicaState) -> ModelLoad:
    """Return the load of one model from existing counters. Called on the event loop's thread."""
    now = time.monotonic()
    engine = state.served.engine if state.served else None
    statistics, phases = state.statistics, state.phases
    ended_s = (statistics.success.ns + statistics.fail.ns) / 1e9
    return ModelLoad(
        model=state.name,
        version=state.version,
        since=state.since,
        at=now,
        batches=phases.batch_rows.count,
        rows=int(phases.batch_rows.sum),
        waited=phases.queue_wait.count,
        queue_s=phases.queue_wait.sum,
        in_flight_s=ended_s + (engine.in_flight_s(now) if engine else 0.0),
        batching=_batching_report(state),
    )


def _batching_report(state: ReplicaState) -> BatchingReport | None:
    if state.described is None:
        return None
    declared = state.settings.batching.rows_independent is True
    report = replace(report_of(state.described.signature), declared=declared)
    checks = state.row_checks
    if checks is None:
        return report
    counts = {str(outcome): count for outcome, count in checks.outcomes.items()}
    return replace(report, checks=counts, difference=checks.difference)


_PERCENT: Final = 100
_TOKEN: Final = CONTROL_HEADER.encode()
RECORD_LEASE_S: Final = 600.0
"""How long a replica records without a renewed request."""
T = TypeVar("T")


class InternalApi:
    """Handlers of `/internal`; `on_change` is called after the observer's settings changed."""

    def __init__(
        self,
        state: "ReplicaState",
        observer: Observer,
        recorder: RequestRecorder,
        on_change: Callable[[], None],
    ) -> None:
        self._state = state
        self._observer = observer
        self._recorder = recorder
        self._on_change = on_change
        self._lease: asyncio.TimerHandle | None = None

    def handlers(self) -> dict[tuple[bytes, bytes], Handler]:
        """Return the handlers by method and path."""
        handlers: dict[tuple[bytes, bytes], Handler] = {
            (b"GET", b"/internal/report"): self.report,
            (b"GET", b"/internal/load"): self.load,
            (b"PUT", b"/internal/observe"): self.observe,
            (b"GET", b"/internal/answers"): self.answers,
            (b"PUT", b"/internal/record"): self.record,
            (b"GET", b"/internal/spans"): self.spans,
            (b"GET", b"/internal/samples"): self.samples,
            (b"GET", b"/internal/features"): self.features,
        }
        return {key: local_only(handler) for key, handler in handlers.items()}

    def report(self, exchange: Exchange) -> None:
        """GET /internal/report."""
        exchange.send_json(msgspec.json.encode(make_report(self._state, self._observer)))

    def load(self, exchange: Exchange) -> None:
        """GET /internal/load."""
        send_loads(exchange, [self._state])

    def observe(self, exchange: Exchange) -> None:
        """PUT /internal/observe."""
        requested = decode_body(exchange, Observe)
        if not 0 <= requested.answers_percent <= _PERCENT:
            msg = f"answers_percent is 0 to 100, got {requested.answers_percent}"
            raise InvalidArgumentError(msg)
        self._observer.observe(requested)
        self._on_change()
        exchange.send_json(msgspec.json.encode(requested))

    def answers(self, exchange: Exchange) -> None:
        """GET /internal/answers?after=CURSOR, in MessagePack: tensors are bytes."""
        _send_packed(exchange, self._observer.answers(_cursor(exchange)))

    def record(self, exchange: Exchange) -> None:
        """PUT /internal/record."""
        requested = decode_body(exchange, RecordingSettings)
        if not 0.0 <= requested.sample_ratio <= 1.0:
            msg = f"sample_ratio is 0 to 1, got {requested.sample_ratio:g}"
            raise InvalidArgumentError(msg)
        if not 0.0 <= requested.features_ratio <= 1.0:
            msg = f"features_ratio is 0 to 1, got {requested.features_ratio:g}"
            raise InvalidArgumentError(msg)
        self._record(requested)
        if self._lease is not None:
            self._lease.cancel()
        # Nobody fetches the records if the control plane is gone; a live one renews its request in
        # time.
        loop = asyncio.get_running_loop()
        self._lease = loop.call_later(RECORD_LEASE_S, self._record, RecordingSettings())
        exchange.send_json(msgspec.json.encode(requested))

    def _record(self, requested: RecordingSettings) -> None:
        self._recorder.record(requested)
        self._on_change()

    def spans(self, exchange: Exchange) -> None:
        """GET /internal/spans?after=CURSOR."""
        exchange.send_json(msgspec.json.encode(self._recorder.spans_page(_cursor(exchange))))

    def samples(self, exchange: Exchange) -> None:
        """GET /internal/samples?after=CURSOR, in MessagePack: tensors are bytes."""
        _send_packed(exchange, self._recorder.samples.page(_cursor(exchange)))

    def features(self, exchange: Exchange) -> None:
        """GET /internal/features?after=CURSOR."""
        exchange.send_json(msgspec.json.encode(self._recorder.features_page(_cursor(exchange))))


def make_report(state: "ReplicaState", observer: Observer) -> ReplicaReport:
    """Return the counters of `state` and `observer`, and the process's memory and CPU time.

    Called on the event loop's thread, whose CPU time it reports.
    """
    engine = state.served.engine if state.served else None
    waiting = state.waiting
    in_flight = waiting + (engine.in_flight if engine else 0)
    statistics, phases = state.statistics, state.phases
    answered, failed = statistics.success.count, statistics.fail.count
    llm = state.llm or LlmLoad()
    return ReplicaReport(
        replica=state.settings.replica,
        model=state.name,
        version=state.version,
        at=time.monotonic(),
        ready=state.is_ready,
        in_flight=in_flight + llm.in_flight,
        queued=waiting + (engine.waiting if engine else 0) + llm.waiting,
        received=answered + failed + in_flight,
        answered=answered,
        failed=failed,
        queue_wait_s=phases.queue_wait.sum,
        bounds_s=list(phases.request.bounds),
        queue_wait=phases.queue_wait.counts,
        request=phases.request.counts,
        cpu_s=time.process_time(),
        request_s=statistics.success.ns / 1e9,
        run_s=statistics.compute_infer.ns / 1e9 + llm.run_s,
        busy_s=sum(batch.compute_infer.ns for batch in statistics.batches.values()) / 1e9
        + llm.run_s,
        loop_s=time.thread_time(),
        rss_bytes=resident_bytes(),
        peak_rss_bytes=peak_bytes(),
        intra_op_threads=state.intra_op_threads,
        max_concurrent_runs=_concurrent_runs(state),
        predictions=observer.predictions(),
        observing=observer.asked,
        device=state.served.loaded.device if state.served else None,
    )


def _concurrent_runs(state: "ReplicaState") -> int:
    """Return the requests or batches that run at once; the slots of a language model."""
    if state.llm is not None:
        llm = state.settings.llm
        return (LlmSpec() if isinstance(llm, msgspec.UnsetType) else llm).slots
    return state.served.engine.max_concurrent_runs if state.served else 0


def _send_packed(exchange: Exchange, page: AnswersPage | SamplesPage) -> None:
    body = msgspec.msgpack.encode(page)
    exchange.send(HTTPStatus.OK, body, content_type=b"application/msgpack")


def _cursor(exchange: Exchange) -> int:
    after = parse_qs(exchange.query.decode("latin-1")).get("after", ["0"])[-1]
    if not after.isascii() or not after.isdigit() or len(after) > 18:  # noqa: PLR2004  # below 2^63
        msg = f"after must be a cursor of a previous page, got {after[:50]!r}"
        raise InvalidArgumentError(msg)
    return int(after)


def local_only(handler: Handler) -> Handler:
    """Return `handler` restricted to the control plane: the Unix socket, or its token.

    For other callers the path does not exist.
    """

    def handle(exchange: Exchange) -> None:
        is_known = exchange.connection.is_local or is_internal(exchange.headers.get(_TOKEN))
        if not is_known:
            raise NotFoundError("Not Found")
        handler(exchange)

    return handle


def decode_body(exchange: Exchange, kind: type[T]) -> T:
    """Return the body decoded as a message.

    Raises:
        InvalidArgumentError: It cannot be decoded; the message names the location.
    """
    try:
        return msgspec.json.decode(exchange.body, type=kind)
    except msgspec.MsgspecError as error:
        raise InvalidArgumentError(str(error)) from error
