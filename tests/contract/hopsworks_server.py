"""A stand-in for Hopsworks' online store server, over real HTTP.

Shapes are those of its documentation and of what its client (`hopsworks` 5.2.1,
`hsfs/core/online_store_rest_client_api.py`) sends and reads. It refuses what the real one refuses:
a wrong key, an unknown view, and keys that are null or missing. The client itself was run against
it: it sends the same question as our store, and reads the answer.
"""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "a.key-of-hopsworks"
Reply = tuple[int, bytes]


@dataclass(kw_only=True)
class View:
    """Rows by the values of the serving keys; a row has the keys and the features."""

    keys: list[str]
    columns: list[tuple[str, str]]
    rows: dict[tuple[Any, ...], list[Any]]


@dataclass(kw_only=True)
class HopsworksServer:
    """`views` by name and version. `instead` answers in place of everything."""

    views: dict[tuple[str, int], View]
    port: int = 0
    asked: list[dict[str, Any]] = field(default_factory=list)
    connections: int = 0
    instead: Callable[[BaseHTTPRequestHandler], None] | None = None

    def url(self, scheme: str = "hopsworks+http", **options: object) -> str:
        query = "&".join(f"{name}={value}" for name, value in options.items())
        return f"{scheme}://localhost:{self.port}/shop{'?' if query else ''}{query}"

    def reply(self, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        if headers.get("X-API-KEY") != KEY:
            return 401, b'{"code": 12, "reason": "Unauthorized", "message": ""}'
        if path != "/0.1.0/batch_feature_store":
            return 404, b"404 page not found"
        question = json.loads(body)
        self.asked.append(question)
        view = self.views.get((question["featureViewName"], question["featureViewVersion"]))
        if view is None or question["featureStoreName"] != "shop":
            return 400, b'{"code": 2, "reason": "Feature view does not exist.", "message": ""}'
        answer: dict[str, Any] = {"features": [], "status": [], "detailedStatus": None}
        answer["metadata"] = [
            {"featureName": name, "featureType": kind} for name, kind in view.columns
        ]
        for entry in question["entries"]:
            if sorted(entry) != sorted(view.keys) or None in entry.values():
                return 400, b'{"code": 3, "reason": "Incorrect primary key.", "message": ""}'
            key = tuple(entry[name] for name in view.keys)
            row = view.rows.get(key)
            nothing = [*key, *[None] * (len(view.columns) - len(key))]
            answer["features"].append(nothing if row is None else row)
            answer["status"].append("MISSING" if row is None else "COMPLETE")
        return 200, json.dumps(answer).encode()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    served: HopsworksServer

    def setup(self) -> None:
        self.served.connections += 1
        super().setup()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.served.instead is not None:
            self.served.instead(self)
            return
        status, answer = self.served.reply(self.path, dict(self.headers), body)
        send(self, status, answer)

    def log_message(self, *_: object) -> None:
        pass


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes) -> None:
    handler.send_response(status)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.close_connection = True


def drip(handler: BaseHTTPRequestHandler) -> None:
    """Send a body byte by byte, for longer than anybody waits."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    for _ in range(1000):
        try:
            handler.wfile.write(b" ")
        except OSError:
            break
        time.sleep(0.01)
    handler.close_connection = True


def stop_short(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"features": [')
    handler.close_connection = True


@contextmanager
def running_hopsworks(
    views: dict[tuple[str, int], View], tls: ssl.SSLContext | None = None
) -> Iterator[HopsworksServer]:
    """A server until the block ends."""
    served = HopsworksServer(views=views)
    handler = type("Handler", (_Handler,), {"served": served})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        served.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield served
        finally:
            server.shutdown()
            thread.join()
