"""Where does a process listen, and when is it told to stop? Sockets and signals."""

import asyncio
import logging
import signal
import socket
import stat
from pathlib import Path

from headrace.core import FailedPreconditionError, PoolSettings, ReplicaSettings
from headrace.serving.server import Application, HttpServer

_log = logging.getLogger(__name__)


async def listen(
    settings: ReplicaSettings | PoolSettings, application: Application, metrics: Application
) -> list[HttpServer]:
    """Servers for `application` where `settings` say, and for `metrics` if those have a port.

    Raises:
        FailedPreconditionError: An address cannot be had.
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
    """A socket at `path`, for its owner and, in a directory that is shared so, for its group.

    Raises:
        FailedPreconditionError: It cannot be had.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode):
            path.unlink()  # left by a replica that was killed
        sock.bind(str(path))
        # The group of a shared directory is the gateway's.
        path.chmod(0o660 if path.parent.stat().st_mode & stat.S_ISGID else 0o600)
    except OSError as error:
        sock.close()
        msg = f"cannot listen on {path}: {error.strerror or error}"
        raise FailedPreconditionError(msg) from error
    return sock


def bind_tcp(host: str, port: int) -> socket.socket:
    """A socket on a port, any free one if that is 0.

    Raises:
        FailedPreconditionError: It cannot be had.
    """
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


def stop_event() -> asyncio.Event:
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
