"""Many who ask the same at once are one question."""

import asyncio

import pytest

from headrace.control.asgi.edge import SharedCall

pytestmark = pytest.mark.anyio


class Slow:
    """Answers with how often it was asked, after a second."""

    def __init__(self) -> None:
        self.asked = 0

    async def make(self) -> int:
        self.asked += 1
        asked = self.asked
        await asyncio.sleep(1.0)
        return asked


async def test_who_asks_meanwhile_gets_the_same_answer() -> None:
    shared = SharedCall(Slow().make)

    assert await asyncio.gather(*(shared.get() for _ in range(100))) == [1] * 100


async def test_who_asks_later_gets_a_new_answer() -> None:
    shared = SharedCall(Slow().make)

    assert [await shared.get(), await shared.get()] == [1, 2]


async def test_who_leaves_takes_nobodys_answer_along() -> None:
    shared = SharedCall(Slow().make)
    leaving = asyncio.create_task(shared.get())
    staying = asyncio.create_task(shared.get())
    await asyncio.sleep(0.5)
    leaving.cancel()

    assert await staying == 1


async def test_an_error_is_not_kept() -> None:
    async def fail() -> int:
        await asyncio.sleep(0.1)
        raise OSError("away")

    shared = SharedCall(fail)
    for _ in range(2):
        with pytest.raises(OSError, match="away"):
            await shared.get()
