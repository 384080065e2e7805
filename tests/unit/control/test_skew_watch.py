"""What was served is looked at in time, and told once."""

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from headrace.control.features.skew_watch import SkewWatch, compare_served, skew_event
from headrace.control.model.records import Event
from headrace.core import FeatureWatch, UnavailableError
from headrace.features.skew_process import SkewedFeature, SkewSummary
from headrace.testing import LoopClock, VirtualTimeLoop
from tests.metrics import exposed

pytestmark = pytest.mark.anyio
START = 1764000000.0


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, object]]:
    return ("asyncio", {"loop_factory": VirtualTimeLoop})


@dataclass
class Lab:
    """Services that are watched, and what a comparison of them finds."""

    watches: dict[str, FeatureWatch] = field(default_factory=dict)
    finds: dict[str, SkewSummary] = field(default_factory=dict)
    fails: Exception | None = None
    asked: list[tuple[str, float]] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)

    async def compare(self, service: str) -> SkewSummary:
        self.asked.append((service, asyncio.get_running_loop().time()))
        if self.fails is not None:
            raise self.fails
        return self.finds.get(service, SkewSummary(service=service, rows=0))

    async def emit(self, events: Sequence[Event]) -> None:
        self.events += events

    @asynccontextmanager
    async def running(self) -> AsyncIterator[SkewWatch]:
        watch = SkewWatch(
            watches=lambda: self.watches,
            compare=self.compare,
            emit=self.emit,
            clock=LoopClock(START),
        )
        task = asyncio.ensure_future(watch.run())
        try:
            yield watch
        finally:
            task.cancel()


def every(seconds: float, service: str = "fraud") -> FeatureWatch:
    return FeatureWatch(service=service, skew_every_s=seconds)


def skewed(*features: str, rows: int = 100) -> SkewSummary:
    return SkewSummary(
        service="fraud",
        rows=rows,
        skewed=tuple(
            SkewedFeature(feature=name, view="v", differing=7, rows=rows, causes={"OTHER_VALUE": 7})
            for name in features
        ),
    )


async def test_each_service_is_compared_after_its_time_once_for_all_endpoints() -> None:
    lab = Lab(watches={"a": every(60), "b": every(90), "c": every(200, "people")})
    async with lab.running():
        await asyncio.sleep(305)
    times = [round(at) for service, at in lab.asked if service == "fraud"]
    assert times == [60, 121, 182, 243, 304]
    assert [round(at) for service, at in lab.asked if service == "people"] == [200]


async def test_what_differs_is_told_once_and_when_it_is_over() -> None:
    lab = Lab(watches={"a": every(10)}, finds={"fraud": skewed("age")})
    async with lab.running() as watch:
        await asyncio.sleep(35)
        assert [event.reason for event in lab.events] == ["FeatureSkew"]
        assert "age in 7 of 100 rows (OTHER_VALUE 7)" in lab.events[0].message
        assert 'service="fraud",feature="age"} 0.07' in exposed(watch.families())
        (status,) = watch.statuses()
        assert (status.service, status.rows) == ("fraud", 100)
        lab.finds["fraud"] = skewed("age", "spend")
        await asyncio.sleep(12)
        lab.finds["fraud"] = skewed()
        await asyncio.sleep(12)
    reasons = [event.reason for event in lab.events]
    assert reasons == ["FeatureSkew", "FeatureSkew", "FeatureSkewEnded"]


async def test_a_comparison_that_fails_says_why_and_is_tried_again() -> None:
    lab = Lab(watches={"a": every(10)}, fails=UnavailableError("no process"))
    async with lab.running() as watch:
        await asyncio.sleep(12)
        (status,) = watch.statuses()
        assert status.message == "no process"
        lab.fails = ValueError("odd")
        await asyncio.sleep(12)
        assert watch.statuses()[0].message == "ValueError"
        lab.fails, lab.finds = None, {"fraud": skewed("age")}
        await asyncio.sleep(12)
    assert [event.reason for event in lab.events] == ["FeatureSkew"]


async def test_what_nobody_watches_any_more_is_forgotten() -> None:
    lab = Lab(watches={"a": every(10)}, finds={"fraud": skewed("age")})
    async with lab.running() as watch:
        await asyncio.sleep(12)
        assert exposed(watch.families())
        lab.watches = {}
        await asyncio.sleep(2)
        assert not exposed(watch.families())
        assert watch.statuses() == ()


def test_no_rows_tell_nothing() -> None:
    before, nothing = skewed("age"), SkewSummary(service="fraud", rows=0)
    assert skew_event(before, nothing, timestamp=0.0) is None
    assert (
        skew_event(None, SkewSummary(service="fraud", rows=0, message="no"), timestamp=0.0) is None
    )


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_home_without_features_says_so(tmp_path: Path) -> None:
    found = await compare_served("fraud", home=tmp_path, log=tmp_path / "log")
    assert "has no features" in found.message


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_comparison_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(UnavailableError, match="exceeded"):
        await compare_served(
            "fraud", home=tmp_path, log=tmp_path / "log", timeout_s=0.2, command=sleeps
        )


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_process_that_crashes_is_told_with_its_status(tmp_path: Path) -> None:
    crashes = [sys.executable, "-c", "import os; os.abort()"]
    with pytest.raises(UnavailableError, match="exited with status"):
        await compare_served("fraud", home=tmp_path, log=tmp_path / "log", command=crashes)
