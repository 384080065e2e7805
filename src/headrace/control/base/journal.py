"""Events in the store, and the notification of whoever waits for a change."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypeAlias

from headrace.control.model.records import Event

if TYPE_CHECKING:  # gateways' agents wait for news, and have no store
    from headrace.control.state.store import Store

Emit: TypeAlias = Callable[[Sequence[Event]], Awaitable[None]]
"""Stores events."""


async def discard_events(_events: Sequence[Event]) -> None:
    """Store nothing."""


@dataclass(slots=True)
class ChangeSignal:
    """Event that wakes everything that waits for the next change."""

    next: asyncio.Event = field(default_factory=asyncio.Event)
    """Set at the next change; another one is next then. `on_change` is called as well."""
    on_change: Callable[[], None] = lambda: None

    def notify(self) -> None:
        """Wake everybody who waits."""
        self.next.set()
        self.next = asyncio.Event()
        self.on_change()

    async def wait(self) -> None:
        """Return at the next change."""
        await self.next.wait()


async def wait_for(event: asyncio.Event, timeout_s: float | None) -> None:
    """Return when `event` is set, or time is up; None waits for as long as it takes."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return


_BATCH: Final = 500
_RECHECK_INTERVAL_S: Final = 2.0


@dataclass(slots=True, kw_only=True)
class EventJournal:
    """Writes events, reads them, and wakes those who watch."""

    store: "Store"
    _changes: ChangeSignal = field(default_factory=ChangeSignal)

    async def write(self, events: Sequence[Event]) -> None:
        """Add events, and tell everybody who watches."""
        if events:
            await self.store.add_events(events)
            self.notify()

    def notify(self) -> None:
        """Wake everybody who watches: events were written together with something else."""
        self._changes.notify()

    async def events(self, endpoint: str = "", *, after: int = 0, limit: int = 1000) -> list[Event]:
        """The newest `limit` events after event `after`, in order; of all endpoints if empty."""
        return await self.store.events(endpoint=endpoint, after=after, limit=limit, newest=True)

    async def watch(self, endpoint: str = "", *, after: int = 0) -> AsyncIterator[Event]:
        """Events after event `after` as they come, without end.

        Nothing is kept for a slow reader: it reads on from the store where it was.
        """
        while True:
            written = self._changes.next
            events = await self.store.events(endpoint=endpoint, after=after, limit=_BATCH)
            for event in events:
                yield event
                after = event.id
            if len(events) == _BATCH:
                continue
            # Another control plane on the same database wakes nobody here.
            await wait_for(written, _RECHECK_INTERVAL_S)
