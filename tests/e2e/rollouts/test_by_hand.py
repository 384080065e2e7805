"""Rollouts that people lead: verbs over the API, sticky ramps, switches, and who keeps serving."""

import math
import time
from pathlib import Path

import pytest

from tests.e2e.control.system import System
from tests.e2e.rollouts.callers import wait_until
from tests.e2e.rollouts.model_files import write_version
from tests.e2e.rollouts.rollout import (
    ONLY_ERRORS,
    Capacity,
    Rollout,
    RouteFile,
    callers,
    canary,
    endpoint,
)

pytestmark = pytest.mark.e2e

STICKY = {"header": "x-user-id"}


@pytest.fixture
def second(tmp_path: Path) -> Path:
    return write_version(tmp_path / "second" / "model.py")


@pytest.mark.long
def test_nobody_who_saw_the_new_version_is_moved_back_by_a_ramp(
    system: System, first: Path, second: Path
) -> None:
    system.start(endpoint(first, sticky=STICKY))
    system.wait_ready()
    rollout = Rollout(system)
    steps = [{"weight": weight, "until": "approval"} for weight in (10, 50)]

    with callers(system, rate=300, users=300).flowing() as load:
        rollout.start(second, canary(*steps, metrics=ONLY_ERRORS))
        rollout.wait_phase("paused")
        ramp_at = time.monotonic()
        time.sleep(1.5)
        rollout.tell("resume")
        rollout.wait_for(lambda status: status["weight"] == 50 and status["phase"] == "paused")
        time.sleep(1.5)
        rollout.tell("promote")
        rollout.wait_phase("promoted")
        time.sleep(1.2)

    moved_back = set()
    at_ten = set()
    new: set[str] = set()
    for call in sorted(load.calls, key=lambda call: call.sent_at):
        if call.version == "2":
            new.add(call.user)
            if call.sent_at < ramp_at + 1.5:
                at_ten.add(call.user)
        elif call.user in new:
            moved_back.add(call.user)
    assert load.failed == []
    assert moved_back == set()
    assert 10 <= len(at_ten) <= 60  # 30 of 300 users, give or take 5 standard deviations
    assert len(new) == 300


@pytest.mark.long
def test_two_experiments_on_one_key_are_independent(
    system: System, first: Path, second: Path
) -> None:
    names = ("m", "n")
    system.start(*(endpoint(first, name=name, sticky=STICKY) for name in names))
    system.wait_ready()
    for name in names:
        half = canary({"weight": 50, "until": "approval"}, metrics=ONLY_ERRORS)
        Rollout(system, name).start(second, half)
    for name in names:
        Rollout(system, name).wait_phase("paused")

    seen: dict[str, dict[str, str]] = {}
    for name in names:
        with callers(system, rate=300, name=name, users=400).flowing() as load:
            wait_until(lambda load=load: len(load.calls) >= 450, 10)  # type: ignore[misc]  # bound now
        assert load.failed == []
        seen[name] = {call.user: call.version for call in load.calls}

    both = sum(seen["m"][user] == seen["n"][user] == "2" for user in seen["m"])
    assert 60 <= both <= 140  # a quarter of 400 users, give or take 4.6 standard deviations


@pytest.mark.long
def test_verbs_do_what_they_say_and_refuse_what_means_nothing(
    system: System, first: Path, second: Path
) -> None:
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)
    assert rollout.tell("promote")[0] == 404

    rollout.start(second, canary({"weight": 20, "pause_s": 600}, metrics=ONLY_ERRORS))
    rollout.wait_weight(20)
    assert rollout.tell("pause", "lunch")[1]["reason"] == "paused by hand: lunch (admin)"
    status, refusal = rollout.tell("pause")
    assert status == 409
    assert "possible now: promote, resume, abort, rollback" in refusal["detail"]
    assert rollout.tell("resume")[1]["phase"] == "progressing"
    aborted = rollout.tell("abort", "wrong file")[1]
    assert (aborted["phase"], aborted["weight"]) == ("aborted", 0)
    status, refusal = rollout.tell("resume")
    assert status == 409
    assert "it is over" in refusal["detail"]

    reasons = [event["reason"] for event in rollout.events()]
    assert reasons.count("Paused") == 1
    assert reasons[-1] == "Aborted"


