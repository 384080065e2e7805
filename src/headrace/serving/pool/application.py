"""Routes of a pool's replica: HTTP, gRPC over Envoy's bridge, and metrics of all hosted models."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from operator import add
from typing import Any, Final
from urllib.parse import parse_qs

import msgspec
import orjson

from headrace.core import (
    HeadraceError,
    ModelNotFoundError,
    NotFoundError,
    PermissionDeniedError,
    ReplicaSettings,
    UnavailableError,
    UnsupportedError,
)
from headrace.core.headers import HOSTED_VERSION_HEADER
from headrace.core.processes import resident_bytes
from headrace.engine import Ticket
from headrace.observe import Histogram
from headrace.observe.metrics import (
    TEXT_TYPE,
    Family,
    MetricSample,
    counter,
    gauge,
    merge,
    number,
    text,
)
from headrace.protocol import (
    IndexEntry,
    decode_index_request,
    encode_document,
    model_statistics,
    repository_index,
    server_metadata,
)
from headrace.protocol.grpc_codec import frame
from headrace.protocol.grpc_messages import (
    encode_health,
    encode_response,
    parse_request,
    rpc_names,
)
from headrace.protocol.openai import ModelField, decode_request, model_and_version
from headrace.protocol.protos import HEALTH_SERVICE, INFERENCE_SERVICE
from headrace.serving.application import send_refusal
from headrace.serving.exchange import GRPC_HEAD, Exchange
from headrace.serving.grpc.bridge import (
    HEALTH_PATH,
    INFER,
    STREAM_INFER,
    check_content_type,
    message_of,
    named_model,
)
from headrace.serving.internal import decode_body, local_only, send_loads
from headrace.serving.invocations import INVOCATIONS
from headrace.serving.memory import peak_bytes
from headrace.serving.openai import OPENAI_ROUTES
from headrace.serving.pages import OPENAPI, page_handlers, send_openapi, send_root
from headrace.serving.pool.hosted import HostedModel, HostedPhase
from headrace.serving.pool.pool import ModelPool
from headrace.serving.routing import Handler, Router, Table, add_routes, why_no_model
from headrace.serving.telemetry.metrics import BRIEF, model_families, model_labels, process_families
from headrace.serving.telemetry.report import ReplicaReport
from headrace.serving.v2 import decoded_body

Choose = Callable[[str, str, Exchange], HostedModel | None]
_GRPC_DESCRIBE: Final = frozenset({"ModelMetadata", "ModelConfig"})
_STATISTICS: Final = "ModelStatistics"
_READY: Final = "ModelReady"


class PoolGrpc:
    """Handlers of the inference service's rpcs, for one model or for the process."""

    def __init__(self, pool: ModelPool, choose: Choose, *, has_repository: bool) -> None:
        self._pool = pool
        self._choose = choose
        self._has_repository = has_repository

    def handlers(self) -> dict[tuple[bytes, bytes], Handler]:
        """Return the handlers by method and path."""
        service = f"/{INFERENCE_SERVICE}/".encode()
        of_models = {INFER, _READY, _STATISTICS, *_GRPC_DESCRIBE}
        handlers: dict[tuple[bytes, bytes], Handler] = {
            (b"POST", service + rpc.encode()): partial(
                self._of_model if rpc in of_models else self._about_the_process, rpc
            )
            for rpc in rpc_names()
            if rpc != STREAM_INFER
        }
        handlers[(b"POST", HEALTH_PATH)] = self._check_health
        return handlers

    def _message(self, exchange: Exchange) -> bytes | bytearray | memoryview:
        return message_of(exchange, self._pool.settings.max_body_bytes)

    def _of_model(self, rpc: str, exchange: Exchange) -> None:
        """Dispatch a call to the model that it names."""
        check_content_type(exchange)
        name, version = named_model(self._message(exchange))
        if rpc == _STATISTICS and not name:
            statistics = [model.state.statistics for model in self._pool.models.values()]
            self._send(exchange, rpc, model_statistics(statistics))
            return
        hosted = self._choose(name, version, exchange)
        if hosted is None and rpc == _READY:
            self._send(exchange, rpc, {"ready": False})
        elif hosted is None:
            raise ModelNotFoundError(name[:200], version[:50])
        elif rpc == INFER:
            self._pool.infer(hosted, exchange)
        elif rpc in _GRPC_DESCRIBE:
            self._pool.describe(hosted, exchange)
        else:
            hosted.application.handle(exchange)

    def _about_the_process(self, rpc: str, exchange: Exchange) -> None:
        check_content_type(exchange)
        match rpc:
            case "ServerLive":
                self._send(exchange, rpc, {"live": True})
            case "ServerReady":
                self._send(exchange, rpc, {"ready": self._pool.is_ready})
            case "ServerMetadata":
                self._send(exchange, rpc, server_metadata(has_model_repository=False))
            case "RepositoryIndex" | "RepositoryModelLoad" | "RepositoryModelUnload":
                msg = "the model repository is managed on the management port"
                raise PermissionDeniedError(msg)
            case _:
                raise UnsupportedError(f"{rpc} is not supported")

    def _send(self, exchange: Exchange, rpc: str, fields: dict[str, Any]) -> None:
        exchange.send_ok(GRPC_HEAD, frame(encode_response(rpc, fields)))

    def _check_health(self, exchange: Exchange) -> None:
        check_content_type(exchange)
        message = bytes(self._message(exchange))
        service = parse_request("Check", message, service=HEALTH_SERVICE).service
        names = {name for name, _ in self._pool.models}
        if service not in {"", INFERENCE_SERVICE, *names}:
            msg = f"unknown service '{service[:200]}'"
            raise NotFoundError(msg)
        exchange.send_ok(GRPC_HEAD, frame(encode_health(serving=self._pool.is_ready)))


