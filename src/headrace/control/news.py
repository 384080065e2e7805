"""How does whoever waits learn that something is otherwise than before?"""

import asyncio
from dataclasses import dataclass, field


@dataclass(slots=True)
class News:
    """`next`: set at the next change; another one is next then."""

    next: asyncio.Event = field(default_factory=asyncio.Event)

    def note(self) -> None:
        """Wake everybody who waits."""
        self.next.set()
        self.next = asyncio.Event()


async def wait_for(event: asyncio.Event, timeout_s: float) -> None:
    """Return when `event` is set, or time is up."""
    try:
        async with asyncio.timeout(timeout_s):
            await event.wait()
    except TimeoutError:
        return
