"""Bounds of the management API's bodies, over every route."""

from typing import Final

import pytest
from fastapi.routing import APIRoute

from headrace.control.api.app import build_api, management_app
from headrace.control.asgi.guards import MAX_BODY_BYTES, Message
from headrace.control.plane.control_plane import ControlPlane
from tests.unit.control.api_client import access_of, headers_of

pytestmark = pytest.mark.anyio

BODY_BYTES: Final = 600 << 20
PART: Final = b" " * (1 << 20)
DROPPED_BYTES: Final = 17 << 20
"""What a refusal reads and drops, so that the caller receives the answer."""
UPLOAD: Final = ("POST", "/api/v1/models/{name}")


def routes_of(plane: ControlPlane) -> list[tuple[str, str]]:
    app = management_app(plane, access_of(plane))
    routes = [route for route in app.routes if isinstance(route, APIRoute)]
    return [(method, route.path) for route in routes for method in sorted(route.methods or ())]


class Sender:
    """A caller that sends a body of 600 MiB in parts, and counts what was taken of it."""

    def __init__(self) -> None:
        self.sent_bytes = 0
        self.statuses: list[int] = []

    async def receive(self) -> Message:
        if self.sent_bytes >= BODY_BYTES:
            return {"type": "http.disconnect"}
        self.sent_bytes += len(PART)
        return {"type": "http.request", "body": PART, "more_body": True}

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.statuses.append(message["status"])

    async def call(self, plane: ControlPlane, method: str, path: str) -> None:
        app = build_api(plane, access_of(plane), allowed_hosts=frozenset())
        headers = headers_of(plane) | {
            "host": "localhost",
            "content-type": "application/json",
            "transfer-encoding": "chunked",
        }
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"filename=model.onnx",
            "root_path": "",
            "scheme": "http",
            "headers": [(key.encode(), value.encode()) for key, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 8080),
        }
        await app(scope, self.receive, self.send)


async def test_every_route_but_the_upload_refuses_a_large_body(plane: ControlPlane) -> None:
    routes = routes_of(plane)
    assert UPLOAD in routes
    assert len(routes) > 60

    wrong = {}
    for method, path in routes:
        if (method, path) == UPLOAD:
            continue
        sender = Sender()
        await sender.call(plane, method, path.replace("{name}", "x").replace("{version}", "1"))
        if sender.statuses != [413] or sender.sent_bytes > MAX_BODY_BYTES + DROPPED_BYTES:
            wrong[f"{method} {path}"] = (sender.statuses, sender.sent_bytes)

    assert wrong == {}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/models/"),
        ("POST", "/api/v1/models/x/"),
        ("POST", "/api/v1/models/x/versions"),
        ("POST", "/api/v1/models//x"),
        ("PUT", "/api/v1/models/x"),
    ],
)
async def test_no_other_path_below_the_models_streams(
    plane: ControlPlane, method: str, path: str
) -> None:
    sender = Sender()
    await sender.call(plane, method, path)

    assert sender.statuses[0] >= 400
    assert sender.sent_bytes <= MAX_BODY_BYTES + DROPPED_BYTES


async def test_an_upload_is_streamed_past_the_limit(plane: ControlPlane) -> None:
    sender = Sender()
    await sender.call(plane, "POST", "/api/v1/models/x")

    assert sender.sent_bytes == BODY_BYTES
