"""How often does somebody look who keeps what he saw? The more a look computes, the more rarely."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

from headrace.control.kept_file import KeptFile, Packable

_AT_MOST_S: Final = 30.0


async def keep_looking(
    look: Callable[[], Awaitable[None]],
    *,
    history: Packable,
    file: KeptFile,
    cpu_s: Callable[[], float],
    share: float,
    every_s: Callable[[], float],
) -> None:
    """Look until cancelled, then keep what was seen.

    Args:
        look: Adds to the history.
        history: What is kept.
        file: Where.
        cpu_s: The time that this thread has computed so far.
        share: Looks take one part in so many of a core, at most.
        every_s: How long from one look to the next, if that leaves the core alone.
    """
    clock = file.clock
    file.begin()
    try:
        while True:
            began, began_cpu_s = clock.monotonic(), cpu_s()
            await look()
            await file.save_if_due(history)
            pause_s = max(every_s(), (cpu_s() - began_cpu_s) * share)
            due = began + min(pause_s, _AT_MOST_S)
            await asyncio.sleep(max(due - clock.monotonic(), 0.0))
    finally:
        file.save(history)
