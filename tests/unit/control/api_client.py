"""The management API over ASGI, and a model to serve."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx

from headrace.control.api import build_api
from headrace.control.plane import ControlPlane

HEADERS = {"x-headrace-actor": "ann@laptop"}


@asynccontextmanager
async def client_of(plane: ControlPlane) -> AsyncIterator[httpx.AsyncClient]:
    app = build_api(plane, allowed_hosts=frozenset())
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    url = "http://localhost:8080/api/v1"
    async with httpx.AsyncClient(transport=transport, base_url=url, headers=HEADERS) as client:
        yield client


def document(path: Path, *names: str) -> dict[str, object]:
    return {"endpoints": [{"name": name, "model": str(path)} for name in names]}
