"""Ask Envoy's admin socket: a small HTTP client, one connection per question."""

import asyncio
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final
from urllib.parse import quote

import orjson

from headrace.gateway.errors import GatewayUnavailableError

_LIMIT_BYTES: Final = 64 << 20
_STATUS: Final = re.compile(rb"HTTP/1\.1 (\d{3})")
_OK: Final = 200


class StatKind(StrEnum):
    """What Envoy calls a kind of statistics."""

    COUNTER = "Counters"
    GAUGE = "Gauges"
    TEXT = "TextReadouts"


@dataclass(frozen=True, slots=True)
class Admin:
    """Envoy's admin interface on a Unix socket. Safe to use from several tasks."""

    socket: Path
    timeout_s: float = 5.0

    async def get(self, path: str) -> str:
        """The body of an answer with status 200.

        Raises:
            GatewayUnavailableError: No answer in time, or another status.
        """
        return await self._ask("GET", path)

    async def post(self, path: str) -> str:
        """As `get`, for what changes something."""
        return await self._ask("POST", path)

    async def stats(self, pattern: str, kind: StatKind) -> dict[str, str | int]:
        """Those of one kind whose whole name matches the regular expression, and that were touched.

        Envoy has a hundred statistics per cluster and looks at all of a kind: of texts, hardly any.
        """
        body = await self.get(
            f"/stats?format=json&type={kind}&usedonly&filter=^({quote(pattern)})$"
        )
        found = orjson.loads(body)["stats"]
        return {stat["name"]: stat["value"] for stat in found if "name" in stat}

    async def _ask(self, method: str, path: str) -> str:
        try:
            async with asyncio.timeout(self.timeout_s):
                answer = await _exchange(self.socket, method, path)
        except (OSError, EOFError, TimeoutError) as error:
            msg = f"Envoy does not answer on {self.socket}: {error!r}"
            raise GatewayUnavailableError(msg) from error
        status, body = parse_answer(answer)
        if status != _OK:
            msg = f"Envoy answers {status} to {method} {path}: {body.strip()[:200]}"
            raise GatewayUnavailableError(msg)
        return body


async def _exchange(socket: Path, method: str, path: str) -> bytes:
    reader, writer = await asyncio.open_unix_connection(socket, limit=_LIMIT_BYTES)
    try:
        head = f"{method} {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n"
        writer.write(f"{head}content-length: 0\r\n\r\n".encode())
        await writer.drain()
        return await reader.read()
    finally:
        writer.close()


def parse_answer(answer: bytes) -> tuple[int, str]:
    """Status and body of a whole HTTP/1.1 answer, chunked or not; status 0 if it is none."""
    head, _, body = answer.partition(b"\r\n\r\n")
    match = _STATUS.match(head)
    if match is None:
        return 0, answer.decode(errors="replace")
    if b"transfer-encoding: chunked" in head.lower():
        body = _unchunk(body)
    return int(match[1]), body.decode(errors="replace")


def _unchunk(body: bytes) -> bytes:
    parts = []
    position = 0
    while (end := body.find(b"\r\n", position)) >= 0:
        size = int(body[position:end] or b"0", 16)
        if size == 0:
            break
        parts.append(body[end + 2 : end + 2 + size])
        position = end + 2 + size + 2
    return b"".join(parts)