@pytest.mark.long
def test_a_promoted_version_can_be_rolled_back(system: System, first: Path, second: Path) -> None:
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)

    with callers(system, rate=200).flowing() as load:
        rollout.start(second, canary({"weight": 20, "pause_s": 600}, metrics=ONLY_ERRORS))
        rollout.wait_weight(20)
        rollout.tell("promote", "it fixes the outage")
        promoted = rollout.wait_phase("promoted")
        wait_until(lambda: load.calls[-1].version == "2", 5)
        system.wait_for(lambda status: len(status["endpoints"][0]["revisions"]) == 1)
        rollout.tell("rollback", "it does not")
        wait_until(lambda: {call.version for call in load.calls[-20:]} == {"1"}, 10)

    assert promoted["reason"] == "promoted by hand: it fixes the outage (admin)"
    assert load.failed == []
    assert rollout.status()["phase"] == "rolled_back"


def test_blue_green_switches_at_once_and_back_in_under_a_second(
    system: System, first: Path, second: Path
) -> None:
    system.start(endpoint(first, replicas=2))
    system.wait_ready()
    rollout = Rollout(system)
    how = {"strategy": "blue-green", "approval": True, "keep_s": 600, "metrics": ONLY_ERRORS}

    with callers(system, rate=300).flowing() as load:
        rollout.start(second, how)
        rollout.wait_phase("paused")
        path = f"{system.where().http_url}/v2/models/m/versions/2/infer"
        row = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 0.1]}
        preview = system.call("POST", path, {"inputs": [row]})
        during_preview = {call.version for call in load.calls}
        rollout.tell("promote")
        rollout.wait_phase("keeping")
        wait_until(lambda: {call.version for call in load.calls[-20:]} == {"2"}, 5)
        asked_at = time.monotonic()
        rollout.tell("rollback", "the old one, please")
        wait_until(lambda: load.calls[-1].version == "1", 5)
        time.sleep(1)

    assert preview[0] == 200, preview
    assert preview[1]["model_version"] == "2"
    assert during_preview == {"1"}
    assert load.failed == []
    last_on_new = max(call.sent_at for call in load.calls if call.version == "2")
    assert last_on_new - asked_at < 1.0
    assert rollout.status()["phase"] == "rolled_back"


@pytest.mark.long
def test_weights_sum_to_100_at_every_moment(system: System, first: Path, second: Path) -> None:
    system.start(endpoint(first, replicas=2))
    system.wait_ready()
    rollout = Rollout(system)
    steps = [{"weight": weight, "pause_s": 0.2} for weight in (1, 10, 33, 50)]

    with RouteFile(system.home).watched() as routes, callers(system, rate=300).flowing() as load:
        rollout.start(second, canary(*steps, baseline=True, metrics=ONLY_ERRORS))
        rollout.wait_over()

    assert load.failed == []
    assert set(routes.sums) == {100}
    shares = routes.shares("2")
    assert shares == sorted(shares)
    assert {1, 10, 33, 50} <= set(shares)
    assert shares == routes.shares("1~baseline")


@pytest.mark.long
def test_capacity_is_never_below_what_a_weight_needs(
    system: System, first: Path, second: Path
) -> None:
    copies = 3
    system.start(endpoint(first, replicas=copies))
    system.wait_ready()
    rollout = Rollout(system)
    steps = [{"weight": 30, "pause_s": 0.3}, {"weight": 60, "pause_s": 0.3}]

    with Capacity(system).watched() as capacity, callers(system, rate=200).flowing() as load:
        rollout.start(second, canary(*steps, metrics=ONLY_ERRORS))
        rollout.wait_phase("promoted")
        system.wait_for(lambda status: len(status["endpoints"][0]["revisions"]) == 1)
        rollout.tell("rollback")
        wait_until(lambda: {call.version for call in load.calls[-20:]} == {"1"}, 10)

    short = [
        look
        for look in capacity.looks
        for weight, ready in look.values()
        if ready < math.ceil(copies * weight / 100)
    ]
    assert short == []
    assert {look["2"][0] for look in capacity.looks if "2" in look} >= {0, 30, 60, 100}
    whole = [look for look in capacity.looks if "1" in look and look.get("2", (0, 0))[0] < 100]
    assert all(look["1"][1] == copies for look in whole)
    assert load.failed == []
