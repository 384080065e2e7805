"""A worker that hangs is replaced by who supervises it, and one that is only busy is not."""

import asyncio
import os
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace.control.model.desired import DesiredStream
from headrace.control.model.records import Event
from headrace.control.streams.driver import StreamDriver
from headrace.control.streams.supervisor import StreamSupervisor
from headrace.core import SystemClock
from headrace.streaming.broker import Broker, Delivery
from headrace.streaming.settings import WorkerSettings
from tests.e2e.streaming.workers import (
    OUT,
    WITHIN_S,
    double,
    keys,
    lag,
    numbered,
    opened,
    settings,
)

pytestmark = [pytest.mark.e2e, pytest.mark.long]

SILENT_S = 3.0


@pytest.fixture
def broker(folder: Path) -> Iterator[Broker]:
    found = opened(folder, partitions=2)
    yield found
    found.close()


@dataclass(kw_only=True)
class Supervised:
    """A stream's workers, and what is told of them."""

    supervisor: StreamSupervisor
    events: list[Event] = field(default_factory=list)

    async def until(self, holds: Callable[[], bool]) -> None:
        deadline = time.monotonic() + WITHIN_S
        while not holds():
            assert time.monotonic() < deadline, self.supervisor.views()
            await asyncio.sleep(0.05)

    def is_running(self) -> bool:
        return self.supervisor.view("s").state == "running"

    def replaced(self) -> list[str]:
        return [one.message for one in self.events if one.reason == "StreamWorkerReplaced"]

    async def emit(self, events: Sequence[Event]) -> None:
        self.events += events


@asynccontextmanager
async def supervised(
    folder: Path, told: WorkerSettings, *, workers: int
) -> AsyncIterator[Supervised]:
    stream = DesiredStream(
        name="s", model="m:1", settings=told, min_workers=workers, max_workers=workers
    )
    supervisor = StreamSupervisor(
        driver=StreamDriver(
            run=folder / "run",
            sockets=folder,
            home=folder,
            log_of=lambda name: folder / f"{name}.log",
        ),
        desired_streams=lambda: [stream],
        prepare=lambda settings: settings,
        emit=lambda events: found.emit(events),  # noqa: PLW0108  # it is made below
        clock=SystemClock(),
        silent_timeout_s=SILENT_S,
    )
    found = Supervised(supervisor=supervisor)
    task = asyncio.create_task(supervisor.run())
    try:
        yield found
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await supervisor.stop(10.0)


def told(folder: Path, *, delay_s: float) -> WorkerSettings:
    model = double(folder, delay_s=delay_s)
    return settings(
        folder, model, delivery=Delivery.EXACTLY_ONCE, session_timeout_s=1.0, max_batch_size=4
    )


def test_a_worker_that_answers_nobody_is_replaced_and_people_are_told(
    folder: Path, broker: Broker
) -> None:
    async def scenario() -> tuple[Supervised, int]:
        async with supervised(folder, told(folder, delay_s=0.02), workers=2) as team:
            await team.until(team.is_running)
            broker.send(numbered(range(400)))
            hung = team.supervisor.pids()["stream-s-1"]
            os.kill(hung, signal.SIGSTOP)
            await team.until(lambda: bool(team.replaced()))
            await team.until(lambda: team.supervisor.pids().get("stream-s-1", hung) != hung)
            await team.until(team.is_running)
            await team.until(lambda: lag(broker) == 0)
            assert team.supervisor.view("s").restarts == 1
            return team, hung

    team, hung = asyncio.run(scenario())

    [message] = team.replaced()
    assert re.search(r"worker s-1 gave no response for \d+ s, and was stopped", message)
    assert not Path(f"/proc/{hung}").exists()
    assert keys(broker, OUT) == Counter(range(400))


def test_a_worker_whose_model_takes_longer_than_one_may_be_silent_is_let_be(
    folder: Path, broker: Broker
) -> None:
    async def scenario() -> tuple[Supervised, dict[str, int], dict[str, int]]:
        async with supervised(folder, told(folder, delay_s=2.5 * SILENT_S), workers=1) as team:
            await team.until(team.is_running)
            before = team.supervisor.pids()
            broker.send(numbered(range(1)))
            await team.until(lambda: lag(broker) == 0)
            return team, before, team.supervisor.pids()

    team, before, after = asyncio.run(scenario())

    assert before == after
    assert team.replaced() == []
    assert keys(broker, OUT) == {0: 1}
