"""What does a worker say, and what may it be told? Over its own socket; it may be silent."""

from typing import Final, Literal

import msgspec

from headrace.core import HeadraceError
from headrace.core.error_kind import UNDECODABLE
from headrace.core.fetch import fetch
from headrace.streaming.settings import StreamStatus

_TIMEOUT_S: Final = 1.0
_OK: Final = 200


async def status_of(address: str) -> StreamStatus | None:
    """How a worker is; None if it does not say."""
    body = await _fetch(address, "/internal/status")
    if body is None:
        return None
    try:
        return msgspec.json.decode(body, type=StreamStatus)
    except UNDECODABLE:
        return None


async def metrics_of(address: str) -> str:
    """What a worker counts; empty if it does not say."""
    body = await _fetch(address, "/metrics")
    return "" if body is None else body.decode("utf-8", "replace")


async def tell(address: str, verb: Literal["pause", "resume"]) -> None:
    """Let a worker take no more records, or take them again; one that does not hear is told again.

    Whoever looks at its status sees that.
    """
    await _fetch(address, f"/internal/{verb}", method="POST")


async def _fetch(address: str, path: str, method: str = "GET") -> bytes | None:
    try:
        answer = await fetch(address, path, timeout_s=_TIMEOUT_S, method=method)
    except HeadraceError:
        return None  # it starts, or hangs; its process says more
    return answer.body if answer.status == _OK else None
