"""Notification of everybody who waits for the next change."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass(slots=True)
class News:
    """`next`: set at the next change; another one is next then. `on_change` is called as well."""

    next: asyncio.Event = field(default_factory=asyncio.Event)
    on_change: Callable[[], None] = lambda: None

    def note(self) -> None:
        """Wake everybody who waits."""
        self.next.set()
        self.next = asyncio.Event()
        self.on_change()

    async def wait(self) -> None:
        """Return at the next change."""
        await self.next.wait()


async def wait_for(event: asyncio.Event, timeout_s: float) -> None:
    """Return when `event` is set, or time is up."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
