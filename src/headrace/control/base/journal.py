"""Event journal in the store, and the signal that wakes waiters on a change."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from headrace.control.model.records import Event

if TYPE_CHECKING:  # gateway agents wait for changes too, and have no store
    from headrace.control.state.store import Store

Emit: TypeAlias = Callable[[Sequence[Event]], Awaitable[None]]
"""Stores events."""


async def discard_events(_events: Sequence[Event]) -> None:
    """Store nothing."""


@dataclass(slots=True)
class ChangeSignal:
    """Event that wakes everything that waits for the next change."""

    next: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the next change, then replaced by a new event. `on_change` is called as well."""
    on_change: Callable[[], None] = lambda: None

    def notify(self) -> None:
        """Wake all waiters."""
        self.next.set()
        self.next = asyncio.Event()
        self.on_change()

    async def wait(self) -> None:
        """Return at the next change."""
        await self.next.wait()


async def wait_for(event: asyncio.Event, timeout_s: float | None) -> None:
    """Return when `event` is set or the timeout expires; None waits without a timeout."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return


_BATCH: Final = 500
_RECHECK_INTERVAL_S: Final = 2.0


@dataclass(slots=True, kw_only=True)
class EventJournal:
    """Writes and reads events, and wakes watchers."""

    store: "Store"
    _changes: ChangeSignal = field(default_factory=ChangeSignal)

    async def write(self, events: Sequence[Event]) -> None:
        """Write events, and wake all watchers."""
        if events:
            await self.store.add_events(events)
            self.notify()

    def notify(self) -> None:
        """Wake all watchers, after events were written together with other records."""
        self._changes.notify()

    async def events(self, endpoint: str = "", *, after: int = 0, limit: int = 1000) -> list[Event]:
        """Return the newest `limit` events after event `after`; `endpoint` empty for all."""
        return await self.store.events(endpoint=endpoint, after=after, limit=limit, newest=True)

    async def watch(self, endpoint: str = "", *, after: int = 0) -> AsyncIterator[Event]:
        """Yield events after event `after` as they are written, without end.

        Nothing is buffered for a slow reader: it continues from its position in the store.
        """
        while True:
            written = self._changes.next
            events = await self.store.events(endpoint=endpoint, after=after, limit=_BATCH)
            for event in events:
                yield event
                after = event.id
            if len(events) == _BATCH:
                continue
            # Writes of another control plane to the same database send no signal here.
            await wait_for(written, _RECHECK_INTERVAL_S)
