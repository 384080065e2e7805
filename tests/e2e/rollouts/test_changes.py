"""What else happens while a version is rolled out: applies, undo, deaths, silence."""

import os
import signal
import time
from pathlib import Path

import pytest

from tests.e2e.control.system import System
from tests.e2e.rollouts.callers import wait_until
from tests.e2e.rollouts.model_files import write_version
from tests.e2e.rollouts.rollout import (
    ONLY_ERRORS,
    Json,
    Rollout,
    callers,
    canary,
    endpoint,
    metric,
)

pytestmark = pytest.mark.e2e

HELD: Json = {"weight": 20, "pause_s": 600}


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return write_version(tmp_path / "second" / "model.py")


def applied(system: System, *endpoints: Json) -> None:
    status, answer = system.post("/api/v1/apply", {"version": 1, "endpoints": list(endpoints)})
    assert status == 200, answer


@pytest.mark.long
def test_an_applied_version_is_rolled_out_as_the_spec_says_and_a_newer_one_takes_its_place(
    system: System, first: Path, second: Path, tmp_path: Path
) -> None:
    third = write_version(tmp_path / "third" / "model.py")
    how = canary(HELD, metrics=ONLY_ERRORS)
    system.start(endpoint(first, rollout=how))
    system.wait_ready()
    rollout = Rollout(system)

    with callers(system, rate=200).flowing() as load:
        applied(system, endpoint(second, rollout=how))
        rollout.wait_weight(20)
        applied(system, endpoint(third, rollout=how))
        newer = rollout.wait_weight(20)
        time.sleep(1)
        rollout.tell("promote")
        rollout.wait_phase("promoted")
        wait_until(lambda: load.calls[-1].version == "3", 5)

    assert newer["id"] == "r2"
    assert (newer["from_version"], newer["to_version"]) == ("1", "3")
    older = system.get("/api/v1/rollouts/r1")
    assert older["phase"] == "superseded"
    assert load.failed == []


@pytest.mark.long
def test_an_apply_that_waits_returns_when_the_new_version_is_ready(
    system: System, first: Path, second: Path
) -> None:
    how = canary(HELD, metrics=ONLY_ERRORS)
    system.start(endpoint(first, rollout=how))
    system.wait_ready()
    document = {"version": 1, "endpoints": [endpoint(second, rollout=how)]}
    code, ready = system.post("/api/v1/apply?wait_s=60", document)
    phase = Rollout(system).status()["phase"]
    again = system.post("/api/v1/apply", document)[1]

    assert (code, ready["ready"], phase) == (200, True, "progressing")
    assert ready["changes"] == ["endpoint 'm': starts a canary from version 1 to 2 (m:2)"]
    assert again["changes"] == []


@pytest.mark.long
def test_undo_takes_a_version_back_in_the_middle_of_its_rollout(
    system: System, first: Path, second: Path
) -> None:
    how = canary(HELD, metrics=ONLY_ERRORS)
    system.start(endpoint(first, rollout=how))
    system.wait_ready()
    rollout = Rollout(system)

    with callers(system, rate=200).flowing() as load:
        applied(system, endpoint(second, rollout=how))
        rollout.wait_weight(20)
        time.sleep(0.5)
        asked_at = time.monotonic()
        status, answer = system.post("/api/v1/endpoints/m/undo", {})
        assert status == 200, answer
        time.sleep(1.5)

    assert load.failed == []
    assert max(call.sent_at for call in load.answered_by("2")) - asked_at < 1.0
    assert system.get("/api/v1/rollouts/r1")["phase"] == "superseded"


@pytest.mark.long
def test_a_version_that_nobody_calls_is_not_promoted(
    system: System, first: Path, second: Path
) -> None:
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)

    judged: Json = {"weight": 50, "until": "verdict"}
    rollout.start(second, canary(judged, max_duration_s=2.0, metrics=ONLY_ERRORS))
    paused = rollout.wait_for(lambda status: status["phase"] == "paused")
    rollout.tell("rollback")
    over = rollout.wait_over()

    # Nobody called, so the version is not to blame, and an operator decides.
    assert paused["weight"] == 50
    assert paused["reason"].startswith("not enough evidence within 2 s")
    assert over["phase"] == "rolled_back"


@pytest.mark.long
def test_a_version_that_refuses_what_callers_send_is_rolled_back(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py")
    second.write_text(second.read_text().replace("[-1, 2]", "[-1, 3]"))
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)
    metrics = {**ONLY_ERRORS, "errors": None, "rejections": {"margin": 0.01}}

    with callers(system, rate=200).flowing() as load:
        judged: Json = {"weight": 20, "until": "verdict"}
        rollout.start(second, canary(judged, metrics=metrics))
        over = rollout.wait_over()

    assert over["phase"] == "rolled_back"
    assert metric(over, "rejections")["candidate"] == 1.0
    assert {call.status for call in load.failed} == {400}


@pytest.mark.long
def test_a_fresh_baseline_is_what_the_new_version_is_compared_with(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py", fails_below=0.1)
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)

    with callers(system, rate=300).flowing() as load:
        judged: Json = {"weight": 30, "until": "verdict"}
        rollout.start(second, canary(judged, baseline=True, metrics=ONLY_ERRORS))
        over = rollout.wait_over()

    assert over["phase"] == "rolled_back"
    baseline, candidate = metric(over, "errors")["samples"]
    assert 0.6 < candidate / baseline < 1.7
    assert [call for call in load.failed if call.chance >= 0.1] == []


@pytest.mark.long
def test_a_rollout_outlives_the_gateway(system: System, first: Path, second: Path) -> None:
    system.start(endpoint(first))
    gateway = system.wait_ready()["gateway"]["pid"]
    rollout = Rollout(system)
    judged: Json = {"weight": 50, "until": "verdict"}
    metrics = {**ONLY_ERRORS, "errors": {"margin": 0.03}}

    rollout.start(second, canary(judged, metrics=metrics))
    rollout.wait_weight(50)
    os.kill(gateway, signal.SIGKILL)
    system.wait_for(lambda status: status["gateway"]["pid"] not in {None, gateway})
    system.wait_ready()
    with callers(system, rate=300).flowing() as load:
        over = rollout.wait_over()

    assert over["phase"] == "promoted"
    assert load.failed == []


@pytest.mark.long
def test_a_candidate_that_keeps_dying_is_rolled_back(
    system: System, first: Path, second: Path
) -> None:
    dies = "os._exit(1) if 0.71 < float(inputs['x'][0, 0]) < 0.75 else None"
    text = second.read_text().replace("chance, score", f"{dies}\n        chance, score")
    second.write_text(f"import os\n{text}")
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)

    with callers(system, rate=200).flowing() as load:
        rollout.start(second, canary(HELD, metrics=ONLY_ERRORS))
        over = rollout.wait_over(40)
        decided_at = time.monotonic()
        time.sleep(1)

    assert over["phase"] == "rolled_back"
    assert over["reason"].startswith("the new version cannot run: "), over
    assert load.answered_by("2"), "it was ready once"
    assert {call.version for call in load.calls if call.sent_at > decided_at + 0.2} == {"1"}
