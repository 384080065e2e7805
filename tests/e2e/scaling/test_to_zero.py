"""An endpoint that nobody asks runs nothing; the first request after that waits for its replica."""

import json
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.control.system import System, replicas
from tests.e2e.scaling.conftest import DOCUMENT, RUN_S, load_on, write_model

pytestmark = pytest.mark.e2e

SLEEPY = {
    "min_replicas": 0,
    "max_replicas": 2,
    "idle_s": 2.0,
    "stable_window_s": 2.0,
    "panic_window_s": 1.0,
    "scale_down_delay_s": 2.0,
}


def sleepy(path: Path, **more: Any) -> dict[str, Any]:
    return {"name": "slow", "model": str(path), "autoscale": {**SLEEPY, **more}}


def ask(system: System) -> tuple[int, str | None, float]:
    """Status, `Retry-After` and seconds of one request."""
    url = f"{system.where().http_url}/v2/models/slow/infer"
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps(DOCUMENT).encode(), headers)  # noqa: S310  # loopback
    began = time.monotonic()
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310  # as above
            status, retry = answer.status, answer.headers["retry-after"]
            assert json.load(answer)["outputs"][0]["data"] == [1.0]
    except urllib.error.HTTPError as error:
        with error:
            status, retry = error.code, error.headers["retry-after"]
    return status, retry, time.monotonic() - began


def sleeps(status: Any) -> bool:
    return not replicas(status, "slow")


def test_the_first_request_wakes_a_sleeper_and_is_answered(
    system: System, slow_model: Path
) -> None:
    system.start(sleepy(slow_model))
    system.wait_ready()
    system.wait_for(sleeps, 30.0)
    assert system.status()["ready"], "an endpoint asleep is as it should be"

    status, _, took_s = ask(system)

    assert status == 200
    assert RUN_S < took_s < 20.0
    again, _, took_again_s = ask(system)
    assert again == 200
    assert took_again_s < took_s
    system.wait_for(sleeps, 30.0)
    found = system.get("/api/v1/events?endpoint=slow")
    reasons = [event["reason"] for event in found["events"] if event["kind"] == "scale"]
    assert reasons == ["Idle", "Woken", "Idle"]


@pytest.mark.long
def test_a_request_waits_for_so_long_and_no_longer(system: System, tmp_path: Path) -> None:
    path = write_model(tmp_path / "slow" / "model.py", load_s=6.0)
    system.start(sleepy(path, hold_s=1.0))
    system.wait_ready()
    system.wait_for(sleeps, 30.0)

    status, retry_after, took_s = ask(system)

    assert status == 503
    assert retry_after is not None
    assert int(retry_after) >= 1
    assert 0.9 < took_s < 4.0
    system.wait_for(lambda now: any(r["state"] == "ready" for r in replicas(now, "slow")), 30.0)
    assert ask(system)[0] == 200, "the start went on"


@pytest.mark.long
def test_more_requests_than_may_wait_are_refused(system: System, tmp_path: Path) -> None:
    path = write_model(tmp_path / "slow" / "model.py", load_s=3.0)
    system.start(sleepy(path, hold_s=30.0, max_held=2))
    system.wait_ready()
    system.wait_for(sleeps, 30.0)

    answers: list[tuple[int, str | None, float]] = []
    callers = [threading.Thread(target=lambda: answers.append(ask(system))) for _ in range(5)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(60.0)

    statuses = sorted(status for status, _, _ in answers)
    assert statuses == [200, 200, 429, 429, 429]
    assert all(retry for status, retry, _ in answers if status == 429)


@pytest.mark.long
def test_requests_that_come_as_it_falls_asleep_are_answered(
    system: System, slow_model: Path
) -> None:
    system.start(sleepy(slow_model))
    system.wait_ready()

    outcomes = []
    for pause_s in (2.0, 2.4, 2.8, 3.2, 3.6, 4.0):
        outcomes.append(ask(system)[0])
        time.sleep(pause_s)

    assert outcomes == [200] * 6


@pytest.mark.long
def test_a_burst_on_a_sleeper_loses_nothing(system: System, slow_model: Path) -> None:
    system.start(sleepy(slow_model, max_held=1000))
    system.wait_ready()
    system.wait_for(sleeps, 30.0)

    with load_on(system, rate=15.0).flowing() as load:
        system.wait_for(lambda now: any(r["state"] == "ready" for r in replicas(now, "slow")), 30)
        time.sleep(5.0)

    assert load.failures == 0
    assert load.sent >= 75
    system.wait_for(sleeps, 40.0)
