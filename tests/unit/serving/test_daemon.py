"""Threads that nobody has to wait for. Real ones, held by events."""

import asyncio
import threading

import pytest

from headrace.core import RuntimeFailedError
from headrace.serving.loader import in_daemon_thread

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"  # threads live in real time


async def test_the_result_comes_back() -> None:
    threads: list[threading.Thread] = []

    def work() -> int:
        threads.append(threading.current_thread())
        return 7

    assert await in_daemon_thread(work, name="w", dispose=lambda _: None) == 7
    assert threads[0].daemon
    assert threads[0].name == "w"


async def test_an_error_comes_back() -> None:
    with pytest.raises(ZeroDivisionError):
        await in_daemon_thread(lambda: 1 / 0, name="w", dispose=lambda _: None)


async def test_what_would_end_the_process_comes_back_as_an_error() -> None:
    def work() -> None:
        raise SystemExit(3)

    with pytest.raises(RuntimeFailedError, match=r"SystemExit\(3\)"):
        await in_daemon_thread(work, name="w", dispose=lambda _: None)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_result_that_nobody_waits_for_is_disposed_of(fails: bool) -> None:  # noqa: FBT001  # a parameter
    started, may_end, ended = threading.Event(), threading.Event(), threading.Event()
    disposed: list[int] = []

    def work() -> int:
        started.set()
        assert may_end.wait(10)
        return 1 // 0 if fails else 7

    def dispose(result: int) -> None:
        disposed.append(result)
        ended.set()

    task = asyncio.ensure_future(in_daemon_thread(work, name="w", dispose=dispose))
    await asyncio.sleep(0)
    started.wait(10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    may_end.set()
    for thread in threading.enumerate():
        if thread.name == "w":
            thread.join(10)
    await asyncio.sleep(0)

    assert fails or ended.wait(10)
    assert disposed == ([] if fails else [7])


def test_a_thread_that_outlives_its_loop_harms_nobody() -> None:
    may_end, ended = threading.Event(), threading.Event()

    def work() -> int:
        assert may_end.wait(10)
        ended.set()
        return 7

    async def abandon() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await in_daemon_thread(work, name="late", dispose=lambda _: None)

    asyncio.run(abandon())
    may_end.set()
    for thread in threading.enumerate():
        if thread.name == "late":
            thread.join(10)

    assert ended.is_set()


async def test_a_result_that_comes_in_the_turn_of_the_cancellation_is_disposed_of() -> None:
    threads: list[threading.Thread] = []
    disposed = threading.Event()

    def work() -> int:
        threads.append(threading.current_thread())
        return 7

    task = asyncio.ensure_future(in_daemon_thread(work, name="w", dispose=lambda _: disposed.set()))
    await asyncio.sleep(0)
    threads[0].join(10)  # the loop cannot run: the result waits for its next turn
    asyncio.get_running_loop().call_soon(task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task

    assert disposed.wait(10)
