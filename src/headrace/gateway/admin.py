"""Client of Envoy's admin interface."""

from dataclasses import dataclass
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Final
from urllib.parse import quote

import orjson

from headrace.core import DeadlineExceededError, UnavailableError
from headrace.core.fetch import fetch
from headrace.gateway.errors import GatewayUnavailableError

_LIMIT_BYTES: Final = 64 << 20


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
            answer = await fetch(
                f"unix:{self.socket}",
                path,
                method=method,
                timeout_s=self.timeout_s,
                limit_bytes=_LIMIT_BYTES,
            )
        except (DeadlineExceededError, UnavailableError) as error:
            msg = f"Envoy does not answer on {self.socket}: {error}"
            raise GatewayUnavailableError(msg) from error
        body = answer.body.decode(errors="replace")
        if answer.status != HTTPStatus.OK:
            msg = f"Envoy answers {answer.status} to {method} {path}: {body.strip()[:200]}"
            raise GatewayUnavailableError(msg)
        return body
