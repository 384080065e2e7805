"""Replicas that die are counted with the requests that fail with them, and condemn a version."""

import os
import signal
from pathlib import Path

import pytest

from tests.e2e.control.system import System
from tests.e2e.rollouts.callers import Call, Callers
from tests.e2e.rollouts.model_files import write_version
from tests.e2e.rollouts.rollout import Json, Rollout, callers, canary, endpoint

pytestmark = [pytest.mark.e2e, pytest.mark.long]
HALF = {"weight": 50, "until": "verdict"}
METRICS: Json = {"rejections": None, "latency": None, "predictions": None}


def crashing(
    system: System, first: Path, second: Path, *, rate: float, within_s: float
) -> tuple[Json, Callers]:
    """A rollout of a version that dies again and again, and its callers."""
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)
    with callers(system, rate=rate).flowing() as load:
        rollout.start(second, canary(HALF, metrics=METRICS, max_duration_s=within_s))
        over = rollout.wait_over(within_s)
    return over, load


def failed_in(load: Callers) -> list[Call]:
    return [call for call in load.calls if call.status != 200]


@pytest.mark.parametrize("takes_s", [0.0, 0.1])
def test_version_that_dies_each_60_requests_is_rolled_back_with_its_deaths_and_failures(
    system: System, first: Path, tmp_path: Path, takes_s: float
) -> None:
    second = write_version(tmp_path / "second" / "model.py", dies_after=60, takes_s=takes_s)

    over, load = crashing(system, first, second, rate=18, within_s=180)

    assert over["phase"] == "rolled_back", over
    died = [event for event in Rollout(system).events() if event["reason"] == "Died"]
    deaths, failed = over["counted"]["candidate_deaths"], over["counted"]["candidate_failed"]
    assert deaths == len(died) >= 2
    assert all("exit status 137" in event["message"] for event in died)
    assert failed == pytest.approx(len(failed_in(load)), rel=0.1, abs=1)
    assert f"crashes: {deaths} replica deaths of version 2" in over["reason"]
    assert f"{failed} of " in over["reason"]


def test_versions_that_die_alike_are_not_rolled_back_for_it(system: System, tmp_path: Path) -> None:
    """Each some 75 s apart, so that neither counts as one that does not stay up."""
    first = write_version(tmp_path / "first" / "model.py", dies_after=100)
    second = write_version(tmp_path / "second" / "model.py", dies_after=100)
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)
    how = canary(HALF, metrics={**METRICS, "errors": {"margin": 0.5}}, min_samples=10_000)
    with callers(system, rate=2.6).flowing():
        rollout.start(second, how)
        after = rollout.wait_for(
            lambda status: (
                status["over"]
                or min(
                    status["counted"].get(f"{arm}_deaths", 0) for arm in ("baseline", "candidate")
                )
                >= 2
            ),
            400,
        )

    assert not after["over"], after


def test_death_while_no_control_plane_watches_is_counted_once_when_it_is_found(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py")
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)
    with callers(system, rate=50).flowing():
        rollout.start(second, canary({"weight": 50, "pause_s": 600.0}, metrics=METRICS))
        rollout.wait_for(lambda status: status["counted"].get("candidate_requests", 0) > 50)
        (candidate,) = (
            replica["pid"]
            for revision in system.status()["endpoints"][0]["revisions"]
            for replica in revision["replicas"]
            if revision["version"] == "2"
        )
        system.kill_control()
        os.kill(candidate, signal.SIGKILL)
        for _ in range(3):
            system.start()
            rollout.wait_for(lambda status: status["counted"].get("candidate_deaths") == 1, 30)
            system.kill_control()
        system.start()
        after = rollout.wait_for(lambda status: bool(status["counted"].get("candidate_requests")))

    died = [event for event in rollout.events() if event["reason"] == "Died"]
    assert after["counted"]["candidate_deaths"] == 1
    assert after["counted"]["baseline_deaths"] == 0
    assert len(died) == 1
    assert died[0]["message"].endswith("died: ended while no control plane watched")
