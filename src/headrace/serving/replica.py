"""One replica, from start to drain: bind, load, warm up, answer, stop in order."""

import asyncio
import logging
import signal
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

import uvloop

from headrace.core import FailedPreconditionError, HeadraceError, ReplicaSettings
from headrace.engine import Engine
from headrace.observe import ModelStatistics
from headrace.serving.application import Application, MetricsApplication
from headrace.serving.loading import LoadedModel, load
from headrace.serving.server import HttpServer
from headrace.serving.state import ReplicaState, ServedModel

if TYPE_CHECKING:
    from headrace.serving.grpc_server import GrpcServer

_log = logging.getLogger(__name__)

EXIT_CANNOT_LOAD: Final = 3
"""Exit status when the model cannot be loaded: starting again would not help."""
EXIT_CANNOT_LISTEN: Final = 4
"""Exit status when an address cannot be had."""


def run(settings: ReplicaSettings) -> int:
    """Serve until SIGTERM or SIGINT.

    Returns:
        The process's exit status: 0 after a drain, `EXIT_CANNOT_LOAD`, `EXIT_CANNOT_LISTEN`.
    """
    try:
        return uvloop.run(_serve(settings))
    except KeyboardInterrupt:
        return 130


async def _serve(settings: ReplicaSettings) -> int:
    state = ReplicaState(
        settings=settings,
        statistics=ModelStatistics(name=settings.model_name, version=settings.model_version),
    )
    application = Application(state, has_repository=settings.port is not None)
    stop = _stop_event()
    try:
        servers = await _listen(settings, state, application)
    except HeadraceError as error:
        _log.error("%s", error)  # the message says it all
        return EXIT_CANNOT_LISTEN
    try:
        loaded = await _load(settings, stop)
    except HeadraceError as error:
        _log.error("cannot load model '%s': %s", settings.model_name, error)  # as above
        return EXIT_CANNOT_LOAD
    if loaded is None:
        return 0
    await _answer(state, application, loaded, servers, stop)
    return 0


async def _answer(
    state: ReplicaState,
    application: "Application",
    loaded: LoadedModel,
    servers: list[HttpServer],
    stop: asyncio.Event,
) -> None:
    settings = state.settings
    engine = Engine(
        loaded.model,
        settings=settings.batching,
        statistics=state.statistics,
        phases=state.phases,
        times=loaded.times,
        plan=loaded.plan,
    )
    state.served = ServedModel(loaded=loaded, engine=engine)
    application.model_loaded()
    grpc_server = await _start_grpc(state)
    _log.info("ready", extra={"model": settings.model_name, "version": settings.model_version})
    await stop.wait()
    _log.info("draining", extra={"in_flight": engine.in_flight})
    state.is_draining = True
    timeout_s = settings.drain_timeout_s
    if grpc_server is not None:
        await grpc_server.stop(timeout_s)
    await asyncio.gather(*(server.drain(timeout_s=timeout_s) for server in servers))
    await engine.stop(timeout_s=timeout_s)
    loaded.model.close()
    _log.info("stopped")


async def _load(settings: ReplicaSettings, stop: asyncio.Event) -> LoadedModel | None:
    """The model, loaded in a thread while health checks are answered; None if told to stop."""
    loading = asyncio.ensure_future(asyncio.to_thread(load, settings))
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({loading, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    return loading.result() if loading.done() else None


async def _listen(
    settings: ReplicaSettings, state: ReplicaState, application: "Application"
) -> list[HttpServer]:
    sockets = []
    if settings.uds:
        sockets.append(_bind_unix(Path(settings.uds)))
    if settings.port is not None:
        sockets.append(_bind_tcp(settings.host, settings.port))
    server = HttpServer(application, settings)
    await server.listen(sockets)
    servers = [server]
    if settings.metrics_port is not None:
        metrics = HttpServer(MetricsApplication(state), settings)
        await metrics.listen([_bind_tcp(settings.host, settings.metrics_port)])
        servers.append(metrics)
    return servers


async def _start_grpc(state: ReplicaState) -> "GrpcServer | None":
    if state.settings.grpc_port is None:
        return None
    from headrace.serving.grpc_server import GrpcServer  # noqa: PLC0415  # 15 MB that few need

    server = GrpcServer(state)
    await server.start()
    return server


def _bind_unix(path: Path) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()  # left by a replica that was killed
        sock.bind(str(path))
        path.chmod(0o600)
    except OSError as error:
        sock.close()
        msg = f"cannot listen on {path}: {error.strerror or error}"
        raise FailedPreconditionError(msg) from error
    return sock


def _bind_tcp(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        msg = f"cannot listen on {host} port {port}: {error.strerror or error}; choose another port"
        raise FailedPreconditionError(msg) from error
    _log.info("listening", extra={"host": host, "port": sock.getsockname()[1]})
    return sock


def _stop_event() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; the second one ends the process."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    return stop
