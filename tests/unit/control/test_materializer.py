"""Scheduled views run when they are due, one run at a time of each, over hours of virtual time."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace.control.features.materialize_plan import ViewPast
from headrace.control.features.materializer import Materializer, OnProgress
from headrace.control.model.records import Event
from headrace.core import FailedPreconditionError, HeadraceError, InvalidArgumentError
from headrace.core.state_file import StateFile
from headrace.features import DataSource, Definitions, FeatureView, MaterializeSchedule
from headrace.features.materialize_process import MaterializeFinished, MaterializeProgress
from headrace.testing import LoopClock, VirtualTimeLoop
from tests.metrics import exposed

pytestmark = pytest.mark.anyio
START = 1764000000.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("asyncio", {"loop_factory": VirtualTimeLoop})


def view(name: str, every_s: float | None = 60.0, *, path: str = "/a") -> FeatureView:
    schedule = None if every_s is None else MaterializeSchedule(every_s=every_s)
    source = DataSource(path=Path(path))
    return FeatureView(name=name, entities=(), features=(), source=source, schedule=schedule)


@dataclass
class Lab:
    """A materializer whose runs take `takes_s` and fail with `fails`."""

    folder: Path
    takes_s: float = 5.0
    fails: Exception | None = None
    cannot_read: HeadraceError | None = None
    runs: list[tuple[str, float]] = field(default_factory=list)
    cancelled: int = 0
    under_way: int = 0
    most_at_once: int = 0
    events: list[Event] = field(default_factory=list)
    cannot_emit: HeadraceError | None = None
    _views: tuple[FeatureView, ...] = ()
    _applied: int = 0

    def make(self) -> Materializer:
        made = Materializer(
            path=self.folder / "definitions.json",
            read=self._read,
            work=self._work,
            emit=self._emit,
            clock=LoopClock(START),
            memory=StateFile(
                self.folder / "features" / "materialized.json", list[ViewPast], "past runs"
            ),
        )
        made.load()
        return made

    def apply(self, *views: FeatureView) -> None:
        self._views = views
        self._applied += 1
        (self.folder / "definitions.json").write_text("x" * self._applied)

    async def _read(self) -> Definitions:
        if self.cannot_read is not None:
            raise self.cannot_read
        return Definitions(entities={}, views={v.name: v for v in self._views}, services={})

    async def _work(self, view: FeatureView, progress: OnProgress) -> MaterializeFinished:
        self.runs.append((view.name, round(asyncio.get_running_loop().time())))
        self.under_way += 1
        self.most_at_once = max(self.most_at_once, self.under_way)
        try:
            progress(MaterializeProgress(done=1, entities=2))
            await asyncio.sleep(self.takes_s)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        if self.fails is not None:
            raise self.fails
        return MaterializeFinished(entities=2, written=2, newest_us=round(START * 1e6))

    async def _emit(self, events: Sequence[Event]) -> None:
        if self.cannot_emit is not None:
            raise self.cannot_emit
        self.events += events

    def told(self) -> list[str]:
        return [event.reason for event in self.events]


@asynccontextmanager
async def running(materializer: Materializer) -> AsyncIterator[None]:
    task = asyncio.create_task(materializer.run())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled(), task


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    (tmp_path / "features").mkdir()
    return Lab(folder=tmp_path)


async def test_views_run_at_once_and_then_by_their_schedules(lab: Lab) -> None:
    lab.apply(view("a", 60.0), view("b", 100.0), view("by_hand", None))
    materializer = lab.make()

    async with running(materializer):
        await asyncio.sleep(215.5)

    assert [at for name, at in lab.runs if name == "a"] == [0, 60, 120, 180]
    assert [at for name, at in lab.runs if name == "b"] == [0, 100, 200]
    assert {name for name, _ in lab.runs} == {"a", "b"}
    assert lab.told() == ["Materialized", "Materialized"]


async def test_a_view_that_takes_longer_than_its_period_runs_once_at_a_time(lab: Lab) -> None:
    lab.apply(view("a", 10.0))
    lab.takes_s = 25.0

    async with running(lab.make()):
        await asyncio.sleep(80.5)

    assert lab.most_at_once == 1
    assert [at for _, at in lab.runs] == [0, 25, 50, 75]


async def test_not_all_views_run_at_once(lab: Lab) -> None:
    lab.apply(*(view(f"v{i}", 1000.0) for i in range(5)))

    async with running(lab.make()):
        await asyncio.sleep(30.0)

    assert lab.most_at_once == 2
    assert len(lab.runs) == 5


async def test_progress_is_in_the_status(lab: Lab) -> None:
    lab.apply(view("a"))
    materializer = lab.make()

    async with running(materializer):
        await asyncio.sleep(2.0)
        (during,) = materializer.statuses()
        await asyncio.sleep(5.0)
        (after,) = materializer.statuses()

    assert (during.state, during.done, during.of) == ("running", 1, 2)
    assert (after.state, after.written, after.newest_at) == ("waiting", 2, START)
    assert 'headrace_feature_view_rows_total{view="a"} 2' in exposed(materializer.families())


async def test_failures_are_told_once_and_tried_again_ever_later(lab: Lab) -> None:
    lab.apply(view("a", 60.0))
    lab.takes_s, lab.fails = 0.0, InvalidArgumentError("no such file")
    materializer = lab.make()

    async with running(materializer):
        await asyncio.sleep(200.5)
        failing = materializer.statuses()[0]
        lab.fails = InvalidArgumentError("half a file")
        await asyncio.sleep(200.0)
        lab.fails = None
        await asyncio.sleep(400.0)

    times = [at for _, at in lab.runs]
    gaps = [b - a for a, b in itertools.pairwise(times)]
    assert gaps[:6] == [2, 4, 8, 16, 32, 64]
    assert (failing.state, failing.failures, failing.message) == ("failing", 7, "no such file")
    assert lab.told() == ["MaterializeFailed", "MaterializeFailed", "MaterializeRecovered"]
    assert "'a' cannot be materialized: no such file" in lab.events[0].message
    assert lab.events[2].data["failures"] >= 8
    assert gaps[-1] == 60  # as before


async def test_a_bug_of_one_view_is_its_failure_and_no_more(lab: Lab) -> None:
    lab.apply(view("a"), view("b"))
    lab.fails = OSError("no descriptors")
    materializer = lab.make()

    async with running(materializer):
        await asyncio.sleep(6.0)
        messages = [one.message for one in materializer.statuses()]

    assert messages == ["OSError: no descriptors"] * 2


async def test_what_is_applied_later_counts_without_a_restart(lab: Lab) -> None:
    materializer = lab.make()

    async with running(materializer):
        await asyncio.sleep(10.5)
        lab.apply(view("a", 1000.0))
        await asyncio.sleep(50.0)
        lab.apply(view("a", 1000.0, path="/other"))
        await asyncio.sleep(50.0)
        (lab.folder / "definitions.json").unlink()
        await asyncio.sleep(2000.0)

    assert lab.runs == [("a", 11), ("a", 61)]
    assert materializer.statuses() == ()


async def test_definitions_that_cannot_be_read_leave_those_before_in_force(lab: Lab) -> None:
    lab.apply(view("a", 60.0))
    materializer = lab.make()

    async with running(materializer):
        await asyncio.sleep(10.0)
        lab.cannot_read = FailedPreconditionError("damaged")
        lab.apply()
        await asyncio.sleep(60.0)
        problem = materializer.problem
        lab.cannot_read = None
        lab.apply(view("b", 60.0))
        await asyncio.sleep(5.0)

    assert [name for name, _ in lab.runs] == ["a", "a", "b"]
    assert (problem, materializer.problem) == ("damaged", "")


async def test_a_restart_goes_on_where_it_was(lab: Lab) -> None:
    lab.apply(view("a", 100.0))
    async with running(lab.make()):
        await asyncio.sleep(10.0)
    again = lab.make()

    async with running(again):
        await asyncio.sleep(150.0)

    assert [at for _, at in lab.runs] == [0, 100]
    assert lab.told() == ["Materialized"]
    assert again.statuses()[0].written == 2


async def test_a_run_that_is_under_way_when_all_ends_is_ended_and_made_again(lab: Lab) -> None:
    lab.apply(view("a", 100.0))
    async with running(lab.make()):
        await asyncio.sleep(2.0)

    async with running(lab.make()):
        await asyncio.sleep(10.0)

    assert lab.cancelled == 1
    assert len(lab.runs) == 2


@pytest.mark.parametrize("content", [b"", b"{", b'[{"view": 3}]'])
async def test_a_damaged_memory_costs_a_run(lab: Lab, content: bytes) -> None:
    (lab.folder / "features" / "materialized.json").write_bytes(content)
    lab.apply(view("a", 100.0))

    async with running(lab.make()):
        await asyncio.sleep(10.0)

    assert lab.runs == [("a", 0)]


async def test_neither_a_full_disk_nor_a_lost_event_stops_runs(lab: Lab) -> None:
    (lab.folder / "features").rmdir()
    (lab.folder / "features").write_text("a file")
    lab.cannot_emit = FailedPreconditionError("database is full")
    lab.apply(view("a", 50.0))

    async with running(lab.make()):
        await asyncio.sleep(105.0)

    assert [at for _, at in lab.runs] == [0, 50, 100]
