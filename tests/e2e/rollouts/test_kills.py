"""A control plane is killed in the middle of rollouts: traffic flows, and the next one goes on."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path

import msgspec
import pytest

from tests.e2e.control.system import System
from tests.e2e.rollouts.callers import Callers
from tests.e2e.rollouts.model_files import write_version
from tests.e2e.rollouts.rollout import (
    ONLY_ERRORS,
    Json,
    Rollout,
    RouteFile,
    callers,
    canary,
    endpoint,
)

pytestmark = [pytest.mark.e2e, pytest.mark.long]

STEPS: list[Json] = [
    {"weight": 10, "pause_s": 1.0},
    {"weight": 50, "until": "approval"},
]


def test_a_rollout_goes_on_at_the_step_where_it_was(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py", load_s=1.5)
    system.start(endpoint(first, replicas=2))
    system.wait_ready()
    rollout = Rollout(system)
    moments: dict[str, Callable[[Json], bool]] = {
        "while replicas start": lambda status: status["phase"] == "preparing",
        "at the first weight": lambda status: status["weight"] == 10,
        "while more replicas start": lambda status: status["step"] == 1,
        "while it waits for approval": lambda status: status["phase"] == "paused",
    }

    with RouteFile(system.home).watched() as routes, callers(system, rate=200).flowing() as load:
        rollout.start(second, canary(*STEPS, metrics=ONLY_ERRORS))
        for moment, is_there in moments.items():
            before = rollout.wait_for(is_there)
            killed_and_started_again(system)
            after = rollout.wait_for(lambda status: bool(status["id"]))
            assert after["id"] == before["id"], moment
            assert after["began"] == before["began"], moment
            assert (after["step"], after["weight"]) >= (before["step"], before["weight"]), moment
            assert after["step"] <= before["step"] + 1, moment
        rollout.tell("resume")
        killed_and_started_again(system)
        rollout.wait_phase("promoted")
        killed_and_started_again(system)
        after = rollout.wait_for(lambda status: bool(status["id"]))
        system.wait_ready()
        time.sleep(0.5)

    assert after["phase"] == "promoted"
    assert {call.version for call in load.calls[-50:]} == {"2"}
    assert load.failed == []
    assert set(routes.sums) == {100}
    assert routes.shares("2") == sorted(routes.shares("2"))
    assert {10, 50} <= set(routes.shares("2"))


def test_a_control_plane_that_dies_again_and_again_still_brings_a_rollout_to_its_end(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py")
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)
    steps = [{"weight": weight, "pause_s": 0.3} for weight in (5, 20, 40, 60, 80)]

    with RouteFile(system.home).watched() as routes, callers(system, rate=200).flowing() as load:
        rollout.start(second, canary(*steps, metrics=ONLY_ERRORS))
        for alive_s in lives():
            killed_and_started_again(system)
            rollout.wait_for(lambda status: bool(status["id"]))
            time.sleep(alive_s)
            if rollout.status()["over"]:
                break
        promoted = rollout.wait_over()
        time.sleep(0.5)

    assert promoted["phase"] == "promoted"
    assert promoted["id"] == "r1"
    assert load.failed == []
    assert set(routes.sums) == {100}
    assert routes.shares("2") == sorted(routes.shares("2"))
    assert {5, 20, 40, 60, 80} <= set(routes.shares("2"))
    weights = [
        event["message"].split(" from ")[1]
        for event in rollout.events()
        if event["reason"] == "Weight"
    ]
    assert weights == [
        "0 to 5 %",
        "5 to 20 %",
        "20 to 40 %",
        "40 to 60 %",
        "60 to 80 %",
        "80 to 100 %",
    ]


def test_a_control_plane_that_dies_at_every_move_still_brings_a_rollout_to_its_end(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py")
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)
    steps: list[Json] = [{"weight": 20}, {"weight": 60}]

    with RouteFile(system.home).watched() as routes, callers(system, rate=200).flowing() as load:
        rollout.start(second, canary(*steps, metrics=ONLY_ERRORS))
        system.kill_control()
        deaths = 0
        for point in cycle(["after:1", "before:2"]):
            assert deaths < 40
            start_mortal(system, point)
            if not died(system, rollout):
                break
            deaths += 1
        time.sleep(0.5)

    assert rollout.status()["phase"] == "promoted"
    assert rollout.status()["id"] == "r1"
    assert deaths >= 5  # two moves for each of three weights, the last of which may be survived
    assert load.failed == []
    assert set(routes.sums) == {100}
    assert routes.shares("2") == sorted(routes.shares("2"))
    assert {20, 60} <= set(routes.shares("2"))
    assert {call.version for call in load.calls[-50:]} == {"2"}


def test_a_bad_version_is_rolled_back_by_the_next_control_plane(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py", fails_below=0.1)
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)

    with callers(system, rate=200).flowing() as load:
        judged: Json = {"weight": 50, "until": "verdict"}
        rollout.start(second, canary(judged, metrics=ONLY_ERRORS))
        rollout.wait_weight(50)
        killed_and_started_again(system)
        over = rollout.wait_over()

    assert over["phase"] == "rolled_back"
    assert over["reason"].startswith("errors: ")
    assert [call for call in load.failed if call.chance >= 0.1] == []


@pytest.mark.parametrize("point", ["before:1", "after:1"])
def test_a_control_plane_that_dies_while_a_rollout_is_asked_for_begins_it_or_does_not(
    system: System, first: Path, tmp_path: Path, point: str
) -> None:
    second = write_version(tmp_path / "second" / "model.py")
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)
    how = canary({"weight": 20, "pause_s": 600}, metrics=ONLY_ERRORS)

    with callers(system, rate=200).flowing() as load:
        system.kill_control()
        start_mortal(system, point)
        system.wait_ready()
        with pytest.raises(OSError, match=r"closed|reset"):
            rollout.start(second, how)
        assert system.process is not None
        assert system.process.wait(10) == -signal.SIGKILL
        system.start()
        after = system.wait_ready()
        versions = {revision["version"] for revision in after["endpoints"][0]["revisions"]}
        if point == "before:1":
            assert versions == {"1"}
            rollout.start(second, how)
        began = rollout.wait_weight(20)

    assert began["id"] == "r1"
    assert load.failed == []


def test_callers_of_an_ab_test_count_once_however_often_the_control_plane_dies(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py")
    system.start(endpoint(first, sticky={"header": "x-user-id"}))
    system.wait_ready()
    rollout = Rollout(system)
    how: Json = {
        "strategy": "ab",
        "warmup_s": 0.5,
        "min_samples": 1_000_000,
        "metrics": {**ONLY_ERRORS, "reward": {"min_units": 1_000_000}},
    }

    with callers(system, rate=200, users=600).flowing() as load:
        rollout.start(second, how)
        rollout.wait_weight(50)
        for _ in range(3):
            time.sleep(2.0)
            killed_and_started_again(system)
            rollout.wait_for(lambda status: bool(status["id"]))
        rollout.wait_for(
            lambda status: units_in(status) == (600 - on_second(load), on_second(load))
        )
    killed_and_started_again(system)
    rollout.wait_for(lambda status: bool(status["id"]))
    time.sleep(3.0)
    after = rollout.status()

    assert units_in(after) == (600 - on_second(load), on_second(load))
    assert "of 600 units" in after["verdict"]["explanation"]
    assert "as planned" in after["verdict"]["explanation"]
    assert load.failed == []


def on_second(load: Callers) -> int:
    """How many users are on version 2."""
    return len({call.user for call in load.calls if call.version == "2"})


def units_in(status: Json) -> tuple[int, int]:
    counted = status["counted"]
    return counted.get("baseline_units", 0), counted.get("candidate_units", 0)


def start_mortal(system: System, point: str) -> None:
    """Start a control plane that dies at `point`; see `mortal`."""
    settings = system.home.parent / "mortal.json"
    settings.write_bytes(msgspec.json.encode(system.settings()))
    root = Path(__file__).resolve().parents[3]
    with system.log.open("ab") as log:
        system.process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.rollouts.mortal", "--settings", str(settings)],
            stderr=log,
            cwd=root,
            env={**os.environ, "HEADRACE_TEST_DIES": point},
        )


def died(system: System, rollout: Rollout) -> bool:
    """Whether the control plane died; it lives on where the rollout is over."""
    deadline = time.monotonic() + 15
    while time.monotonic() < deadline:
        assert system.process is not None
        if system.process.poll() is not None:
            return True
        with contextlib.suppress(OSError, AssertionError):
            if rollout.status()["over"]:
                return False
        time.sleep(0.05)
    raise AssertionError(system.log_text())


def lives() -> Iterator[float]:
    """How long each control plane lives: other moments of its work are hit each time."""
    for number in range(12):
        yield 0.05 + 0.6180339887 * number % 0.9


def killed_and_started_again(system: System) -> None:
    system.kill_control()
    time.sleep(0.2)
    system.start()
