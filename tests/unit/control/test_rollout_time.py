"""Durations of rollouts: set clocks and restarted control planes neither end nor promote one."""

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.control.auth.roles import SYSTEM
from headrace.control.base.home import Home
from headrace.registry import Registry
from headrace.rollout.state import RolloutPhase
from tests.unit.control.conftest import inspect
from tests.unit.control.played import Plane, World

pytestmark = pytest.mark.anyio

JUDGED = {
    "strategy": "canary",
    "steps": [{"weight": 50, "pause_s": 600.0, "until": "verdict"}],
    "max_duration_s": 1200.0,
    "metrics": {"predictions": None, "rejections": None},
}
TIMED: list[dict[str, Any]] = [
    JUDGED,
    {**JUDGED, "on_timeout": "promote", "max_duration_s": 40.0},
    {**JUDGED, "steps": [{"weight": 20, "pause_s": 20.0, "until": "verdict"}]},
    {**JUDGED, "steps": [{"weight": 20, "pause_s": 10.0}, {"weight": 60, "pause_s": 15.0}]},
    {"strategy": "blue-green", "preview_s": 10.0, "keep_s": 20.0},
]


def new_world(root: Path) -> World:
    home = Home.at(root / "home")
    registry = Registry(home.root, inspect)
    for number in (1, 2):
        path = root / f"{number}.onnx"
        path.write_bytes(b"model %d" % number)
        registry.push("digits", path)
    return World(home, registry)


async def started(world: World, rollout: dict[str, Any]) -> Plane:
    plane = world.boot()
    entry = {"name": "digits", "model": "digits:1"}
    await plane.desired_state.apply({"endpoints": [entry]}, caller=SYSTEM)
    plane.settle()
    await plane.desired_state.start_rollout("digits", version="2", rollout=rollout, caller=SYSTEM)
    return plane


@pytest.mark.parametrize("jump_s", [7200.0, -7200.0])
@pytest.mark.parametrize("on_timeout", ["rollback", "promote"])
async def test_a_clock_that_is_set_neither_ends_nor_promotes_a_rollout(
    tmp_path: Path, jump_s: float, on_timeout: str
) -> None:
    world = new_world(tmp_path)
    endless = {"max_duration_s": 100.0, "min_samples": 1_000_000, "on_timeout": on_timeout}
    plane = await started(world, {**JUDGED, **endless})
    for second in range(60):
        if second in {20, 40}:
            world.clock.jumped_s += jump_s
        await plane.second(10)

    state = plane.record.state
    assert (state.phase, state.traffic.candidate) == (RolloutPhase.PROGRESSING, 50), state.reason
    for _ in range(30):
        await plane.second(10)
    assert plane.record.state.phase is RolloutPhase.PROGRESSING
    for _ in range(20):
        await plane.second(10)
    assert plane.record.state.phase is not RolloutPhase.PROGRESSING  # its own time is over


async def test_a_control_plane_that_stood_still_counts_it_no_more_than_being_away(
    tmp_path: Path,
) -> None:
    world = new_world(tmp_path)
    plane = await started(world, {**JUDGED, "max_duration_s": 100.0})
    for _ in range(20):
        await plane.second(10)
    world.clock.time += 86_400.0
    for _ in range(20):
        await plane.second(10)

    assert plane.record.state.phase is RolloutPhase.PROGRESSING
    assert plane.record.state.elapsed_s < 60.0


class Disturbance(NamedTuple):
    """What happens before a second: the wall clock is set, the control plane dies for a while."""

    second: int
    jump_s: float
    away_s: float | None


seconds = st.integers(0, 79)
jumps = st.builds(
    Disturbance,
    second=seconds,
    jump_s=st.sampled_from([7200.0, -7200.0, 1e9, -0.5]) | st.floats(-1e5, 1e5),
    away_s=st.none(),
)
deaths = st.builds(
    Disturbance, second=seconds, jump_s=st.just(0.0), away_s=st.sampled_from([0.0, 30.0, 1e5])
)


async def moves(plan: dict[str, Any], disturbances: list[Disturbance]) -> list[tuple[object, ...]]:
    """What a rollout is after each of 80 seconds that a control plane looked at it."""
    with tempfile.TemporaryDirectory() as root:
        world = new_world(Path(root))
        plane = await started(world, plan)
        seen: list[tuple[object, ...]] = []
        for second in range(80):
            for disturbance in disturbances:
                if disturbance.second != second:
                    continue
                world.clock.jumped_s += disturbance.jump_s
                if disturbance.away_s is not None:
                    world.clock.time += disturbance.away_s
                    plane = plane.kill()
            await plane.second()
            state = plane.record.state
            seen.append((state.phase, state.step, state.traffic, state.reason))
        plane.store.close()
        return seen


@settings(max_examples=6, deadline=None)
@given(
    st.sampled_from(TIMED), st.lists(jumps, min_size=1, max_size=4), st.lists(deaths, max_size=2)
)
async def test_moves_are_the_same_however_the_wall_clock_is_set(
    plan: dict[str, Any], jumped: list[Disturbance], died: list[Disturbance]
) -> None:
    assert await moves(plan, [*jumped, *died]) == await moves(plan, died)


@settings(max_examples=6, deadline=None)
@given(st.sampled_from(TIMED[3:]), st.lists(deaths, max_size=3))
async def test_time_without_a_control_plane_does_not_count(
    plan: dict[str, Any], died: list[Disturbance]
) -> None:
    """A control plane loses a second that was not stored yet, and looks at the gateway again."""
    undisturbed, disturbed = await moves(plan, []), await moves(plan, died)
    order = list(dict.fromkeys(undisturbed))
    lag = 3 * len(died)
    for second, state in enumerate(disturbed):
        assert order.index(state) <= order.index(undisturbed[second])
        assert order.index(state) >= order.index(undisturbed[max(second - lag, 0)])
