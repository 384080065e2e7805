"""What is left of a stream that is not wanted any more, and of one that is."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from headrace.control.model.desired import DesiredStream
from headrace.control.streams.driver import StreamDriver
from headrace.control.streams.supervisor import StreamOrders, StreamSupervisor
from headrace.core import SystemClock
from headrace.core.spec.stream_parts import StreamWindowSpec, StreamWindowsSpec
from headrace.core.state_file import StateFile
from headrace.streaming.settings import WorkerSettings

WINDOWS = StreamWindowsSpec(windows=[StreamWindowSpec(name="n", size_s=5)])


async def nobody(_: object) -> None:
    """Nobody reads events here."""


class Broken(StreamDriver):
    """Starts nothing: the disk is full."""

    def start(self, *_: object, **__: object) -> None:  # type: ignore[override]  # it never returns
        raise OSError(28, "No space left on device")


def orders_file(home: Path) -> StateFile[dict[str, StreamOrders]]:
    return StateFile(home / "streams.json", dict[str, StreamOrders], "orders")


def supervisor(home: Path, wanted: Sequence[DesiredStream] = ()) -> StreamSupervisor:
    driver = Broken(run=home / "run", sockets=home, home=home, log_of=lambda name: home / name)
    found = StreamSupervisor(
        driver=driver,
        desired_streams=lambda: wanted,
        prepare=lambda settings: settings,
        emit=nobody,
        clock=SystemClock(),
        memory=orders_file(home),
    )
    found.load()
    return found


def stream(name: str = "pay", group: str = "g") -> DesiredStream:
    settings = WorkerSettings(
        name=name, broker="log:x", topics=["in"], group=group, member="", windows=WINDOWS
    )
    return DesiredStream(name=name, model="m:1", settings=settings)


def states(home: Path) -> list[str]:
    return sorted(str(path.relative_to(home)) for path in home.glob("stream-state/*/*/*"))


@pytest.fixture
def home(tmp_path: Path) -> Path:
    for group in ("g", "other"):
        folder = tmp_path / "stream-state" / "pay" / group
        folder.mkdir(parents=True)
        (folder / "in-0.db").touch()
    return tmp_path


@pytest.mark.anyio
async def test_states_of_windows_go_with_their_stream_and_others_groups_stay(home: Path) -> None:
    orders_file(home).save({"pay": StreamOrders(groups=("g",))})
    await supervisor(home).step()

    assert states(home) == ["stream-state/pay/other/in-0.db"]
    assert orders_file(home).load() == {}


@pytest.mark.anyio
async def test_states_of_a_stream_that_is_wanted_or_paused_stay(home: Path) -> None:
    before = {"pay": StreamOrders(groups=("g",), paused=True)}
    orders_file(home).save(before)
    await supervisor(home, [stream()]).step()

    assert len(states(home)) == 2
    assert orders_file(home).load() == before


@pytest.mark.anyio
async def test_whose_states_there_will_be_is_known_before_a_worker_runs(home: Path) -> None:
    await supervisor(home, [stream(group="g")]).step()
    await supervisor(home, [stream(group="h")]).step()

    assert orders_file(home).load() == {"pay": StreamOrders(groups=("g", "h"))}


@pytest.mark.anyio
async def test_why_a_worker_could_not_be_started_is_told_with_its_stream(home: Path) -> None:
    found = supervisor(home, [stream()])
    await found.step()

    assert found.view("pay").message == "No space left on device"
