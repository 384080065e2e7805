"""HTTP server of a stream worker for the control plane and Prometheus.

`GET /metrics` and `GET /internal/status`; on the Unix socket only, `POST /internal/pause` and `POST
/internal/resume`. It serves a few requests a minute, so the standard library's server is
sufficient.
"""

import socket
import threading
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import (
    StreamRequestHandler,
    TCPServer,
    ThreadingTCPServer,
    ThreadingUnixStreamServer,
)
from stat import S_ISSOCK
from typing import Final

import msgspec

from headrace.core import FailedPreconditionError
from headrace.observe.metrics import TEXT_TYPE
from headrace.streaming.metrics import render_metrics
from headrace.streaming.settings import WorkerSettings
from headrace.streaming.worker import WorkerLoop

_REQUEST_TIMEOUT_S: Final = 10.0
_SLOTS: Final = threading.BoundedSemaphore(16)
"""Requests that are handled at once."""
_JSON: Final = "application/json"


class _Unix(ThreadingUnixStreamServer):
    daemon_threads = True
    block_on_close = False


class _Tcp(ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True


class _Tcp6(_Tcp):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    """Handler of one request."""

    timeout = _REQUEST_TIMEOUT_S
    server_version = "headrace"
    sys_version = ""

    def __init__(self, worker: WorkerLoop, *arguments: object, is_local: bool) -> None:
        self._worker = worker
        self._is_local = is_local
        StreamRequestHandler.__init__(self, *arguments)  # type: ignore[arg-type]  # the server's

    def handle(self) -> None:
        """Handle the request; close excess connections, and those of clients that disconnect."""
        if not _SLOTS.acquire(blocking=False):
            return
        try:
            with suppress(OSError):
                super().handle()
        finally:
            _SLOTS.release()

    def do_GET(self) -> None:  # the library's name
        """Return metrics or the status."""
        worker = self._worker
        match self.path.partition("?")[0]:
            case "/metrics":
                self._answer(render_metrics(worker.counters, worker.status), TEXT_TYPE)
            case "/internal/status":
                self._answer(msgspec.json.encode(worker.status), _JSON)
            case _:
                self.send_error(HTTPStatus.NOT_FOUND)

    def do_POST(self) -> None:  # as above
        """Pause or resume, on the Unix socket only."""
        match self.path:
            case "/internal/pause" if self._is_local:
                self._worker.pause()
            case "/internal/resume" if self._is_local:
                self._worker.resume()
            case _:
                self.send_error(HTTPStatus.NOT_FOUND)
                return
        self._answer(msgspec.json.encode(self._worker.status), _JSON)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # the library's
        """Do not log requests."""

    def address_string(self) -> str:
        """Return nothing: clients of a Unix socket have no address."""
        return ""

    def _answer(self, body: bytes, content_type: str) -> None:
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def listen(settings: WorkerSettings, worker: WorkerLoop) -> list[TCPServer]:
    """Start servers as `settings` say, each in its own thread until the process ends.

    Raises:
        FailedPreconditionError: An address cannot be bound.
    """
    servers: list[TCPServer] = []
    location, hint = settings.uds, ""
    try:
        if settings.uds:
            path = Path(settings.uds)
            if path.exists() and S_ISSOCK(path.stat().st_mode):
                path.unlink()  # left over from a killed worker
            servers.append(_Unix(str(path), partial(_Handler, worker, is_local=True)))
            path.chmod(0o600)
        if settings.metrics_port is not None:
            host, port = settings.host, settings.metrics_port
            location, hint = f"{host} port {port}", "; choose another port"
            kind = _Tcp6 if ":" in host else _Tcp
            servers.append(kind((host, port), partial(_Handler, worker, is_local=False)))
    except OSError as error:
        msg = f"cannot listen on {location}: {error.strerror or error}{hint}"
        raise FailedPreconditionError(msg) from error
    for server in servers:
        threading.Thread(target=server.serve_forever, name="listen", daemon=True).start()
    return servers
