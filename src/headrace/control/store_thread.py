"""How does the event loop use a store that waits for a disk? By a thread of its own."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from headrace.control.store import Store

_P = ParamSpec("_P")
_T = TypeVar("_T")


class StoreThread:
    """Runs a store's methods one after the other, in a thread."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="store")

    async def run(self, method: Callable[_P, _T], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """What a method of `store` returns or raises.

        A caller that is cancelled leaves: what it asked for is done all the same.
        """
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(self._executor, lambda: method(*args, **kwargs))
        return await asyncio.shield(work)

    def close(self) -> None:
        """Finish what was asked for, and let go of the database."""
        self._executor.shutdown(wait=True)
        self.store.close()
