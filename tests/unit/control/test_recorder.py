"""The history is filled from the gateway's totals, and goes on after either side starts again."""

import asyncio
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace.control.telemetry.pollers import GatewayPoller
from headrace.core import HeadraceError, UnavailableError
from headrace.gateway import ArmStatistics, GatewayStatistics
from headrace.testing import LoopClock, VirtualTimeLoop
from tests.unit.control.played import TurnedClock

_NOON = 1_800_000_000.0


@dataclass(slots=True)
class FakeGateway:
    """Ten requests a second to everybody, since its start."""

    epoch: str = "1"
    began: float = 0.0
    error: HeadraceError | None = None
    asked: list[float] = field(default_factory=list)
    takes_s: float = 0.0

    async def read_endpoints(self, endpoints: Collection[str]) -> GatewayStatistics:
        now = asyncio.get_running_loop().time()
        self.asked.append(now)
        await asyncio.sleep(self.takes_s)
        if self.error is not None:
            raise self.error
        count = int((now - self.began) * 10)
        totals = ArmStatistics(requests=count, errors=count // 10, latency={(0.01, 0.001): count})
        return GatewayStatistics(
            epoch=self.epoch, arms={(name, "1"): totals for name in endpoints}, healthy={}
        )


def recorder(gateway: FakeGateway, path: Path | None = None) -> GatewayPoller:
    return GatewayPoller(
        gateway=gateway,
        names=lambda: ("fraud",),
        clock=LoopClock(_NOON),
        path=path,
        save_every_s=10_000.0,  # in a thread, which virtual time cannot see
    )


def run_for(seconds: float, made: GatewayPoller) -> None:
    """Run until virtual time is up."""

    async def run() -> None:
        task = asyncio.create_task(made.run())
        await asyncio.sleep(seconds)
        task.cancel()
        await asyncio.wait({task})

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(run())


def requests(made: GatewayPoller, until_s: float, seconds: float) -> int:
    return made.history.window("fraud", until=_NOON + until_s, seconds=seconds).requests


def test_it_looks_every_second() -> None:
    made = recorder(FakeGateway())
    run_for(60.5, made)

    assert requests(made, 60, 60) == 600
    assert made.history.window("fraud", until=_NOON + 60, seconds=60).error_ratio == 0.1


def test_a_look_that_computes_long_makes_looks_rarer() -> None:
    gateway = FakeGateway()
    made = recorder(gateway)
    made.cpu_s = lambda: len(gateway.asked) * 0.5
    run_for(60.5, made)

    assert len(gateway.asked) == 7


def test_waiting_for_the_gateway_makes_looks_no_rarer() -> None:
    gateway = FakeGateway(takes_s=0.5)
    run_for(60.5, recorder(gateway))

    assert len(gateway.asked) == 61


def test_a_gateway_that_does_not_answer_is_asked_again() -> None:
    gateway = FakeGateway(error=UnavailableError("no"))
    made = recorder(gateway)
    run_for(10.5, made)

    assert len(gateway.asked) == 42
    assert made.history.looked_at is None


def test_a_gateway_that_starts_again_counts_on() -> None:
    gateway = FakeGateway()
    made = recorder(gateway)

    async def run() -> None:
        task = asyncio.create_task(made.run())
        await asyncio.sleep(30.5)
        gateway.epoch, gateway.began = "2", 30.5
        await asyncio.sleep(30)
        task.cancel()
        await asyncio.wait({task})

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(run())

    assert requests(made, 60, 60) == 595  # the half second before its end was never read


def test_another_control_plane_goes_on_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "history.bin"

    async def run() -> GatewayPoller:
        gateway = FakeGateway()
        first, second = recorder(gateway, path), recorder(gateway, path)
        for made, pause_s in ((first, 20.5), (second, 20.0)):
            made.load()
            task = asyncio.create_task(made.run())
            await asyncio.sleep(pause_s)
            task.cancel()
            await asyncio.wait({task})
            await asyncio.sleep(19.5)  # nobody looks, and requests go on
        return second

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        made = runner.run(run())

    assert requests(made, 60, 60) == 590
    assert requests(made, 40, 20) == pytest.approx(200, abs=15)


def at_noon(path: Path) -> GatewayPoller:
    """One that does not run yet."""
    return GatewayPoller(
        gateway=FakeGateway(), names=lambda: ("fraud",), clock=TurnedClock(_NOON), path=path
    )


def test_it_keeps_the_file_while_it_runs(tmp_path: Path) -> None:
    made = at_noon(tmp_path / "history.bin")

    async def run() -> None:
        await made.poll()
        await made.save_if_due()

    asyncio.run(run())
    other = at_noon(tmp_path / "history.bin")
    other.load()

    assert other.history.looked_at == _NOON


def test_a_clock_that_is_set_back_begins_the_history_anew() -> None:
    clock = TurnedClock(_NOON)
    made = GatewayPoller(gateway=FakeGateway(), names=lambda: ("fraud",), clock=clock)

    async def looked_at(time: float) -> float | None:
        clock.time = time
        await made.poll()
        return made.history.began_at

    async def run() -> list[float | None]:
        return [await looked_at(time) for time in (_NOON, _NOON - 30, _NOON - 3600)]

    assert asyncio.run(run()) == [_NOON, _NOON, _NOON - 3600]


def test_a_disk_that_is_full_is_no_reason_to_stop(tmp_path: Path) -> None:
    made = recorder(FakeGateway(), tmp_path / "nowhere" / "history.bin")
    run_for(10.5, made)

    assert requests(made, 10, 10) == 100


@pytest.mark.parametrize("content", [b"", b"nonsense"])
def test_a_spoilt_file_costs_the_past_only(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "history.bin"
    path.write_bytes(content)
    made = at_noon(path)
    made.load()

    assert made.history.looked_at is None


def test_a_file_of_the_future_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "history.bin"
    run_for(50.5, recorder(FakeGateway(), path))
    now = at_noon(path)
    now.load()
    run_for(100.5, recorder(FakeGateway(), path))
    earlier = at_noon(path)
    earlier.load()

    assert now.history.looked_at == _NOON + 50
    assert earlier.history.looked_at is None
