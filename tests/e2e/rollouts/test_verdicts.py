"""Real requests through Envoy to real versions: Headrace itself decides, and says why."""

import time
from pathlib import Path

import pytest

from tests.e2e.control.system import System
from tests.e2e.rollouts.callers import Call, Callers, wait_until
from tests.e2e.rollouts.model_files import write_version
from tests.e2e.rollouts.rollout import (
    ONLY_ERRORS,
    ONLY_LATENCY,
    ONLY_PREDICTIONS,
    Json,
    Rollout,
    callers,
    canary,
    endpoint,
    metric,
)

pytestmark = pytest.mark.e2e

HALF = {"weight": 50, "until": "verdict"}


def failed_without_cause(calls: list[Call], *, fails_below: float = 0.0) -> list[Call]:
    """Requests that failed though no version had a reason to fail them."""
    return [call for call in calls if call.status != 200 and call.chance >= fails_below]


def answered_soon_after(load: Callers) -> set[str]:
    """Which versions answer once the gateway had a fifth of a second to follow a decision."""
    decided_at = time.monotonic()
    wait_until(lambda: load.calls[-1].sent_at > decided_at + 0.7, 5)
    return {call.version for call in load.calls if call.sent_at > decided_at + 0.2}


def rolled_back(status: Json, by: str) -> Json:
    """What the metric says that rolled `status` back."""
    assert status["phase"] == "rolled_back", status
    found = metric(status, by)
    assert found["outcome"] == "roll_back"
    assert found["low"] > 0
    assert status["reason"] == found["reason"]
    assert status["verdict"]["outcome"] == "roll_back"
    assert status["verdict"]["explanation"].startswith(found["reason"])
    assert found["samples"][1] > 0
    return found


def test_a_version_that_fails_5_percent_is_rolled_back(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py", fails_below=0.05)
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)

    with callers(system, rate=300).flowing() as load:
        rollout.start(second, canary(HALF, metrics={**ONLY_ERRORS, "errors": {"margin": 0.01}}))
        over = rollout.wait_over()
        versions = answered_soon_after(load)

    errors = rolled_back(over, "errors")
    assert errors["baseline"] == 0.0
    assert 0.02 < errors["candidate"] < 0.1
    assert errors["margin"] == 0.01
    assert "requests failed on version 2 against 0 %" in errors["reason"]
    assert failed_without_cause(load.calls, fails_below=0.05) == []
    assert load.failed, "the bad version has failed some"
    assert versions == {"1"}
    event = rollout.events()[-1]
    assert event["reason"] == "RolledBack"
    assert event["data"]["verdict"]["metrics"][0]["metric"] == "errors"


@pytest.mark.long
def test_a_version_whose_p99_is_3_times_as_long_is_rolled_back(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py", tail_s=0.06)
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)
    latency = {"quantile": 0.99, "margin_ratio": 1.25}

    with callers(system, rate=300).flowing() as load:
        rollout.start(second, canary(HALF, metrics={**ONLY_LATENCY, "latency": latency}))
        over = rollout.wait_over()
        versions = answered_soon_after(load)

    assert versions == {"1"}
    found = rolled_back(over, "latency")
    assert found["low"] > 1.0
    assert 0.015 < found["baseline"] < 0.05 < found["candidate"] < 0.2
    assert "latency: p99 is" in found["reason"]
    assert load.failed == []


@pytest.mark.long
def test_a_version_that_answers_other_classes_is_rolled_back(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py", yes_below=0.6)
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)

    with callers(system, rate=300).flowing() as load:
        predictions = {"margin": 0.1}
        how = canary(HALF, metrics={**ONLY_PREDICTIONS, "predictions": predictions})
        rollout.start(second, how)
        over = rollout.wait_over()
        versions = answered_soon_after(load)

    assert versions == {"1"}
    found = rolled_back(over, "predictions")
    assert found["low"] > 0.1
    assert found["effect"] == pytest.approx(0.3, abs=0.15)
    assert load.failed == []


def test_a_good_version_is_promoted(system: System, first: Path, tmp_path: Path) -> None:
    second = write_version(tmp_path / "second" / "model.py")
    system.start(endpoint(first, replicas=2))
    system.wait_ready()
    rollout = Rollout(system)
    metrics = {
        "errors": {"margin": 0.03},
        "rejections": {"margin": 0.03},
        "latency": {"quantile": 0.9, "margin_ratio": 5.0},
        "predictions": {"margin": 0.2},
    }

    with callers(system, rate=400).flowing() as load:
        rollout.start(second, canary({"weight": 20, "until": "verdict"}, HALF, metrics=metrics))
        over = rollout.wait_over(30)

    assert over["phase"] == "promoted", over
    assert over["reason"].startswith("step 2 of 2 (50 % of the requests) passed: errors")
    assert {m["outcome"] for m in over["verdict"]["metrics"]} == {"promote"}
    assert load.failed == []
    assert load.calls[-1].version == "2"
    weights = [
        event["data"]["weights"]["candidate"]
        for event in rollout.events()
        if event["reason"] == "Weight"
    ]
    assert weights == [20, 50, 100]


