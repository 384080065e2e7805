"""Process of one replica: listen, load, warm up, answer, drain."""

import asyncio
import contextlib
import logging
import os
import resource
import signal
import socket
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import uvloop

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    PoolReplicaSettings,
    ReplicaSettings,
)
from headrace.core.processes import port_user
from headrace.core.settings import OPENAI_SUFFIX, LlmSpec
from headrace.engine import usable_cores
from headrace.observe import ModelStatistics
from headrace.runtimes.gguf import GgufModel
from headrace.scoring.loading import LoadedModel, load
from headrace.serving.application import Application, MetricsApplication
from headrace.serving.loader import in_daemon_thread
from headrace.serving.memory import available_bytes
from headrace.serving.server import HttpServer
from headrace.serving.server import RequestHandler as ServedApplication
from headrace.serving.state import ReplicaState

if TYPE_CHECKING:
    from headrace.serving.grpc.server import GrpcServer


async def listen(
    settings: ReplicaSettings | PoolReplicaSettings,
    application: ServedApplication,
    metrics: ServedApplication,
) -> list[HttpServer]:
    """Return servers for `application` on the configured addresses, and for `metrics` if set.

    Raises:
        FailedPreconditionError: An address is not available.
    """
    sockets = []
    if settings.uds:
        sockets.append(bind_unix(Path(settings.uds)))
    if settings.port is not None:
        sockets.append(bind_tcp(settings.host, settings.port))
    servers = [HttpServer(application, settings)]
    await servers[0].listen(sockets)
    if settings.metrics_port is not None:
        servers.append(HttpServer(metrics, settings))
        await servers[1].listen([bind_tcp(settings.host, settings.metrics_port)])
    return servers


def bind_unix(path: Path) -> socket.socket:
    """Return a socket at `path` for its owner and, in a group-shared directory, its group.

    Raises:
        FailedPreconditionError: It cannot be created.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()  # left by a replica that was killed
        sock.bind(str(path))
        # The group of a shared directory is the gateway's group.
        path.chmod(0o660 if path.parent.stat().st_mode & stat.S_ISGID else 0o600)
    except OSError as error:
        sock.close()
        msg = f"cannot listen on {path}: {error.strerror or error}"
        raise FailedPreconditionError(msg) from error
    return sock


def bind_tcp(host: str, port: int) -> socket.socket:
    """Return a socket on a TCP port; 0 selects a free port.

    Raises:
        FailedPreconditionError: The port is not available.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        user = port_user(port)
        by = f" by {user}" if user else ""
        why = f"{error.strerror or error}{by}"
        msg = f"cannot listen on {host} port {port}: {why}; choose another port"
        raise FailedPreconditionError(msg) from error
    _log.info("listening", extra={"host": host, "port": sock.getsockname()[1]})
    return sock


def stop_event() -> asyncio.Event:
    """Return an event that the first SIGTERM or SIGINT sets; a second signal ends the process."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop


_log = logging.getLogger(__name__)
EXIT_CANNOT_LOAD: Final = 3
"""Exit status when the model cannot be loaded: a restart would not help."""
EXIT_CANNOT_LISTEN: Final = 4
"""Exit status when an address is not available."""
_LOAD_EVERY_S: Final = 0.5
"""Half of the interval in which a control plane polls replicas."""
_IDLE_S: Final = 0.1
_IDLE_CHECKS: Final = 2
_ABANDONED_S: Final = 1.0
"""How long runs without a waiting caller may continue at the end."""


def run(settings: ReplicaSettings) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The process's exit status: 0 after a drain, `EXIT_CANNOT_LOAD`, `EXIT_CANNOT_LISTEN`.
    """
    try:
        ended = uvloop.run(_serve(settings))
    except KeyboardInterrupt:
        return 130
    if ended.has_thread:
        # An interpreter that exits under a running C++ thread aborts in one of ten cases.
        logging.shutdown()
        os._exit(ended.status)
    return ended.status


@dataclass(frozen=True, slots=True)
class _Ended:
    """Result of a replica's run."""

    status: int
    has_thread: bool = False
    """Whether a thread is still in the model's code and cannot be ended."""


async def _serve(settings: ReplicaSettings) -> _Ended:
    state = ReplicaState(
        settings=settings,
        statistics=ModelStatistics(name=settings.model_name, version=settings.model_version),
    )
    application = Application(state, has_repository=settings.port is not None)
    stop = stop_event()
    try:
        servers = await listen(settings, application, MetricsApplication(application.metrics))
    except HeadraceError as error:
        _log.error("%s", error)  # the message is sufficient
        return _Ended(EXIT_CANNOT_LISTEN)
    try:
        loaded = await _load(settings, stop)
    except HeadraceError as error:
        _log.error("cannot load model '%s': %s", settings.model_name, error)  # as above
        return _Ended(EXIT_CANNOT_LOAD)
    if loaded is None:
        return _Ended(0, has_thread=True)
    is_idle = await _answer(state, application, loaded, servers, stop)
    return _Ended(0, has_thread=not is_idle)


