"""Homes that are copied, moved or left by a killed control plane, by the commands of operators."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from headrace.control import read_control_file
from tests.e2e.control.system import System, Traffic, replicas
from tests.ports import free_port

pytestmark = pytest.mark.e2e

_FREE_PORTS = {f"HEADRACE_{name}_PORT": "0" for name in ("HTTP", "GRPC", "METRICS", "ADMIN")}


def _headrace(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headrace.cli", *arguments],
        env={**os.environ, "NO_COLOR": "1", **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _kill(pid: int) -> None:
    """Kill a process, and return when its locks are free."""
    process = psutil.Process(pid)
    process.kill()
    process.wait(timeout=30)


def _copy(home: Path, copy: Path) -> None:
    """A copy as operators make one; sockets and all."""
    subprocess.run(["cp", "-a", str(home), str(copy)], check=True)  # noqa: S607  # coreutils


def _identity(status: Any) -> dict[str, Any]:
    """What a disturbance of a system would change."""
    return {
        "generation": status["generation"],
        "gateway": status["gateway"]["pid"],
        "replicas": [(r["name"], r["pid"], r["restarts"]) for r in replicas(status, "m")],
        "addresses": status["addresses"],
    }


@pytest.mark.parametrize("is_killed", [False, True], ids=["control plane runs", "killed"])
def test_commands_on_a_copy_leave_the_original_and_its_callers_alone(
    system: System, mlp: Path, other_mlp: Path, is_killed: bool
) -> None:
    system.start({"name": "m", "model": str(mlp), "replicas": 2})
    before = _identity(system.wait_ready())
    first_copy, copy = system.home.parent / "first-copy", System(system.home.parent / "copy")
    spec = {"version": 1, "endpoints": [{"name": "m", "model": str(other_mlp), "replicas": 1}]}
    file = system.home.parent / "headrace.json"
    file.write_text(json.dumps(spec))
    on_first, on_copy = ("--home", str(first_copy)), ("--home", str(copy.home))

    try:
        with Traffic(system, "m").flowing(threads=1) as traffic:
            time.sleep(0.3)
            if is_killed:
                system.kill_control()
            _copy(system.home, first_copy)
            _copy(system.home, copy.home)
            status = _headrace("status", *on_first)
            applied = _headrace("apply", "-f", str(file), *on_first)
            inferred = _headrace("infer", "m", *on_first)
            down = _headrace("down", *on_first)
            up = _headrace("up", "--detach", "--json", *on_copy, **_FREE_PORTS)
            ran = copy.status()
            changed = _headrace("apply", "-f", str(file), "--wait", *on_copy)
            after_change = copy.status()
            stopped = _headrace("down", *on_copy)
            time.sleep(0.3)
        if is_killed:
            system.start()
        after = _identity(system.wait_ready())
    finally:
        copy.close()

    assert status.returncode != 0
    assert "copy of" in status.stderr
    assert applied.returncode != 0
    assert inferred.returncode != 0
    assert down.returncode == 0
    assert "no system runs" in down.stdout + down.stderr
    assert up.returncode == 0, up.stderr
    assert ran["gateway"]["pid"] != before["gateway"]
    assert ran["generation"] == before["generation"]
    assert changed.returncode == 0, changed.stderr
    assert after_change["generation"] == before["generation"] + 1
    assert stopped.returncode == 0, stopped.stderr
    assert read_control_file(copy.home) is None
    assert copy.processes() == []
    assert traffic.failures == []
    assert len(traffic.statuses) > 100
    assert after == before


@pytest.mark.parametrize("is_gateway_killed", [False, True], ids=["gateway runs", "all killed"])
def test_up_after_a_killed_control_plane_has_the_ports_of_before(
    system: System, mlp: Path, is_gateway_killed: bool
) -> None:
    on_home = ("--detach", "--json", "--home", str(system.home))
    first = _headrace("up", str(mlp), "--name", "m", *on_home, **_FREE_PORTS)
    before = _identity(system.wait_ready())
    metrics = system.where().metrics_url
    _kill(system.where().pid)
    if is_gateway_killed:
        system.kill_processes()
    second = _headrace("up", *on_home)
    after = _identity(system.wait_ready())

    assert first.returncode == 0, first.stderr
    assert second.returncode == 0, second.stderr
    assert "all ports are unchanged" in second.stderr
    assert after["addresses"] == before["addresses"]
    assert system.where().metrics_url == metrics
    assert is_gateway_killed or after == before
    assert system.infer("m")[0] == 200


def test_up_after_a_killed_control_plane_follows_flags_and_says_what_moved(
    system: System, mlp: Path
) -> None:
    on_home = ("--detach", "--json", "--home", str(system.home))
    _headrace("up", str(mlp), "--name", "m", *on_home, **_FREE_PORTS)
    before = system.where()
    _kill(before.pid)
    port = free_port()
    second = _headrace("up", *on_home, "--http-port", str(port))
    assert second.returncode == 0, second.stderr
    after = system.where()

    assert after.http_url == f"http://127.0.0.1:{port}"
    assert after.admin_url == before.admin_url
    assert f"the gateway moved from {before.http_url} to {after.http_url}" in second.stderr


def test_a_stopped_home_moves_with_its_id_and_a_link_leads_to_the_same_processes(
    system: System, mlp: Path
) -> None:
    system.start({"name": "m", "model": str(mlp)})
    before = system.wait_ready()
    identity = system.where().home
    link = system.home.parent / "link"
    link.symlink_to(system.home)
    by_link = read_control_file(link)
    system.end_control()
    moved = System(system.home.rename(system.home.parent / "moved"))
    try:
        moved.start()
        after = moved.wait_ready()
        moved_identity = moved.where().home
        down = _headrace("down", "--home", str(moved.home))
    finally:
        moved.close()

    assert identity is not None
    assert moved_identity is not None
    assert by_link is not None
    assert by_link.home == identity
    assert moved_identity.id == identity.id
    assert (identity.path, moved_identity.path) == (str(system.home), str(moved.home))
    assert after["generation"] == before["generation"]
    assert down.returncode == 0
    assert moved.processes() == []
