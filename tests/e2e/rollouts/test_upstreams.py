"""A version that is somebody else's server is rolled out and judged as ours is."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.control.system import System
from tests.e2e.replicas import Replica, running
from tests.e2e.rollouts.callers import wait_until
from tests.e2e.rollouts.model_files import write_version
from tests.e2e.rollouts.rollout import ONLY_ERRORS, Json, Rollout, callers, canary, endpoint, metric

pytestmark = [pytest.mark.e2e, pytest.mark.long]

JUDGED: Json = {"weight": 50, "until": "verdict"}


@pytest.fixture
def failing(tmp_path: Path) -> Iterator[Replica]:
    model = write_version(tmp_path / "theirs" / "model.py", fails_below=0.1)
    with running(tmp_path, model, model_version="7") as replica:
        yield replica


@pytest.fixture
def good(tmp_path: Path) -> Iterator[Replica]:
    model = write_version(tmp_path / "theirs" / "model.py")
    with running(tmp_path, model, model_version="7") as replica:
        yield replica


def started(rollout: Rollout, server: Replica, how: Json) -> None:
    wanted = {"upstream": {"url": server.url, "model": "m"}, "version": "7", "rollout": how}
    status, answer = rollout.system.post(f"/api/v1/endpoints/{rollout.name}/rollout", wanted)
    assert status == 201, answer


def test_a_foreign_server_that_fails_is_rolled_back(
    system: System, first: Path, failing: Replica
) -> None:
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)

    with callers(system, rate=200).flowing() as load:
        started(rollout, failing, canary(JUDGED, metrics=ONLY_ERRORS))
        over = rollout.wait_over()

    assert over["phase"] == "rolled_back", over
    assert 0.05 < metric(over, "errors")["candidate"] < 0.2
    assert [call for call in load.failed if call.chance >= 0.1] == []


def test_a_good_foreign_server_takes_over(system: System, first: Path, good: Replica) -> None:
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)
    metrics = {**ONLY_ERRORS, "errors": {"margin": 0.05}}

    with callers(system, rate=200).flowing() as load:
        started(rollout, good, canary(JUDGED, metrics=metrics))
        over = rollout.wait_over()
        wait_until(lambda: {call.version for call in load.calls[-20:]} == {"7"}, 5)

    assert over["phase"] == "promoted", over
    assert over["to_version"] == "7"
    assert load.failed == []
