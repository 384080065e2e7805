"""What a browser does, without one: keeps cookies, sends forms, and says where it comes from."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from html import unescape
from itertools import cycle
from typing import Final

import httpx

from headrace.console import build_console
from headrace.control.api.app import build_api
from headrace.control.api.server import ConsoleParts
from headrace.control.asgi.guards import App
from headrace.control.plane.control_plane import ControlPlane
from tests.unit.control.api_client import access_of, token_of

URL: Final = "http://localhost:8080"
_HIDDEN: Final = re.compile(r'<input type="hidden" name="([^"]+)" value="([^"]*)">')


def app_of(plane: ControlPlane) -> httpx.ASGITransport:
    """The management API with its console, each stream of which ends after one look."""
    is_stopping = cycle((False, True, True))  # before the look, after it, before the next

    def console(parts: ConsoleParts) -> App:
        return build_console(replace(parts, is_stopping=lambda: next(is_stopping)))

    app = build_api(plane, access_of(plane), allowed_hosts=frozenset(), console=console)
    return httpx.ASGITransport(app=app, raise_app_exceptions=False)


@asynccontextmanager
async def browser_of(plane: ControlPlane) -> AsyncIterator[httpx.AsyncClient]:
    """A browser of nobody."""
    headers = {"origin": URL, "sec-fetch-site": "same-origin"}
    async with httpx.AsyncClient(transport=app_of(plane), base_url=URL, headers=headers) as client:
        yield client


@asynccontextmanager
async def visitor_of(plane: ControlPlane, *roles: str) -> AsyncIterator[httpx.AsyncClient]:
    """A browser in which somebody with these roles has logged in; an admin if there are none."""
    async with browser_of(plane) as client:
        token = token_of(plane, f"visitor {' '.join(roles)}".strip().replace(" ", "-"), *roles)
        came = await log_in(client, token)
        assert came.status_code == 303, came.text
        yield client


async def log_in(client: httpx.AsyncClient, token: str, page: str = "/") -> httpx.Response:
    form = hidden_of((await client.get("/login", params={"next": page})).text)
    return await client.post("/login", data={**form, "token": token})


def hidden_of(page: str) -> dict[str, str]:
    """The hidden fields of a page's forms."""
    return {name: unescape(value) for name, value in _HIDDEN.findall(page)}
