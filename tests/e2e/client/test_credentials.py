"""Credentials reach the server that was named, nobody else, and no log."""

import asyncio
import logging
import threading
import traceback
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import grpc
import numpy as np
import pytest

from headrace.client import AsyncClient, Client
from headrace.core import HeadraceError, PermissionDeniedError, UnauthenticatedError

pytestmark = pytest.mark.e2e

KEY = "hr_kid_0123456789abcdef"
TOKEN = "aaaa.bbbb.cccc"  # noqa: S105  # no secret
ROWS = {"input": np.zeros((1, 4), np.float32)}


class Handler(BaseHTTPRequestHandler):
    """Remembers what it is told, and answers with `status`."""

    status: ClassVar[int] = 401
    location: ClassVar[str] = ""
    seen: ClassVar[list[dict[str, str]]]

    def do_POST(self) -> None:  # the standard library's name
        self.rfile.read(int(self.headers.get("content-length", 0)))
        self.seen.append({name.lower(): value for name, value in self.headers.items()})
        body = b'{"error": "who are you?"}'
        self.send_response(self.status)
        if self.location:
            self.send_header("location", self.location)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def _served(**attributes: object) -> tuple[ThreadingHTTPServer, type[Handler], str]:
    handler = type("Here", (Handler,), {"seen": [], **attributes})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, handler, f"http://127.0.0.1:{server.server_port}"


def _close(server: ThreadingHTTPServer) -> None:
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "kind"), [(401, UnauthenticatedError), (403, PermissionDeniedError)]
)
def test_credentials_travel_and_refusals_have_a_type(
    status: int, kind: type[HeadraceError], caplog: pytest.LogCaptureFixture
) -> None:
    server, handler, url = _served(status=status)
    caplog.set_level(logging.DEBUG)
    try:
        with Client(url, api_key=KEY, token=TOKEN) as client, pytest.raises(kind) as caught:
            client.infer("m", ROWS)
    finally:
        _close(server)

    (seen,) = handler.seen  # and it is not tried again
    assert (seen["x-api-key"], seen["authorization"]) == (KEY, f"Bearer {TOKEN}")
    text = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "who are you?" in text
    assert KEY not in text
    assert TOKEN not in text


@pytest.mark.parametrize("status", [302, 307, 308])
def test_another_server_that_is_pointed_to_hears_nothing(status: int) -> None:
    there, other, url = _served(status=200)
    here, handler, mine = _served(status=status, location=f"{url}/v2/models/m/infer")
    try:
        with Client(mine, api_key=KEY) as client, pytest.raises(HeadraceError):
            client.infer("m", ROWS)
    finally:
        _close(here)
        _close(there)

    assert len(handler.seen) == 1
    assert other.seen == []


@pytest.mark.anyio
async def test_the_asynchronous_client_shows_them_too() -> None:
    server, handler, url = _served()
    try:
        async with AsyncClient(url, api_key=KEY) as client:
            with pytest.raises(UnauthenticatedError):
                await client.infer("m", ROWS)
    finally:
        await asyncio.to_thread(_close, server)

    assert handler.seen[0]["x-api-key"] == KEY


class Refuser(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """Refuses every call, and remembers its metadata."""

    def __init__(self, status: grpc.StatusCode) -> None:
        self.status = status
        self.seen: list[dict[str, str]] = []

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        self.seen.append(dict(details.invocation_metadata))
        return grpc.unary_unary_rpc_method_handler(self._refuse)

    def _refuse(self, _request: bytes, context: Any) -> bytes:
        context.abort(self.status, "who are you?")
        return b""


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (grpc.StatusCode.UNAUTHENTICATED, UnauthenticatedError),
        (grpc.StatusCode.PERMISSION_DENIED, PermissionDeniedError),
    ],
)
def test_over_grpc_they_are_metadata(status: grpc.StatusCode, kind: type[HeadraceError]) -> None:
    refuser = Refuser(status)
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        server.add_generic_rpc_handlers([refuser])
        number = server.add_insecure_port("127.0.0.1:0")
        server.start()
        url = f"grpc://127.0.0.1:{number}"
        with Client(url, api_key=KEY, token=TOKEN) as client, pytest.raises(kind) as caught:
            client.infer("m", ROWS)
        server.stop(0).wait()

    (seen,) = refuser.seen
    assert (seen["x-api-key"], seen["authorization"]) == (KEY, f"Bearer {TOKEN}")
    assert KEY not in "".join(traceback.format_exception(caught.value))