async def pool_exposition(pool: "ModelPool", query: bytes = b"") -> bytes:
    """Return the metrics of `pool` in Prometheus text format 0.0.4; `query` may hold `BRIEF`.

    Models without requests are left out. Other requests are answered in between.
    """
    families: list[Family] = []
    for hosted in list(pool.models.values()):
        if hosted.is_used:
            families += model_families(hosted.state, is_brief=BRIEF in query)
            await asyncio.sleep(0)
    families += _pool_families(pool)
    return text(map(_summed, merge(families).values()))


def _summed(family: Family) -> Family:
    """Return `family` with one sample per series: KServe's series have no label for the version."""
    if len({(sample.name, sample.labels) for sample in family.samples}) == len(family.samples):
        return family
    totals: dict[tuple[str, str], float] = {}
    for sample in family.samples:
        series = sample.name, sample.labels
        totals[series] = totals.get(series, 0.0) + float(sample.value)
    samples = [MetricSample(*series, number(total)) for series, total in totals.items()]
    return Family(family.name, family.type, family.help, samples)


def _pool_families(pool: "ModelPool") -> Iterator[Family]:
    hosted = [(model_labels(model.state), model) for model in pool.models.values()]
    yield gauge(
        "headrace_pool_model_loaded",
        "1 if the model is loaded.",
        [(labels, model.phase is HostedPhase.LOADED) for labels, model in hosted],
    )
    yield counter(
        "headrace_pool_loads_total",
        "Number of times the model was loaded.",
        [(labels, model.loads) for labels, model in hosted],
    )
    yield counter(
        "headrace_pool_unloads_total",
        "Number of times the model was unloaded to make room.",
        [(labels, model.unloads) for labels, model in hosted],
    )
    report = pool.report()
    labels = (("pool", report.pool),)
    yield gauge(
        "headrace_pool_loaded_bytes",
        "Memory of loaded models, as measured in their load checks.",
        [(labels, report.loaded_bytes)],
    )
    yield gauge(
        "headrace_pool_memory_bytes",
        "Memory limit for loaded models.",
        [(labels, report.memory_bytes)],
    )
    yield from process_families(labels)


POOL_PREFIX: Final = "pool:"
"""Prefix of a pool's name where an endpoint's name is expected."""


