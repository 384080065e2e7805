"""Jobs of the spec under a real control plane, which is killed, and under two of them."""

import json
import os
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import polars as pl
import pytest

from headrace.testing import models
from tests.contract.postgres import PASSWORD, NoPostgresError, running_postgres
from tests.e2e.control.system import System
from tests.e2e.jobs.commands import HEADRACE, digests, rows_of

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

ROWS = 60
T = TypeVar("T")


def wait_for(look: Callable[[], T | None], timeout_s: float = 90.0) -> T:
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < deadline, "waited for too long"
        time.sleep(0.2)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Rows in groups of five, and a model that takes a fifth of a second for each row."""
    values = np.arange(2 * ROWS, dtype=np.float32).reshape(ROWS, 2)
    table = pl.DataFrame({"id": range(ROWS), "a": values[:, 0], "b": values[:, 1]})
    table.write_parquet(tmp_path / "in.parquet", row_group_size=5)
    slow = tmp_path / "slow"
    slow.mkdir()
    (slow / "model.py").write_text(models.python_double(delay_s=0.2))
    return tmp_path


def job(data: Path, **changes: Any) -> dict[str, Any]:  # any field
    plain = {
        "name": "j",
        "model": str(data / "slow"),
        "input": str(data / "in.parquet"),
        "output": str(data / "out" / "{run_id}"),
        "columns": {"x": ["a", "b"]},
        "keys": ["id"],
        "chunk_rows": 1,
        "shard_rows": 5,
        "workers": 1,
        "allow_code": True,
    }
    return {"version": 1, "endpoints": [], "jobs": [plain | changes]}


def run_of(system: System, id_: str) -> Any:  # JSON
    return system.get(f"/api/v1/jobs/j/runs/{id_}")


def begin(system: System) -> str:
    code, run = system.post("/api/v1/jobs/j/run")
    assert code == 201, run
    return str(run["id"])


@pytest.mark.long
def test_a_run_whose_control_plane_is_killed_goes_on_under_the_next_one(
    system: System, data: Path
) -> None:
    system.start(spec=job(data))
    system.wait_ready()
    undisturbed = begin(system)
    done = wait_for(lambda: over(run_of(system, undisturbed)))
    assert (done["state"], done["rows"], done["tries"]) == ("succeeded", ROWS, 1), done
    id_ = begin(system)
    wait_for(lambda: run_of(system, id_)["shards_done"] >= 1)
    system.kill_control()
    wait_for(lambda: not any(id_.encode() in line for line in command_lines()))
    assert not (data / "out" / id_ / "_SUCCESS").exists()

    system.start()
    system.wait_ready()
    again = wait_for(lambda: over(run_of(system, id_)))

    assert (again["state"], again["rows"], again["errors"]) == ("succeeded", ROWS, 0), again
    assert again["tries"] == 1
    summary = json.loads((data / "out" / id_ / "_SUCCESS").read_text())
    assert summary["skipped"] >= 1
    whole, resumed = data / "out" / undisturbed, data / "out" / id_
    assert digests(resumed) == digests(whole)
    assert rows_of(resumed)["id"].to_list() == list(range(ROWS))


@pytest.mark.long
def test_a_run_is_cancelled_and_a_stop_of_the_control_plane_only_interrupts(
    system: System, data: Path
) -> None:
    system.start(spec=job(data))
    system.wait_ready()
    id_ = begin(system)
    wait_for(lambda: run_of(system, id_)["shards_done"] >= 1)
    code, ended = system.post("/api/v1/jobs/j/cancel", {})
    assert (code, [one["id"] for one in ended["runs"]]) == (200, [id_])
    cancelled = wait_for(lambda: over(run_of(system, id_)))
    assert cancelled["state"] == "cancelled"
    assert cancelled["message"].startswith("cancelled by ")
    assert not any(id_.encode() in line for line in command_lines())

    other = begin(system)
    wait_for(lambda: run_of(system, other)["shards_done"] >= 1)
    system.post("/api/v1/stop")
    assert system.process is not None
    system.process.wait(60)
    assert not any(other.encode() in line for line in command_lines())
    system.start()
    system.wait_ready()
    assert wait_for(lambda: over(run_of(system, other)))["rows"] == ROWS


def test_a_run_that_fails_is_told_with_the_reason_and_the_command_waits_for_it(
    system: System, data: Path
) -> None:
    system.start(spec=job(data, columns={"x": ["a", "nowhere"]}, retries=0))
    system.wait_ready()
    environment = {**os.environ, "HEADRACE_HOME": str(system.home)}
    done = subprocess.run(  # ours
        [HEADRACE, "batch", "start", "j", "--wait", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )

    assert done.returncode == 1, done.stderr
    run = json.loads(done.stdout)
    assert (run["state"], run["tries"]) == ("failed", 1)
    assert "nowhere" in run["message"]
    assert "failed" in done.stderr
    (event,) = [e for e in system.get("/api/v1/events")["events"] if e["kind"] == "job"]
    assert event["reason"] == "JobFailed"
    with urllib.request.urlopen(system.where().metrics_url, timeout=30) as answer:  # noqa: S310  # loopback
        metrics = answer.read().decode()
    assert 'headrace_job_failed{job_name="j"} 1' in metrics


@pytest.fixture
def two(system: System) -> Iterator[tuple[System, System]]:
    """Two control planes, of homes of their own, on one Postgres."""
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        other = System(Path(directory) / "home")
        try:
            yield system, other
        finally:
            other.close()


@pytest.mark.long
def test_two_control_planes_on_one_database_run_each_moment_once(
    two: tuple[System, System], data: Path
) -> None:
    schedule = {"cron": "* * * * *", "late_after_s": 3600.0}
    model = data / "net" / "m.onnx"  # its directory, which root's job reads as another user
    model.parent.mkdir(mode=0o755)
    model.write_bytes(models.mlp(features=2))
    spec = job(data, model=str(model), columns={"input": ["a", "b"]}, schedule=schedule)
    try:
        with running_postgres() as server:
            url = server.tcp_url(PASSWORD)
            for number, system in enumerate(two):
                # The second one goes on with what the first one stored.
                system.start(**({"spec": spec} if number == 0 else {}), state_url=url)
                system.wait_ready()
            runs = wait_for(lambda: ended_runs(two[1]), timeout_s=150)
            time.sleep(3.0)
            (listed,) = two[0].get("/api/v1/jobs")["jobs"]
            both = [system.get("/api/v1/jobs/j/runs")["runs"] for system in two]
            for system in two:
                system.close()
    except NoPostgresError as error:
        pytest.skip(str(error))

    assert [run["state"] for run in runs] == ["succeeded"], [run["message"] for run in runs]
    assert both[0] == both[1]
    assert len({run["moment"] for run in both[0]}) == len(both[0])
    assert all(run["tries"] == 1 for run in both[0])
    assert len(list((data / "out").iterdir())) == len(both[0])
    assert listed["last_success"]["rows"] == ROWS
    assert not listed["is_late"]


def ended_runs(system: System) -> Any:  # JSON
    return [run for run in system.get("/api/v1/jobs/j/runs")["runs"] if over(run)]


def over(run: Any) -> Any:  # JSON
    return None if run["state"] in {"waiting", "running"} else run


def command_lines() -> list[bytes]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((entry / "cmdline").read_bytes())
            except OSError:
                continue
    return found
