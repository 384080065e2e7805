"""What is in the Secret from which gateways start without a control plane."""

import asyncio
import base64
import gzip
import json
import logging
import os
from dataclasses import dataclass, field

import httpx2
import pytest

from headrace.control.kubernetes.fallback import KEY, GatewayFallback
from tests.unit.control.kubernetes.states import an_api

pytestmark = pytest.mark.anyio


@dataclass
class Server:
    """An API server that keeps one Secret."""

    status: int = 200
    written: list[bytes | None] = field(default_factory=list)

    def answer(self, request: httpx2.Request) -> httpx2.Response:
        assert (request.method, request.url.path) == (
            "PATCH",
            "/api/v1/namespaces/models/secrets/s",
        )
        if self.status == 200:
            content: str | None = json.loads(request.content)["data"][KEY]
            told = None if content is None else gzip.decompress(base64.b64decode(content))
            self.written.append(told)
        return httpx2.Response(self.status, json={"message": "no"})


async def run(server: Server, bundles: dict[float, bytes]) -> None:
    """Let gateways use each configuration from its time on, for 60 s."""
    loop = asyncio.get_running_loop()
    start = loop.time()

    def read() -> bytes:
        times = [time for time in bundles if time <= loop.time() - start]
        return bundles[max(times)] if times else b""

    api = an_api(server.answer)
    task = asyncio.ensure_future(GatewayFallback(api=api, name="s", read=read).run())
    await asyncio.sleep(60.0)
    task.cancel()
    await asyncio.wait({task})


async def test_what_gateways_use_is_written_once_after_each_change() -> None:
    server = Server()

    await run(server, {10.0: b"one", 21.0: b"two", 21.5: b"three", 40.0: b""})

    assert server.written == [b"one", b"three"]


async def test_a_failure_is_told_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(status=403)

    asyncio.get_running_loop().call_later(30.0, lambda: setattr(server, "status", 200))
    await run(server, {0.0: b"one"})

    assert server.written == [b"one"]
    assert len([r for r in caplog.records if r.levelno == logging.ERROR]) == 1


async def test_a_configuration_that_is_too_large_leaves_no_older_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server()

    await run(server, {0.0: b"one", 20.0: os.urandom(1 << 21)})

    assert server.written == [b"one", None]
    assert "larger than" in caplog.text
