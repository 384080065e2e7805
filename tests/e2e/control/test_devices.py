"""On what a model runs is said, and what was asked for and is not there keeps it from running."""

from pathlib import Path
from typing import Any

import pytest

from tests import tabular_models
from tests.e2e.cli.conftest import Shell
from tests.e2e.control.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long]


def endpoint(status: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in status["endpoints"] if one["name"] == name)
    return found


def replica(status: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = endpoint(status, name)["revisions"][0]["replicas"][0]
    return found


def test_what_runs_a_model_is_told_and_what_cannot_be_had_is_refused(
    system: System, mlp: Path, tmp_path: Path
) -> None:
    trees = tabular_models.xgboost(tmp_path, "binary").path
    system.start(
        {"name": "free", "model": str(mlp)},
        {"name": "plain", "model": str(mlp), "device": "cpu"},
        {"name": "trees", "model": str(trees)},
        {"name": "fast", "model": str(mlp), "device": "gpu"},
        {"name": "quick", "model": str(trees), "device": "cuda"},
    )
    names = ("free", "plain", "trees")
    status = system.wait_for(
        lambda status: (
            all(replica(status, name)["device"] for name in names)
            and all(endpoint(status, name)["failed"] for name in ("fast", "quick"))
        ),
        120,
    )
    shell = Shell(system.home.parent)
    shell.environment["HEADRACE_HOME"] = str(system.home)
    shown = shell.run("status").stdout

    assert {name: replica(status, name)["device"]["asked"] for name in names} == {
        "free": "auto",
        "plain": "cpu",
        "trees": "auto",
    }
    assert [replica(status, name)["device"]["used"] for name in names] == [["CPU"]] * 3
    assert "over the network" in replica(status, "free")["device"]["unused"]["Azure"]
    assert "device 'gpu' was requested but is not available" in endpoint(status, "fast")["message"]
    assert "'xgboost' runs on the CPU only; remove" in endpoint(status, "quick")["message"]
    assert shown.splitlines()[0].split()[-2:] == ["memory", "device"]
    assert next(line for line in shown.splitlines() if line.startswith("free ")).endswith(" CPU")
    assert "device 'gpu' was requested" in shown