def pool_totals(pool: ModelPool) -> ReplicaReport:
    """Return the summed counters of all models of `pool`. Called on the event loop's thread."""
    models = list(pool.models.values())
    states = [hosted.state for hosted in models]
    statistics = [state.statistics for state in states]
    waiting = sum(state.waiting for state in states)
    in_flight = waiting + sum(hosted.in_flight for hosted in models)
    queued = waiting + sum(s.served.engine.waiting for s in states if s.served)
    answered = sum(model_statistics.success.count for model_statistics in statistics)
    failed = sum(model_statistics.fail.count for model_statistics in statistics)
    batches = (
        batch for model_statistics in statistics for batch in model_statistics.batches.values()
    )
    return ReplicaReport(
        replica=pool.settings.replica,
        model=POOL_PREFIX + pool.settings.name,
        version="",
        at=time.monotonic(),
        ready=pool.is_ready,
        in_flight=in_flight,
        queued=queued,
        received=answered + failed + in_flight,
        answered=answered,
        failed=failed,
        queue_wait_s=sum(state.phases.queue_wait.sum for state in states),
        bounds_s=list(Histogram().bounds),
        queue_wait=_together([state.phases.queue_wait for state in states]),
        request=_together([state.phases.request for state in states]),
        cpu_s=time.process_time(),
        request_s=sum(model_statistics.success.ns for model_statistics in statistics) / 1e9,
        run_s=sum(model_statistics.compute_infer.ns for model_statistics in statistics) / 1e9,
        busy_s=sum(batch.compute_infer.ns for batch in batches) / 1e9,
        loop_s=time.thread_time(),
        rss_bytes=resident_bytes(),
        peak_rss_bytes=peak_bytes(),
        intra_op_threads=1,
    )


def _together(histograms: list[Histogram]) -> list[int]:
    counts = Histogram().counts
    for histogram in histograms:
        counts = list(map(add, counts, histogram.counts))
    return counts


_VERSION: Final = HOSTED_VERSION_HEADER.encode()
"""Version that the gateway selected for a request whose path names none."""
_INFER: Final = frozenset({(b"POST", b"/infer"), (b"POST", b":predict"), (b"POST", INVOCATIONS)})
_OF_MODELS: Final = (b"/v2/models/", b"/v1/models/")
_DESCRIBE: Final = frozenset({(b"GET", b""), (b"GET", b"/config"), (b"GET", OPENAPI)})


