"""Servers as other people run them, over TCP: HTTP in several dialects, and gRPC.

Run as `python foreign.py PORT NAME DIALECT [CERTIFICATE KEY [CLIENT_CA]]`. Each answers only paths
that such a server has, for a model called `their/model`, and tells what it was asked for. `/seen`
tells all requests so far; `/sicken` makes the health route fail from then on.
"""

import asyncio
import json
import re
import ssl
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from pathlib import Path
from typing import Any, Final

import grpc
import uvicorn

from headrace.protocol.protos import message_class

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

HEALTH: Final = {
    "v2": "/v2/health/ready",
    "v1": "/v1/models/their/model",
    "torchserve": "/ping",
    "openai": "/v1/models",
    "http": "/base/up",
}
PATHS: Final = {
    "v2": r"/v2/models/their/model(/infer|/ready)?",
    "v1": r"/v1/models/their/model(:predict|/metadata)?",
    "torchserve": r"/predictions/mnist",
    "openai": r"/v1/chat/completions",
    "http": r"/base/.*",
}


class Server:
    """One HTTP dialect as an ASGI application."""

    def __init__(self, name: str, dialect: str) -> None:
        self.name, self.dialect, self.sick = name, dialect, False
        self.seen: list[dict[str, Any]] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        path = scope["path"]
        headers = {key.decode(): value.decode("latin-1") for key, value in scope["headers"]}
        if path == "/seen":
            await self._answer(send, 200, self.seen)
        elif path == "/sicken":
            self.sick = True
            await self._answer(send, 200, {})
        elif path == HEALTH[self.dialect]:
            await self._answer(send, 503 if self.sick else 200, {"server": self.name})
        elif re.fullmatch(PATHS[self.dialect], path):
            query = scope["query_string"].decode()
            told = {"path": path, "query": query, "headers": headers, "bytes": len(body)}
            self.seen.append(told)
            await self._answer(send, 200, {"server": self.name, **told})
        else:
            await self._answer(send, 404, {"error": f"{self.dialect} has no {path}"})

    async def _answer(self, send: Send, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class GrpcServer(grpc.GenericRpcHandler):  # type: ignore[misc]  # grpc has no types
    """The Open Inference Protocol over gRPC, as much as a router needs."""

    def __init__(self, name: str) -> None:
        self.name = name

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        if details.method == "/grpc.health.v1.Health/Check":
            return grpc.unary_unary_rpc_method_handler(self._healthy)
        if details.method == "/inference.GRPCInferenceService/ModelInfer":
            return grpc.unary_unary_rpc_method_handler(self._infer)
        return None

    async def _healthy(self, _request: bytes, _context: object) -> bytes:
        return b"\x08\x01"  # SERVING

    async def _infer(self, request: bytes, context: Any) -> bytes:
        asked = message_class("inference.ModelInferRequest").FromString(request)
        if asked.id == "refuse":
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no such input")
        metadata = dict(context.invocation_metadata())
        answer = message_class("inference.ModelInferResponse")(
            model_name=asked.model_name, model_version=self.name, id=json.dumps(metadata)
        )
        found: bytes = answer.SerializeToString()
        return found


def _credentials(certificate: str, key: str, client_ca: str = "") -> grpc.ServerCredentials:
    return grpc.ssl_server_credentials(
        [(Path(key).read_bytes(), Path(certificate).read_bytes())],
        root_certificates=Path(client_ca).read_bytes() if client_ca else None,
        require_client_auth=bool(client_ca),
    )


async def _grpc(port: int, name: str, tls: Sequence[str]) -> None:
    server = grpc.aio.server()
    server.add_generic_rpc_handlers([GrpcServer(name)])
    if tls:
        server.add_secure_port(f"127.0.0.1:{port}", _credentials(*tls))
    else:
        server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


def main(port: str, name: str, dialect: str, *tls: str) -> None:
    if dialect == "grpc":
        asyncio.run(_grpc(int(port), name, tls))
        return
    certificate, key, client_ca = (*tls, "", "", "")[:3]
    app: Any = Server(name, dialect)
    uvicorn.run(
        app,
        port=int(port),
        lifespan="off",
        log_level="warning",
        ssl_certfile=certificate or None,
        ssl_keyfile=key or None,
        ssl_ca_certs=client_ca or None,
        ssl_cert_reqs=ssl.CERT_REQUIRED if client_ca else ssl.CERT_NONE,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
