"""Two control planes over one database, their clocks apart, crashing: each moment runs once."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.control.jobs.plan import Attempt, after_attempt
from headrace.control.jobs.scheduler import LEASE_S, Planner
from headrace.control.model.desired import DesiredState
from headrace.control.model.job_runs import JobRun, RunState
from headrace.control.state import home_url, open_store
from headrace.control.state.store import Store

pytestmark = pytest.mark.slow
START = 1_795_759_200.0
SKEW_S = 45.0
JOB = {
    "name": "j",
    "model": "/m.onnx",
    "input": "/in.parquet",
    "output": "/out/{run_id}",
    "schedule": {"cron": "* * * * *", "overlap": "allow", "catch_up": "all"},
}


@dataclass
class Plane:
    """A control plane whose clocks are its own; `runs` are under way in its processes."""

    name: str
    store: Store
    skew_s: float
    life: int = 0
    is_up: bool = True
    runs: dict[str, JobRun] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.planner = self._planner()

    def _planner(self) -> Planner:
        return Planner(store=self.store, owner=f"{self.name}/{self.life}", home=self.name)

    def crash(self) -> None:
        self.is_up, self.runs = False, {}

    def come_back(self) -> None:
        if not self.is_up:
            self.life, self.is_up = self.life + 1, True
            self.planner = self._planner()


@dataclass
class World:
    """`begun`: how often each run was begun anew. `now`: the true time."""

    planes: tuple[Plane, Plane]
    store: Store
    now: float = START
    under_way: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)

    def step(self, plane: Plane) -> None:
        if not plane.is_up:
            return
        step = asyncio.run(
            plane.planner.step(
                now=self.now + plane.skew_s,
                monotonic=self.now * 1.0 + 7 * plane.life,
                own=frozenset(plane.runs),
            )
        )
        for run in step.begun:
            state = run.state
            begun = msgspec.structs.replace(
                run, state=RunState.RUNNING, tries=run.tries + (state is RunState.WAITING)
            )
            saved = self.store.jobs.save.blocking(begun)
            assert saved is not None
            plane.runs[run.id] = saved

    def beat(self, plane: Plane) -> None:
        """Signs of life; what belongs to another by now is ended."""
        told = {id_: self.store.jobs.save.blocking(run) for id_, run in plane.runs.items()}
        plane.runs = {id_: run for id_, run in told.items() if run is not None}

    def finish(self, plane: Plane) -> None:
        for id_, run in list(plane.runs.items()):
            after = after_attempt(run, Attempt(ok=True), now=self.now + plane.skew_s)
            if self.store.jobs.save.blocking(after) is not None:
                self.ended.append(id_)
            del plane.runs[id_]


@contextmanager
def world(skew_s: float) -> Iterator[World]:
    memory = Path("/dev/shm")  # noqa: S108  # a private folder in it; nothing here survives anyway
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        store = open_store(home_url(Path(folder)))
        spec = {"version": 1, "jobs": [JOB]}
        store.save.blocking(DesiredState(generation=1, spec=spec), timestamp=1.0, reason="applied")
        planes = (Plane("a", store, 0.0), Plane("b", store, skew_s))
        yield World(planes=planes, store=store)
        store.close()


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["step", "step", "beat", "finish", "crash", "back", "wait", "wait"]),
        st.integers(0, 1),
        st.sampled_from([1.0, 5.0, 25.0, 61.0]),
    ),
    max_size=40,
)


@settings(max_examples=20, deadline=None)
@given(skew_s=st.floats(-SKEW_S, SKEW_S), actions=ACTIONS, survivor=st.integers(0, 1))
def test_each_moment_is_run_to_its_end_once_while_one_of_two_lives(
    skew_s: float, actions: list[tuple[str, int, float]], survivor: int
) -> None:
    with world(skew_s) as two:
        for plane in two.planes:
            two.step(plane)
        since = two.store.jobs.look.blocking().marks["j"].since
        for action, which, seconds in actions:
            plane = two.planes[which]
            match action:
                case "step":
                    two.step(plane)
                case "beat":
                    two.beat(plane)
                case "finish":
                    two.finish(plane)
                case "crash":
                    plane.crash()
                case "back":
                    plane.come_back()
                case _:
                    two.now += seconds
        until = two.now

        # From here on only one of them lives, and does what it should.
        two.planes[1 - survivor].crash()
        left = two.planes[survivor]
        left.come_back()
        for _ in range(60):
            two.now += LEASE_S / 4
            two.step(left)
            two.beat(left)
            two.finish(left)

        moments = [run.moment for run in two.store.jobs.runs.blocking("j", limit=1000)]
        due = [m for m in (START + 60 * i for i in range(-2, 60)) if since < m <= until - SKEW_S]
        assert len(moments) == len(set(moments)), "a moment has two runs"
        assert set(due) <= set(moments), "a moment was left out"
        assert len(two.ended) == len(set(two.ended)), "a run ended twice"
        succeeded = [
            r.id for r in two.store.jobs.runs.blocking("j", limit=1000) if r.ended is not None
        ]
        assert sorted(succeeded) == sorted(two.ended)


def test_a_run_is_taken_over_only_when_its_owner_gave_no_sign_for_a_lease() -> None:
    with world(30.0) as two:
        one, other = two.planes
        two.step(one)
        two.now += 60
        two.step(one)
        (id_,) = one.runs
        for _ in range(20):
            two.now += LEASE_S / 2
            two.beat(one)
            two.step(other)
            assert id_ not in other.runs
            two.finish(other)
        one.crash()
        two.now += LEASE_S / 2
        two.step(other)
        assert id_ not in other.runs
        two.finish(other)

        two.now += LEASE_S
        two.step(other)

        taken = two.store.jobs.run.blocking(id_)
        assert taken is not None
        assert (taken.owner, taken.fence, taken.tries) == ("b/0", 2, 1)


def test_who_comes_back_to_its_home_goes_on_at_once() -> None:
    with world(0.0) as two:
        one, _ = two.planes
        two.step(one)
        two.now += 60
        two.step(one)
        (id_,) = one.runs
        one.crash()
        one.come_back()

        two.step(one)

        assert list(one.runs) == [id_]
        assert one.runs[id_].owner == "a/1"


def test_without_jobs_only_the_generation_is_asked_for_until_a_spec_brings_some() -> None:
    with TemporaryDirectory() as folder:
        store = open_store(home_url(Path(folder)))
        looks: list[float] = []
        planner = Planner(store=CountingStore(store, looks), owner="a/0", home="a")  # type: ignore[arg-type]  # a store, with another `jobs`

        def step(at_s: float) -> int:
            asyncio.run(planner.step(now=START + at_s, monotonic=at_s, own=frozenset()))
            return len(looks)

        assert [step(at_s) for at_s in (0.0, 1.0, 29.0)] == [1, 1, 1]
        assert step(31.0) == 2
        spec = {"version": 1, "jobs": [JOB]}
        store.save.blocking(DesiredState(generation=1, spec=spec), timestamp=1.0, reason="applied")
        assert step(32.0) > 2
        assert "j" in asyncio.run(planner.read()).jobs
        store.close()


@dataclass
class CountingStore:
    """A store that counts whole looks at its jobs."""

    store: Store
    looks: list[float]

    @property
    def jobs(self) -> "CountingStore":
        return self

    async def look(self) -> object:
        self.looks.append(0.0)
        return await self.store.jobs.look()

    def __getattr__(self, name: str) -> object:
        return getattr(self.store.jobs if hasattr(self.store.jobs, name) else self.store, name)
