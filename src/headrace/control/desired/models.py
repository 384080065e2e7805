"""Rules for paths of models, and threads that read, hash and inspect models."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

from headrace.core import (
    CancellableInspect,
    Inspect,
    Inspected,
    InvalidArgumentError,
    OverloadedError,
    RequestCancelledError,
)
from headrace.core.spec.parse import is_model_path

MAX_INSPECTIONS: Final = 4
"""Maximum number of models of one caller that are inspected concurrently; more wait."""
MAX_UNDER_WAY: Final = 32
"""Maximum number of running and waiting work items per caller; more are refused."""
_THREADS: Final = 256
_RETRY_S: Final = 5.0
_POLL_INTERVAL_S: Final = 0.1
T = TypeVar("T")
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]


@dataclass(slots=True)
class ModelWork:
    """Reads, hashes and inspects models outside the event loop and outside every lock.

    Each caller has separate threads and inspection slots: slow models delay neither other callers
    nor the same caller's work on stored versions.
    """

    inspect: CancellableInspect
    _in_progress: Counter[str] = field(default_factory=Counter)
    _turns: dict[str, threading.BoundedSemaphore] = field(default_factory=dict)
    _executor: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_THREADS, thread_name_prefix="model")
    )

    async def run(self, caller: str, work: Callable[..., T], /, *arguments: object) -> T:
        """Return what `work(*arguments)` returns.

        Raises:
            OverloadedError: The caller has too much work in progress.
        """
        if self._in_progress[caller] >= MAX_UNDER_WAY:
            message = f"{MAX_UNDER_WAY} changes of {caller} read models already; try again later"
            raise OverloadedError(message, retry_after_s=_RETRY_S)
        self._in_progress[caller] += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._executor, work, *arguments)
        finally:
            self._in_progress[caller] -= 1

    def inspect_for(self, caller: str, cancel: threading.Event | None = None) -> Inspect:
        """Return an `Inspect` that waits for an inspection slot of the caller.

        Args:
            cancel: Set when the caller disconnects.
        """
        cancel = cancel or threading.Event()
        turns = self._turns.setdefault(caller, threading.BoundedSemaphore(MAX_INSPECTIONS))

        def inspect(path: Path, runtime: str = "", *, allow_code: bool = False) -> Inspected:
            while not turns.acquire(timeout=_POLL_INTERVAL_S):
                if cancel.is_set():
                    raise RequestCancelledError("the caller left")
            try:
                return self.inspect(path, runtime, allow_code=allow_code, cancel=cancel)
            finally:
                turns.release()

        return inspect

    def close(self) -> None:
        """Accept no more work; running work finishes."""
        self._executor.shutdown(wait=False, cancel_futures=True)


@asynccontextmanager
async def caller_leaves(receive: Receive) -> AsyncIterator[threading.Event]:
    """Yield an event that is set when the caller of an ASGI request disconnects.

    The request's body must be read before.
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


def check_model_path(path: Path, home: Path) -> None:
    """Reject a path that contains files of the home, from every caller.

    Raises:
        InvalidArgumentError: The path is inside the home, or contains it.
    """
    real, real_home = path.resolve(), home.resolve()
    if real.is_relative_to(real_home) or real_home.is_relative_to(real):
        message = (
            f"{path} is in the home {home}, or around it: what lies there is no model to serve; "
            "name a version of the registry, or another path"
        )
        raise InvalidArgumentError(message)


def paths_below(roots: Iterable[Path], document: Mapping[str, Any]) -> frozenset[str]:
    """Return the model paths of a spec's endpoints below one of `roots`, with links followed."""
    real_roots = [root.resolve() for root in roots]
    sources = [
        source
        for endpoint in document.get("endpoints") or ()
        for source in (endpoint, *(endpoint.get("versions") or ()))
    ]
    paths = {source["model"] for source in sources if is_model_path(source.get("model") or "")}
    return frozenset(
        path
        for path in (paths if real_roots else ())
        if any(Path(path).resolve().is_relative_to(root) for root in real_roots)
    )