class PoolApplication:
    """HTTP API of a pool's replica; `has_repository` as in `Application`."""

    def __init__(self, pool: ModelPool, *, has_repository: bool) -> None:
        self._pool = pool
        self._has_repository = has_repository
        self._grpc = PoolGrpc(pool, self.choose, has_repository=has_repository)
        self._router = self._make_router()

    def handle(self, exchange: Exchange) -> None:
        """Answer `exchange` as `Application.handle` does: the request edge."""
        try:
            self._router.find(exchange)(exchange)
        except HeadraceError as error:
            send_refusal(exchange, error)
        except Exception:  # noqa: BLE001  # the request edge: a bug fails only this request
            exchange.fail()

    def cancel(self, ticket: Ticket) -> None:
        """Cancel the request of a caller that left before the response."""
        assert isinstance(ticket, Exchange)
        self._pool.cancel(ticket)

    def choose(self, name: str, version: str, exchange: Exchange) -> HostedModel | None:
        """Return the model that a request names; None if it is not hosted.

        Of several versions, the one that the gateway names is used, otherwise the newest.

        Raises:
            UnavailableError: The replica has not received its list of models yet.
        """
        self._pool.check_reported()
        models = self._pool.models
        version = version or exchange.headers.get(_VERSION, b"").decode("latin-1")
        if version:
            return models.get((name, version))
        versions = [v for n, v in models if n == name]
        return models[(name, max(versions, key=_age))] if versions else None

    # Routes

    def _make_router(self) -> Router:
        table: Table = {}
        versions = Counter(name for name, _ in self._pool.models)
        for hosted in self._pool.models.values():
            self._add_model(table, hosted, is_alone=versions[hosted.state.name] == 1)
        add_routes(table, self._handlers())
        return Router(table, self._why_not)

    def _add_model(self, table: Table, hosted: HostedModel, *, is_alone: bool) -> None:
        """Add a model's paths; of several versions, those without a version go to `_by_version`."""
        exact = b"/v2/models/%b/versions/%b" % tuple(part.encode() for part in hosted.key)
        for path, methods in hosted.application.model_table.items():
            for method in methods:
                if is_alone or path.startswith(exact):
                    handler = self._handler(hosted, method, path)
                else:
                    handler = partial(self._by_version, hosted.state.name, method, path)
                table.setdefault(path, {})[method] = handler

    def _handler(self, hosted: HostedModel, method: bytes, path: bytes) -> Handler:
        """Return the handler of one model's path, which loads the model if necessary."""
        verb = (method, _verb(path))
        if verb in _INFER:
            return partial(self._pool.infer, hosted)
        if verb in _DESCRIBE:
            return partial(self._pool.describe, hosted)
        return hosted.application.handle

    def _by_version(self, name: str, method: bytes, path: bytes, exchange: Exchange) -> None:
        hosted = self.choose(name, "", exchange)
        if hosted is None:
            raise why_no_model(path, knows=lambda *_: False)
        self._handler(hosted, method, path)(exchange)

    def _why_not(self, path: bytes) -> HeadraceError:
        if path.startswith(_OF_MODELS):
            self._pool.check_reported()
        return why_no_model(path, knows=self._knows)

    def _knows(self, name: str, version: str) -> bool:
        return any(n == name and version in {"", v} for n, v in self._pool.models)

    def _handlers(self) -> dict[tuple[bytes, bytes], Handler]:
        handlers: dict[tuple[bytes, bytes], Handler] = {
            (b"GET", b"/"): lambda exchange: send_root(self._hosted_names(), exchange),
            (b"GET", OPENAPI): lambda exchange: send_openapi(self._hosted_names(), exchange),
            **page_handlers(),
            (b"GET", b"/v2"): self._metadata,
            (b"GET", b"/v2/health/live"): lambda exchange: exchange.send_json(b'{"live":true}'),
            (b"GET", b"/v2/health/ready"): self._ready,
            (b"GET", b"/ping"): self._ready,
            (b"GET", b"/v2/models"): self._names,
            (b"GET", b"/v1/models"): self._names,
            (b"GET", b"/v2/models/stats"): self._statistics,
            (b"GET", b"/metrics"): self.metrics,
            **self._grpc.handlers(),
            **dict.fromkeys(OPENAI_ROUTES, self._openai),
            **self._internal_handlers(),
        }
        if self._has_repository:
            handlers[(b"POST", b"/v2/repository/index")] = self._index
            for name in {name for name, _ in self._pool.models}:
                for verb in (b"/load", b"/unload"):
                    path = b"/v2/repository/models/" + name.encode() + verb
                    handlers[(b"POST", path)] = _refuse_load
        return handlers

    def _internal_handlers(self) -> dict[tuple[bytes, bytes], Handler]:
        handlers: dict[tuple[bytes, bytes], Handler] = {
            (b"GET", b"/internal/models"): self._models,
            (b"PUT", b"/internal/models"): self._declare,
            (b"GET", b"/internal/report"): self._report,
            (b"GET", b"/internal/load"): self._load,
            (b"PUT", b"/internal/observe"): self._of_model,
            (b"GET", b"/internal/answers"): self._of_model,
            (b"PUT", b"/internal/record"): self._of_model,
            (b"GET", b"/internal/spans"): self._of_model,
            (b"GET", b"/internal/samples"): self._of_model,
            (b"PUT", b"/internal/drift"): self._of_model,
            (b"POST", b"/internal/drift/take"): self._of_model,
        }
        return {key: local_only(handler) for key, handler in handlers.items()}

    def _openai(self, exchange: Exchange) -> None:
        """OpenAI's routes: of the model that the body names."""
        body = decoded_body(exchange, self._pool.settings.max_body_bytes)
        name, version = model_and_version(decode_request(body, ModelField).model)
        hosted = self.choose(name, version, exchange)
        if hosted is None:
            raise ModelNotFoundError(name[:200], version[:50])
        self._pool.infer(hosted, exchange)

    # Process routes

    def _metadata(self, exchange: Exchange) -> None:
        document = server_metadata(has_model_repository=self._has_repository)
        exchange.send_json(encode_document(document))

    def _ready(self, exchange: Exchange) -> None:
        if self._pool.is_ready:
            exchange.send_json(b'{"ready":true}')
        else:
            exchange.send(503, b'{"ready":false}')

    def _names(self, exchange: Exchange) -> None:
        exchange.send_json(orjson.dumps({"models": self._hosted_names()}))

    def _hosted_names(self) -> list[str]:
        return sorted({name for name, _ in self._pool.models})

    def _statistics(self, exchange: Exchange) -> None:
        states = [hosted.state for hosted in self._pool.models.values()]
        document = model_statistics([state.statistics for state in states])
        exchange.send_json(encode_document(document))

    def metrics(self, exchange: Exchange) -> None:
        """GET /metrics."""
        self._pool.spawn(self._send_metrics(exchange))

    async def _send_metrics(self, exchange: Exchange) -> None:
        try:
            text = await pool_exposition(self._pool, exchange.query)
        except Exception:  # noqa: BLE001  # the request edge of an asynchronous request
            exchange.fail()
        else:
            exchange.send(200, text, content_type=TEXT_TYPE.encode())

    def _index(self, exchange: Exchange) -> None:
        ready = decode_index_request(exchange.body)
        exchange.send_json(encode_document(repository_index(pool_index(self._pool), ready=ready)))

    # Control plane routes

    def _models(self, exchange: Exchange) -> None:
        """GET /internal/models."""
        exchange.send_json(msgspec.json.encode(self._pool.report()))

    def _declare(self, exchange: Exchange) -> None:
        """PUT /internal/models[?keep=MODEL/VERSION…]: the complete list of models to host."""
        keep_parameters = parse_qs(exchange.query.decode("latin-1")).get("keep", ())
        keeps = [
            (name, version)
            for name, _, version in (parameter.partition("/") for parameter in keep_parameters)
        ]
        if self._pool.declare(decode_body(exchange, list[ReplicaSettings]), keeps=keeps):
            self._router = self._make_router()
            for waiting in self._pool.waiting_of_retired():
                self.handle(waiting)
        self._models(exchange)

    def _report(self, exchange: Exchange) -> None:
        """GET /internal/report: of the process, or `?model=NAME&version=VERSION` of one model."""
        if exchange.query:
            self._of_model(exchange)
        else:
            exchange.send_json(msgspec.json.encode(pool_totals(self._pool)))

    def _load(self, exchange: Exchange) -> None:
        """GET /internal/load: of every model, used or not."""
        send_loads(exchange, (hosted.state for hosted in self._pool.models.values()))

    def _of_model(self, exchange: Exchange) -> None:
        """Internal routes of a replica, for `?model=NAME&version=VERSION`."""
        query = parse_qs(exchange.query.decode("latin-1"))
        name, version = (query.get(key, [""])[-1] for key in ("model", "version"))
        hosted = self.choose(name, version, exchange)
        if hosted is None:
            raise why_no_model(f"/v2/models/{name}".encode(), knows=lambda *_: False)
        hosted.application.handle(exchange)


