import asyncio

import pytest

from headrace.testing import VirtualTimeLoop


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.mark.anyio
async def test_an_hour_passes_at_once() -> None:
    loop = asyncio.get_running_loop()
    before = loop.time()
    await asyncio.sleep(3600)

    assert loop.time() - before == pytest.approx(3600)


@pytest.mark.anyio
async def test_timers_fire_in_the_order_of_their_times() -> None:
    seen: list[str] = []

    async def after(seconds: float, name: str) -> None:
        await asyncio.sleep(seconds)
        seen.append(name)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(after(3, "third"))
        tasks.create_task(after(1, "first"))
        tasks.create_task(after(2, "second"))

    assert seen == ["first", "second", "third"]


@pytest.mark.anyio
async def test_a_timeout_ends_what_never_would() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(60):
            await asyncio.Event().wait()


def test_waiting_for_what_nobody_will_do_is_an_error() -> None:
    loop = VirtualTimeLoop()
    try:
        with pytest.raises(RuntimeError, match="nobody will do"):
            loop.run_until_complete(asyncio.Event().wait())
        for task in asyncio.all_tasks(loop):
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                loop.run_until_complete(task)
    finally:
        loop.close()
