"""Scripts of pages from other origins, in Chromium."""

import asyncio
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from playwright.async_api import async_playwright

from headrace.core.spec.access import CorsSpec, EndpointAccess
from headrace.gateway import EndpointRoute, EnvoyGateway, RevisionTarget, build_snapshot
from tests.e2e.console.conftest import chromium
from tests.e2e.gateway.issuing import Issuer, api_key, known
from tests.e2e.gateway.lab import Lab, http_url

__all__ = ["chromium"]
pytestmark = [pytest.mark.e2e, pytest.mark.anyio, pytest.mark.slow]
KEY = api_key("page")
CALL = """async ([url, headers]) => {
  try {
    const response = await fetch(url, {
      method: "POST", headers: {"content-type": "application/json", ...headers}, body: "{}",
    });
    return [response.status, response.headers.get("x-request-id") !== null];
  } catch (error) {
    return [0, false];
  }
}"""
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "content-type, x-api-key",
}


@pytest.fixture
def origin(tmp_path: Path) -> Iterator[str]:
    """The origin of a page that another server returns."""
    (tmp_path / "index.html").write_text("<!doctype html><title>page</title>")
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def start(lab: Lab, cors: CorsSpec | None) -> EnvoyGateway:
    """Start a gateway with the public endpoint `open` and the endpoint `keyed`."""
    arms = (RevisionTarget(version="1", replicas=(lab.replica("r").address,), weight=100),)
    endpoints = [
        EndpointRoute(name="open", arms=arms),
        EndpointRoute(name="keyed", arms=arms, access=EndpointAccess()),
    ]
    gateway = EnvoyGateway(lab.settings(cors=cors))
    lab.gateways.append(gateway)
    policy = Issuer().policy(known(KEY))
    await gateway.start(build_snapshot(gateway.settings, endpoints, policy))
    return gateway


async def fetched(
    chromium: str,  # the imported fixture
    origin: str,
    *calls: tuple[str, dict[str, str]],
) -> list[Any]:
    """Return the status that a page of `origin` reads, 0 for none, and whether it reads headers."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = await browser.new_page()
        await page.goto(origin)
        answers = [await page.evaluate(CALL, call) for call in calls]
        await browser.close()
    return answers


async def test_a_page_of_an_allowed_origin_calls_the_gateway(
    lab: Lab,
    chromium: str,  # as above
    origin: str,
) -> None:
    gateway = await start(lab, CorsSpec(allow_origins=(origin,)))
    paths = [http_url(gateway, f"/v2/models/{name}/infer") for name in ("open", "keyed", "none")]

    answers = await fetched(
        chromium,
        origin,
        (paths[0], {}),
        (paths[1], {"x-api-key": KEY}),
        (paths[1], {"authorization": f"Bearer {KEY}"}),
        (paths[1], {}),
        (paths[2], {"x-api-key": KEY}),
    )

    # An error is readable too.
    assert answers == [[200, True], [200, True], [200, True], [401, True], [404, True]]


@pytest.mark.parametrize("cors", [None, CorsSpec(allow_origins=("https://a.example",))])
async def test_a_page_of_another_origin_cannot_call_the_gateway(
    lab: Lab,
    chromium: str,  # as above
    origin: str,
    cors: CorsSpec | None,
) -> None:
    gateway = await start(lab, cors)
    url = http_url(gateway, "/v2/models/open/infer")

    assert await fetched(chromium, origin, (url, {})) == [[0, False]]


async def test_a_preflight_request_is_answered_without_credentials(lab: Lab) -> None:
    origins = ("https://a.example", "https://*.b.example")
    gateway = await start(lab, CorsSpec(allow_origins=origins, max_age_s=60))
    url = http_url(gateway, "/v2/models/keyed/infer")

    async with httpx.AsyncClient() as http:
        allowed, subdomain, domain, other = await asyncio.gather(
            *(
                http.options(url, headers={"origin": origin, **PREFLIGHT})
                for origin in (
                    "https://a.example",
                    "https://x.y.b.example",
                    "https://b.example",
                    "https://x.example/.b.example",
                )
            )
        )

    assert allowed.status_code == subdomain.status_code == 204
    assert allowed.headers["access-control-allow-origin"] == "https://a.example"
    assert allowed.headers["vary"] == "origin"
    assert "POST" in allowed.headers["access-control-allow-methods"]
    assert allowed.headers["access-control-max-age"] == "60"
    assert subdomain.headers["access-control-allow-origin"] == "https://x.y.b.example"
    for refused in (domain, other):
        assert "access-control-allow-origin" not in refused.headers
