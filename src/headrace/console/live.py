"""How does a page stay new without being loaded again? Its parts are sent when they change."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from headrace.core import HeadraceError, OverloadedError

EVERY_S: Final = 2.0
MAX_STREAMS: Final = 64
_STOP_POLL_S: Final = 0.5
_HEARTBEAT_S: Final = 15.0
_RETRY: Final = b"retry: 3000\n\n"
_HEARTBEAT: Final = b": still there\n\n"
_GONE: Final = b"event: gone\ndata: {}\n\n"

Parts = Mapping[str, str]
"""The parts of a page by name; `say` is a sentence for screen readers."""


class Part(msgspec.Struct, frozen=True):
    """One part of a page that changed."""

    part: str
    html: str


@dataclass(slots=True)
class Streams:
    """Counts the open streams, so that there are never too many."""

    count: int = 0

    def check_room(self) -> None:
        """Refuse one more if there are too many.

        Raises:
            OverloadedError: There are.
        """
        if self.count >= MAX_STREAMS:
            message = f"{MAX_STREAMS} pages are kept new already"
            raise OverloadedError(message, retry_after_s=10.0)


@dataclass(slots=True, kw_only=True)
class Changes:
    """Tells which parts differ from what was sent last."""

    _sent: dict[str, int] = field(default_factory=dict)

    def of(self, parts: Parts) -> list[Part]:
        """The parts that are new."""
        new = [name for name, html in parts.items() if self._sent.get(name) != hash(html)]
        self._sent.update({name: hash(parts[name]) for name in new})
        return [Part(name, parts[name]) for name in new]


async def stream(
    look: Callable[[], Awaitable[Parts]],
    *,
    streams: Streams,
    is_stopping: Callable[[], bool],
    every_s: float = EVERY_S,
) -> AsyncIterator[bytes]:
    """Server-sent events with the parts that change, until the system stops or says no."""
    streams.count += 1
    try:
        changes, quiet_s = Changes(), 0.0
        yield _RETRY
        while not is_stopping():
            try:
                changed = changes.of(await look())
            except HeadraceError:
                yield _GONE  # what is shown is not there any more, or not for this visitor
                return
            for part in changed:
                yield encoded(part)
            quiet_s = 0.0 if changed else quiet_s + every_s
            if quiet_s >= _HEARTBEAT_S:
                quiet_s = 0.0
                yield _HEARTBEAT
            await _pause(every_s, is_stopping)
    finally:
        streams.count -= 1


async def _pause(every_s: float, is_stopping: Callable[[], bool]) -> None:
    """Wait, but not when everything stops."""
    left = every_s
    while left > 0 and not is_stopping():
        await asyncio.sleep(min(left, _STOP_POLL_S))
        left -= _STOP_POLL_S


def encoded(part: Part) -> bytes:
    """A part as it goes over the wire; JSON has no line breaks of its own."""
    return b"event: part\ndata: %s\n\n" % msgspec.json.encode(part)
