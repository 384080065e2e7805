"""A gateway that asks who calls, and the three ways to knock at it."""

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import grpc
import h2.config
import h2.connection
import h2.events
from tritonclient.grpc import service_pb2, service_pb2_grpc

from headrace.core.spec.access import EndpointAccess
from headrace.gateway import EndpointRoute, EnvoyGateway, GatewayPolicy, build_snapshot
from tests.e2e.gateway.issuing import Issuer, api_key, known
from tests.e2e.gateway.lab import Lab, StandIn, endpoint

EVERYWHERE: Final = "0.0.0.0"  # noqa: S104  # what a gateway does that is not bound to loopback
Headers = Sequence[tuple[str, str]]
PROTOCOLS: Final = ("HTTP/1.1", "HTTP/2", "gRPC")
KEY: Final = api_key("good")
NARROW: Final = api_key("narrow")
INFER: Final = "/v2/models/m/infer"
_ENDS: Final = (
    h2.events.StreamEnded,
    h2.events.StreamReset,
    h2.events.ConnectionTerminated,  # its close comes a second later
)
_AS_HTTP: Final = {
    grpc.StatusCode.OK: 200,
    grpc.StatusCode.UNAUTHENTICATED: 401,
    grpc.StatusCode.PERMISSION_DENIED: 403,
}


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: HTTP's status (of gRPC's the like), and all text that was in it."""

    status: int
    text: str


@dataclass(frozen=True, slots=True)
class Guarded:
    """Endpoint `m` asks who calls, `free` nobody; each has its own stand-in."""

    gateway: EnvoyGateway
    issuer: Issuer
    secret: StandIn

    def ask(self, protocol: str, headers: Headers, *, path: str = INFER) -> Answer:
        match protocol:
            case "HTTP/1.1":
                return self.http1(headers, path=path)
            case "HTTP/2":
                return self.http2(headers, path=path)
            case _:
                return self.grpc(headers)

    def http1(self, headers: Headers, *, path: str = INFER, method: str = "POST") -> Answer:
        lines = [f"{method} {path} HTTP/1.1", "host: x", "content-length: 2"]
        lines += [f"{name}: {value}" for name, value in headers]
        head = "\r\n".join([*lines, "connection: close", "", "{}"])
        with self._connection() as sock:
            sock.sendall(head.encode("latin-1"))
            response = http.client.HTTPResponse(sock, method=method)  # not until the close: 1 s
            try:
                response.begin()
                body = response.read()
            except (http.client.HTTPException, OSError):
                return Answer(0, "")
        return Answer(response.status, f"{response.headers}{body.decode('latin-1')}")

    def http2(self, headers: Headers, *, path: str = INFER) -> Answer:
        """Header lines as they are given, which no client library would send."""
        config = h2.config.H2Configuration(
            validate_outbound_headers=False, normalize_outbound_headers=False
        )
        connection = h2.connection.H2Connection(config=config)
        connection.initiate_connection()
        first = [(":method", "POST"), (":scheme", "http"), (":authority", "x"), (":path", path)]
        connection.send_headers(1, [*first, *headers])
        connection.send_data(1, b"{}", end_stream=True)
        status, text = 0, ""
        with self._connection() as sock:
            sock.sendall(connection.data_to_send())
            while data := sock.recv(65536):
                for event in connection.receive_data(data):
                    if isinstance(event, h2.events.ResponseReceived):
                        pairs = [(_text(name), _text(value)) for name, value in event.headers]
                        status = int(dict(pairs)[":status"])
                        text += "".join(f"{name}: {value}\n" for name, value in pairs)
                    elif isinstance(event, h2.events.DataReceived):
                        text += event.data.decode()
                    elif isinstance(event, _ENDS):
                        return Answer(status, text)
        return Answer(status, text)

    def grpc(self, headers: Headers, *, model: str = "m") -> Answer:
        request = service_pb2.ModelInferRequest(model_name=model)
        target = f"127.0.0.1:{self.gateway.settings.grpc_port}"
        with grpc.insecure_channel(target) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            try:
                stub.ModelInfer(request, metadata=tuple(headers), timeout=20)
            except grpc.RpcError as error:
                if not isinstance(error, grpc.Call):
                    raise
                return Answer(_AS_HTTP.get(error.code(), 0), error.details() or "")
        return Answer(200, "")

    def received(self) -> dict[str, str]:
        """The headers of the last request that the guarded stand-in got."""
        headers: dict[str, str] = self.secret.seen()[-1]["headers"]
        return headers

    def count(self) -> int:
        """How many requests the guarded stand-in got."""
        return len(self.secret.seen())

    def _connection(self) -> socket.socket:
        address = ("127.0.0.1", self.gateway.settings.http_port)
        return socket.create_connection(address, timeout=20)


@contextlib.contextmanager
def guarded() -> Iterator[Guarded]:
    """A gateway that is bound to all addresses, for as long as the block runs."""
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        lab = Lab(Path(directory))
        try:
            secret, issuer = lab.replica("secret"), Issuer()
            policy = issuer.policy(known(KEY), known(NARROW, "infer:other", name="narrow"))
            gateway = EnvoyGateway(lab.settings(host=EVERYWHERE))
            lab.gateways.append(gateway)
            endpoints = (endpoint("m", secret), public(endpoint("free", lab.replica("free"))))
            asyncio.run(gateway.start(build_snapshot(gateway.settings, endpoints, policy)))
            yield Guarded(gateway, issuer, secret)
        finally:
            lab.close()


def public(route: EndpointRoute) -> EndpointRoute:
    return EndpointRoute(name=route.name, arms=route.arms, access=EndpointAccess(public=True))


def publish(gateway: EnvoyGateway, route: EndpointRoute, policy: GatewayPolicy) -> None:
    asyncio.run(gateway.publish(build_snapshot(gateway.settings, [route], policy)))


def kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else value