def pool_index(pool: ModelPool) -> list[IndexEntry]:
    """Return every hosted model for the repository index."""
    return [_index_entry(hosted) for hosted in pool.models.values()]


def _index_entry(hosted: HostedModel) -> IndexEntry:
    name, version = hosted.key
    match hosted.phase:
        case HostedPhase.FAILED:
            return IndexEntry(name, version, "UNAVAILABLE", hosted.reason)
        case HostedPhase.LOADED:
            return IndexEntry(name, version, "READY")
        case HostedPhase.LOADING:
            return IndexEntry(name, version, "LOADING")
        case HostedPhase.UNLOADED:
            return IndexEntry(name, version, "READY", "loaded on the first request")


def _refuse_load(_: Exchange) -> None:
    msg = "explicit model load / unload is not allowed: a pool loads a model on the first request"
    raise UnavailableError(msg, retry_after_s=None)


def _verb(path: bytes) -> bytes:
    """Return the part of the path after the model."""
    if path.startswith(b"/v1/"):
        return path[path.index(b":") :] if b":" in path else b"/v1"
    if path.startswith(b"/endpoints/"):
        return path[path.rindex(b"/") :]
    parts = path.split(b"/")  # "", v2, models, NAME[, versions, VERSION][, verb]
    rest = parts[6:] if parts[4:5] == [b"versions"] else parts[4:]
    return b"/" + rest[0] if rest else b""


def _age(version: str) -> tuple[int, str]:
    """Return the sort key of versions: numbers by value, then all other names."""
    return (int(version), "") if version.isdigit() else (-1, version)
