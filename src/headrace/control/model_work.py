"""Threads that read, hash and inspect models, with a bound per principal."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

from headrace.core import OverloadedError

MAX_PER_CALLER: Final = 4
"""How much of one caller's work runs at once."""
MAX_WAITING: Final = 64
"""How much of one caller's work runs or waits; more is refused."""
_THREADS: Final = 32
_RETRY_S: Final = 5.0

T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(slots=True)
class ModelWork:
    """Runs work on models outside of the event loop and outside of every lock.

    Threads of its own: one caller's slow model takes none from the rest of the control plane.
    """

    _under_way: Counter[str] = field(default_factory=Counter)
    _turns: dict[str, asyncio.Semaphore] = field(default_factory=dict)
    _executor: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_THREADS, thread_name_prefix="model")
    )

    async def run(self, caller: str, work: Callable[..., T], /, *arguments: object) -> T:
        """Return what `work(*arguments)` returns.

        Raises:
            OverloadedError: The caller has too much waiting.
        """
        if self._under_way[caller] >= MAX_WAITING:
            message = f"{MAX_WAITING} models wait to be read for {caller}; try again later"
            raise OverloadedError(message, retry_after_s=_RETRY_S)
        self._under_way[caller] += 1
        try:
            async with self._turns.setdefault(caller, asyncio.Semaphore(MAX_PER_CALLER)):
                loop = asyncio.get_running_loop()
                return await loop.run_in_executor(self._executor, work, *arguments)
        finally:
            self._under_way[caller] -= 1
            if not self._under_way[caller]:
                del self._under_way[caller], self._turns[caller]

    def close(self) -> None:
        """Take no more work; what runs ends by itself."""
        self._executor.shutdown(wait=False, cancel_futures=True)


@asynccontextmanager
async def caller_leaves(receive: Receive) -> AsyncIterator[threading.Event]:
    """An event that is set when the caller of an ASGI request closes the connection.

    The request's body has to be read before.
    """
    event = threading.Event()

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        event.set()

    watcher = asyncio.ensure_future(watch())
    try:
        yield event
    finally:
        watcher.cancel()
        with suppress(asyncio.CancelledError):
            await watcher
