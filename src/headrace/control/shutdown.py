"""How do all replicas end? Told to drain together, given time, then killed."""

import asyncio
import logging
import signal
from collections.abc import Iterable
from typing import Final

from headrace.control.local import LocalDriver
from headrace.core.processes import Process

_LOG: Final = logging.getLogger("headrace.control")
_KILLED_S: Final = 5.0


async def stop_replicas(driver: LocalDriver, *, drain_s: float) -> None:
    """End every replica and remove what it left; after `drain_s` by SIGKILL."""
    names = driver.names()
    running = {name: p for name in names if (p := driver.process_of(name)) is not None}
    for process in running.values():
        process.send(signal.SIGTERM)
    left = await _wait_all(running.values(), timeout_s=drain_s)
    for process in left:
        _LOG.warning("replica did not drain in time; killed", extra={"pid": process.pid})
        process.send(signal.SIGKILL)
    await _wait_all(left, timeout_s=_KILLED_S)
    for name in names:
        driver.forget(name)


async def _wait_all(processes: Iterable[Process], *, timeout_s: float) -> list[Process]:
    """Wait for all to end; those that did not."""
    waits = {asyncio.ensure_future(process.wait()): process for process in processes}
    if not waits:
        return []
    _, pending = await asyncio.wait(waits, timeout=timeout_s)
    for wait in pending:
        wait.cancel()
    await asyncio.gather(*pending, return_exceptions=True)
    return [waits[wait] for wait in pending]
