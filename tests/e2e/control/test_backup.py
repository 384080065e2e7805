"""The drill: a home that works is backed up, restored elsewhere, and answers the same."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.control.system import ROW, System, Traffic

pytestmark = pytest.mark.e2e

_BACKUPS = 3


def _headrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "headrace.cli", *arguments],
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def _history(system: System) -> list[Any]:
    """What was applied, oldest first; times and all, but not which is in force."""
    entries = system.get("/api/v1/endpoints/m/history?limit=1000")["generations"]
    entries = [{key: entry[key] for key in entry if key != "current"} for entry in entries]
    return sorted(entries, key=lambda entry: int(entry["generation"]))


def test_a_backup_under_load_and_applies_restores_to_the_same_answers_history_and_audit_log(
    system: System, mlp: Path, other_mlp: Path
) -> None:
    def spec(number: int) -> dict[str, Any]:
        """Another generation each time, with one model and then the other."""
        model = str((mlp, other_mlp)[number % 2])
        endpoint = {"name": "m", "model": model, "timeout_s": 10.0 + number}
        return {"version": 1, "endpoints": [endpoint]}

    system.start(spec=spec(0))
    system.wait_ready()
    assert system.post("/api/v1/apply", spec(1))[0] == 200  # both models are inspected
    stop = threading.Event()
    applied: list[int] = []

    def apply() -> None:
        while not stop.is_set():
            applied.append(system.post("/api/v1/apply", spec(len(applied) + 2))[0])

    files = [system.home.parent / f"backup-{number}.tar" for number in range(_BACKUPS)]
    applying = threading.Thread(target=apply)
    with Traffic(system, "m").flowing(threads=1) as traffic:
        applying.start()
        taken = [_headrace("backup", str(file), "--home", str(system.home)) for file in files]
        system.wait_for(lambda _: len(applied) > _BACKUPS)
        stop.set()
        applying.join()
    full = _history(system)
    checked = [_headrace("backup", "--verify", str(file)) for file in files]
    restored = System(system.home.parent / "restored" / "home")
    done = _headrace("restore", str(files[-1]), "--home", str(restored.home))
    try:
        restored.start()
        restored.wait_ready()
        part = _history(restored)
        trail = _headrace("trail", "verify", "--home", str(restored.home))
        before = system.wait_ready()
        number = part[-1]["generation"] - 1
        system.post("/api/v1/apply", spec(number))
        same = system.wait_for(lambda s: s["ready"] and s["generation"] > before["generation"])
        answers = [s.infer("m", ROW)[1]["outputs"] for s in (system, restored)]
        tokens = {s.token() for s in (system, restored)}
        identities = [s.where().home for s in (system, restored)]
    finally:
        restored.close()

    assert [result.returncode for result in (*taken, *checked, done)] == [0] * 7, [
        result.stderr for result in (*taken, *checked, done)
    ]
    assert set(applied) == {200}
    assert traffic.failures == []
    assert 1 < len(part) <= len(full)
    assert part == full[: len(part)]
    assert trail.returncode == 0, trail.stderr
    assert same["ready"]
    assert answers[0] == answers[1]
    assert len(tokens) == 1
    assert None not in identities
    assert len({identity.id for identity in identities if identity is not None}) == 2