async def _answer(
    state: ReplicaState,
    application: "Application",
    loaded: LoadedModel,
    servers: list[HttpServer],
    stop: asyncio.Event,
) -> bool:
    """Answer requests until `stop` is set; return whether all runs have ended then."""
    settings = state.settings
    engine = state.serve(loaded)
    application.model_loaded()
    grpc_server = await _start_grpc(state)
    _log.info("ready", extra={"model": settings.model_name, "version": settings.model_version})
    watch = None
    if isinstance(loaded.model, GgufModel):
        watch = asyncio.create_task(_watch_load(state, loaded.model))
    await stop.wait()
    _log.info("draining", extra={"in_flight": engine.in_flight})
    state.is_draining = True
    timeout_s = settings.drain_timeout_s
    if grpc_server is not None:
        await grpc_server.stop(timeout_s)
    until = time.monotonic() + timeout_s
    await asyncio.gather(*(server.drain(timeout_s=timeout_s) for server in servers))
    if watch is not None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(watch, until - time.monotonic())
        _log.info("stopped")
        return False  # its server is not stopped: a request that has just arrived would abort it
    # All callers have responses: runs that continue have no caller, and may never end.
    is_idle = await engine.stop(timeout_s=_ABANDONED_S)
    if is_idle:
        loaded.model.close()
    _log.info("stopped")
    return is_idle


async def _watch_load(state: ReplicaState, model: GgufModel) -> None:
    """Keep the newest load of a language model in `state`; return when a drained one has none."""
    idle, is_reported = 0, False
    while idle < _IDLE_CHECKS:  # the last bytes are sent shortly after the end of a request
        try:
            load = await in_daemon_thread(model.load, name="load", dispose=lambda _: None)
        except HeadraceError as error:
            if not is_reported:
                _log.warning("%s: autoscaling does not see the model's requests", error)
            idle, is_reported = 0, True
        else:
            state.llm = load
            idle = idle + 1 if state.is_draining and load.in_flight == 0 else 0
        await asyncio.sleep(_IDLE_S if state.is_draining else _LOAD_EVERY_S)


async def _load(settings: ReplicaSettings, stop: asyncio.Event) -> LoadedModel | None:
    """Load the model in a thread while health checks are answered; None if `stop` was set."""
    work = in_daemon_thread(
        lambda: _loaded(settings), name="load", dispose=lambda loaded: loaded.model.close()
    )
    loading, stopping = asyncio.ensure_future(work), asyncio.ensure_future(stop.wait())
    await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if loading.done():
        return loading.result()
    loading.cancel()  # the thread is abandoned: a model may load forever
    _log.info("stopped while the model was being loaded")
    return None


def _loaded(settings: ReplicaSettings) -> LoadedModel:
    """Load the model; a language model then serves OpenAI's API too.

    Raises:
        HeadraceError: It cannot be loaded, or does not fit into the memory.
    """
    loaded = load(settings)
    if isinstance(loaded.model, GgufModel):
        spec = LlmSpec() if isinstance(settings.llm, msgspec.UnsetType) else settings.llm
        if not isinstance(settings.openai_port, msgspec.UnsetType):
            address: Path | tuple[str, int] = (settings.host, settings.openai_port)
        elif settings.uds:
            address = Path(f"{settings.uds}{OPENAI_SUFFIX}")
        else:
            raise FailedPreconditionError(
                "a language model serves OpenAI's API on a second address: listen on a Unix "
                "socket, or set a port for it (`headrace serve --openai-port`)"
            )
        data_bytes, _ = resource.getrlimit(resource.RLIMIT_DATA)
        available = available_bytes()
        limit = available if data_bytes == resource.RLIM_INFINITY else min(available, data_bytes)
        loaded.model.files.check_memory(spec, limit)
        threads = settings.intra_op_threads or usable_cores()
        loaded.model.serve(address, name=settings.model_name, spec=spec, threads=threads)
        if isinstance(address, tuple):
            host, port = address
            _log.info("listening", extra={"host": host, "port": port, "api": "OpenAI"})
    return loaded


async def _start_grpc(state: ReplicaState) -> "GrpcServer | None":
    if state.settings.grpc_port is None:
        return None
    from headrace.serving.grpc.server import GrpcServer  # noqa: PLC0415  # 15 MB that few need

    server = GrpcServer(state)
    await server.start()
    return server
