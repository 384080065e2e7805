"""An A/B test with real callers: each stays on one version, and what answers earn decides."""

import sqlite3
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.control.system import System
from tests.e2e.rollouts.callers import Call, Callers
from tests.e2e.rollouts.model_files import write_version
from tests.e2e.rollouts.rollout import ONLY_ERRORS, Json, Rollout, callers, canary, endpoint, metric

pytestmark = [pytest.mark.e2e, pytest.mark.long]

STICKY = {"header": "x-user-id"}
USERS = 800


@contextmanager
def rewarding(system: System, load: Callers, earns: dict[str, float]) -> Iterator[list[Json]]:
    """Tell what answers earned: by version, in which share of the calls it is 1 and not 0.

    Feedback comes late, in batches, every tenth of it twice.
    """
    stop = threading.Event()
    results: list[Json] = []

    def run() -> None:
        told = 0
        while not stop.is_set():
            calls = load.calls[told : told + 900]
            told += len(calls)
            batch = [_reward(call, earns) for call in calls if call.version]
            batch += batch[::10]
            if batch:
                status, answer = system.post("/api/v1/feedback", batch)
                assert status == 200, answer
                results.extend(answer["results"])
            stop.wait(0.3)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield results
    finally:
        stop.set()
        thread.join()


def _reward(call: Call, earns: dict[str, float]) -> Json:
    return {"request_id": call.request_id, "reward": float(call.score < earns[call.version])}


def experiment(
    system: System, first: Path, second: Path, earns: dict[str, float]
) -> tuple[Json, Callers, list[Json]]:
    """An A/B test's end, its callers, and what became of their feedback."""
    system.start(endpoint(first, sticky=STICKY))
    system.wait_ready()
    rollout = Rollout(system)
    reward = {"margin": 0.0, "min_units": 100}
    how = {
        "strategy": "ab",
        "warmup_s": 0.5,
        "min_samples": 100,
        "metrics": {**ONLY_ERRORS, "errors": None, "reward": reward},
    }
    with callers(system, rate=300, users=USERS).flowing() as load:
        rollout.start(second, how)
        with rewarding(system, load, earns) as results:
            over = rollout.wait_over(25)
        time.sleep(0.5)
    return over, load, results


def test_the_version_that_earns_more_is_promoted(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py")

    over, load, results = experiment(system, first, second, {"1": 0.3, "2": 0.7})

    assert over["phase"] == "promoted", over
    reward = metric(over, "reward")
    assert reward["baseline"] == pytest.approx(0.3, abs=0.1)
    assert reward["candidate"] == pytest.approx(0.7, abs=0.1)
    assert min(reward["samples"]) >= 100
    assert load.failed == []
    outcomes = [result["outcome"] for result in results]
    assert outcomes.count("duplicate") >= 10
    seen: dict[str, list[str]] = defaultdict(list)
    for call in load.calls:
        seen[call.user].append(call.version)
    # Everybody ends on the new version, and nobody is moved before the test is over.
    assert all(versions == sorted(versions) for versions in seen.values())


def test_absurd_stored_reward_harms_neither_its_own_rollout_nor_another(
    system: System, first: Path, tmp_path: Path
) -> None:
    """A version that took any number stored 1e308; the door refuses it now."""
    second = write_version(tmp_path / "second" / "model.py")
    system.start(endpoint(first, sticky=STICKY), endpoint(first, name="other"))
    system.wait_ready()
    rollout, other = Rollout(system), Rollout(system, "other")
    how = {
        "strategy": "ab",
        "warmup_s": 0.5,
        "min_samples": 100,
        "metrics": {**ONLY_ERRORS, "errors": None, "reward": {"min_units": 20}},
    }
    with callers(system, rate=200, users=USERS).flowing() as load:
        rollout.start(second, how)
        rollout.wait_weight(50)
        with rewarding(system, load, {"1": 0.5, "2": 0.5}):
            judged = rollout.wait_for(lambda status: bool(_reward_samples(status)))
            refused, _ = system.post("/api/v1/feedback", {"request_id": "call-1", "reward": 1e308})
            with sqlite3.connect(system.home / "state.db", timeout=10.0) as database:
                database.execute(
                    "UPDATE unit_rewards SET total = 1e308 WHERE unit = "
                    "(SELECT min(unit) FROM unit_rewards)"
                )
            left_out = rollout.wait_for(
                lambda status: "1 units left out" in status["verdict"]["explanation"]
            )
            with callers(system, rate=100, name="other").flowing():
                other.start(second, canary({"weight": 50, "pause_s": 0.5}, metrics=ONLY_ERRORS))
                promoted = other.wait_over()
        status, aborted = rollout.tell("abort")

    assert refused == 400
    assert not judged["over"]
    assert not left_out["problem"]
    assert promoted["phase"] == "promoted"
    assert system.status()["faults"] == []
    assert (status, aborted["phase"]) == (200, "aborted")
    assert load.failed == []


def _reward_samples(status: Json) -> int:
    metrics = status["verdict"]["metrics"] if status["verdict"] else []
    return min((min(one["samples"]) for one in metrics if one["metric"] == "reward"), default=0)


def test_the_version_that_earns_less_is_rolled_back(
    system: System, first: Path, tmp_path: Path
) -> None:
    second = write_version(tmp_path / "second" / "model.py")

    over, load, _ = experiment(system, first, second, {"1": 0.7, "2": 0.3})

    assert over["phase"] == "rolled_back", over
    assert over["reason"].startswith("reward: ")
    assert load.failed == []
    assert load.calls[-1].version == "1"
