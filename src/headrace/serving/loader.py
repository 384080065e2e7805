"""Daemon threads that load and free models, and run calls that may never end."""

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from headrace.core import ReplicaSettings, RuntimeFailedError
from headrace.scoring.loading import LoadedModel, load_model
from headrace.serving.memory import give_back

T = TypeVar("T")


async def in_daemon_thread(work: Callable[[], T], *, name: str, dispose: Callable[[T], None]) -> T:
    """Return the result of `work`. When cancelled, the thread is abandoned.

    Unlike with `asyncio.to_thread`, a thread that hangs does not keep the process from ending.

    Args:
        dispose: Gets the result, in a thread, if the caller no longer waits for it.

    Raises:
        RuntimeFailedError: `work` tried to end its thread.
        Exception: What `work` raises.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def succeed(result: T) -> None:
        if done.cancelled():
            _start(lambda: dispose(result), name)
        else:
            done.set_result(result)

    def fail(error: Exception) -> None:
        if not done.cancelled():
            done.set_exception(error)

    def run() -> None:
        with contextlib.suppress(RuntimeError):  # the event loop is closed: no caller waits
            try:
                result = work()
            except Exception as error:  # noqa: BLE001  # the waiting caller gets it
                loop.call_soon_threadsafe(fail, error)
            except BaseException as error:  # noqa: BLE001  # it would end the event loop
                loop.call_soon_threadsafe(fail, RuntimeFailedError(f"it raised {error!r}"))
            else:
                loop.call_soon_threadsafe(succeed, result)

    _start(run, name)
    return await _result_or_dispose(done, dispose, name)


async def _result_or_dispose(done: asyncio.Future[T], dispose: Callable[[T], None], name: str) -> T:
    """Return the result; dispose of it if the caller is cancelled in the same loop iteration."""
    try:
        return await done
    except asyncio.CancelledError:
        if done.done() and not done.cancelled() and done.exception() is None:
            _start(lambda: dispose(done.result()), name)
        raise


def _start(work: Callable[[], None], name: str) -> None:
    threading.Thread(target=work, name=name, daemon=True).start()


WARM_UP_S: Final = 0.2
"""Shorter than in a replica, because a request waits here: the engine learns while it serves."""


class ThreadLoader:
    """Loader of a pool's models in the pool's process."""

    async def load(self, settings: ReplicaSettings) -> LoadedModel:
        """Load a model that passed its load check; if cancelled, the result is freed later.

        Raises:
            HeadraceError: It cannot be loaded.
        """
        return await in_daemon_thread(
            lambda: load_model(settings, warm_up_s=WARM_UP_S), name="load", dispose=_free
        )

    async def free(self, loaded: LoadedModel) -> None:
        """Close a model and return its memory to the system."""
        await in_daemon_thread(lambda: _free(loaded), name="free", dispose=lambda _: None)


def _free(loaded: LoadedModel) -> None:
    loaded.model.close()
    gc.collect()  # a user's module and its functions reference each other
    give_back()
