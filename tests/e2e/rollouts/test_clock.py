"""A wall clock that is set under a control plane: libfaketime sets it for that process alone."""

import time
from pathlib import Path

import pytest

from tests.e2e.control.system import System
from tests.e2e.rollouts.model_files import write_version
from tests.e2e.rollouts.rollout import ONLY_ERRORS, Rollout, callers, canary, endpoint

pytestmark = [pytest.mark.e2e, pytest.mark.long]

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


@pytest.mark.skipif(LIBRARY is None, reason="needs libfaketime (apt install faketime)")
def test_a_jump_of_the_wall_clock_neither_promotes_nor_ends_a_rollout(
    system: System, first: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = write_version(tmp_path / "second" / "model.py")
    offset = tmp_path / "offset"
    offset.write_text("+0")
    system.start(endpoint(first))
    system.wait_ready()
    rollout = Rollout(system)
    step = {"weight": 50, "pause_s": 600.0, "until": "verdict"}
    settings = {"max_duration_s": 1200.0, "on_timeout": "promote", "metrics": ONLY_ERRORS}
    rollout.start(second, canary(step, **settings))
    rollout.wait_weight(50)

    with callers(system, rate=40).flowing() as load:
        system.kill_control()
        # Replicas cannot start with this library, so it comes after they have.
        with monkeypatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(LIBRARY))
            patch.setenv("FAKETIME_TIMESTAMP_FILE", str(offset))
            patch.setenv("FAKETIME_CACHE_DURATION", "1")
            patch.setenv("FAKETIME_DONT_FAKE_MONOTONIC", "1")
            system.start()
        rollout.wait_for(lambda status: status["verdict"] is not None, 60.0)
        for jump in ("+2h", "-2h", "+2h", "+0"):
            offset.write_text(jump)
            hours = {"+": 2, "-": -2}[jump[0]] if jump != "+0" else 0
            deadline = time.monotonic() + 60.0
            while abs(clock(rollout) - time.time() - 3600 * hours) > 60.0:  # noqa: TID251  # it is set
                assert time.monotonic() < deadline, system.log_text()[-3000:]
                time.sleep(0.5)
            time.sleep(2.0)
            status = rollout.status()
            assert (status["phase"], status["weight"]) == ("progressing", 50), status["reason"]

    assert load.failed == []


def clock(rollout: Rollout) -> float:
    """The control plane's wall clock when it judged last."""
    return float(rollout.status()["verdict"]["at"])