def test_a_version_that_cannot_be_loaded_is_rolled_back_before_its_first_request(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py", breaks=True)
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)

    with callers(system, rate=200).flowing() as load:
        rollout.start(second, canary(HALF))
        over = rollout.wait_over()

    assert over["phase"] == "rolled_back"
    assert "the weights are of another model" in over["reason"]
    assert load.failed == []
    assert {call.version for call in load.calls} == {"1"}


@pytest.mark.long
def test_a_switch_is_taken_back_by_a_fixed_threshold(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py", fails_below=0.2)
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)
    how = {
        "strategy": "blue-green",
        "warmup_s": 0.5,
        "keep_s": 600,
        "metrics": {**ONLY_ERRORS, "errors": {"max_ratio": 0.02}},
    }

    with callers(system, rate=300).flowing() as load:
        rollout.start(second, how)
        rollout.wait_phase("keeping")
        over = rollout.wait_over()
        versions = answered_soon_after(load)

    errors = rolled_back(over, "errors")
    assert errors["margin"] == 0.02
    assert errors["candidate"] > 0.1
    assert failed_without_cause(load.calls, fails_below=0.2) == []
    assert versions == {"1"}


@pytest.mark.long
def test_a_version_that_fails_from_its_300th_row_on_is_switched_back_by_default(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py", good_rows=300)
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)

    with callers(system, rate=60).flowing() as load:
        started = rollout.start(second, {"strategy": "blue-green"})
        rollout.wait_phase("keeping")
        over = rollout.wait_over(60.0)
        versions = answered_soon_after(load)

    errors = rolled_back(over, "errors")
    assert errors["margin"] == 0.05
    assert "more than 5 % of its requests fail" in started["notes"][0]
    assert 0 < len(load.failed) < 60 * 30
    assert versions == {"1"}


@pytest.mark.long
def test_too_few_requests_pause_a_canary_which_said_so_before(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py")
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)

    with callers(system, rate=4).flowing() as load:
        time.sleep(6.0)
        step = {"weight": 50, "until": "verdict"}
        started = rollout.start(second, canary(step, max_duration_s=8.0, metrics=ONLY_ERRORS))
        over = rollout.wait_phase("paused", 60.0)

    assert started["outlook"]["suffices"] is False
    assert 2.0 < started["outlook"]["requests_per_s"] < 6.0
    assert started["notes"][0].endswith("raise it, the new version's share or the margins")
    assert over["weight"] == 50
    assert "max_duration_s is 8 s: raise it" in over["reason"]
    assert load.failed == []


@pytest.mark.long
def test_a_shadow_that_agrees_ends_with_a_report(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py")

    over = shadowed(system, first, second)

    assert over["phase"] == "reported", over
    assert metric(over, "disagreement")["high"] <= 0.05


@pytest.mark.long
def test_a_shadow_that_disagrees_is_rolled_back_and_seen_by_nobody(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py", yes_below=0.5, fails_below=0.1)

    over = shadowed(system, first, second)

    assert over["phase"] == "rolled_back", over
    assert metric(over, "disagreement")["low"] > 0.05


@pytest.mark.long
def test_a_shadow_is_compared_by_the_output_that_counts(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py", shifted=0.1)

    over = shadowed(system, first, second, output="label")

    assert over["phase"] == "reported", over
    assert metric(over, "disagreement")["high"] <= 0.05


@pytest.mark.long
def test_a_shadow_that_agrees_is_not_rolled_back_by_callers_who_all_send_one_id(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py")

    over = shadowed(system, first, second, request_id="job-1")

    assert over["phase"] == "reported", over
    assert metric(over, "disagreement")["candidate"] == 0.0


@pytest.mark.long
@pytest.mark.parametrize("other_at", [64, 199, 4999])
def test_a_shadow_that_differs_in_one_of_6000_values_is_rolled_back(
    system: System, tmp_path: Path, other_at: int
) -> None:
    first = write_version(tmp_path / "first" / "model.py", wide=6000)
    second = write_version(tmp_path / "second" / "model.py", wide=6000, other_at=other_at)

    over = shadowed(system, first, second, request_id="job-1")

    assert over["phase"] == "rolled_back", over
    assert metric(over, "disagreement")["candidate"] == 1.0


def shadowed(
    system: System, first: Path, second: Path, *, output: str = "", request_id: str = ""
) -> Json:
    """A shadow's end; its callers saw the first version only."""
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)
    metrics = {**ONLY_ERRORS, "errors": None, "disagreement": {"max_ratio": 0.05, "output": output}}
    how = {"strategy": "shadow", "warmup_s": 0.5, "min_samples": 100, "metrics": metrics}

    with callers(system, rate=200, request_id=request_id).flowing() as load:
        rollout.start(second, how)
        over = rollout.wait_over()

    assert load.failed == []
    assert {call.version for call in load.calls} == {"1"}
    return over
