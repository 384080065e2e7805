"""A control plane of which nothing runs, with its console."""

from pathlib import Path
from typing import Final

import pytest

from headrace.control.plane.control_plane import ControlPlane
from tests.unit.control.api_client import client_of
from tests.unit.control.conftest import (
    addresses,
    anyio_backend,
    home,
    plane,
    prometheus,
    registry,
)

__all__ = ["ControlPlane", "addresses", "anyio_backend", "home", "plane", "prometheus", "registry"]

STREAM: Final = {
    "name": "pay",
    "model": "fraud:1",
    "source": {"broker": "log:demo", "topics": ["in"]},
    "sink": {"topic": "out"},
}
JOB: Final = {
    "name": "nightly",
    "model": "fraud",
    "input": "/in",
    "output": "/out/{run_id}",
    "schedule": {"cron": "0 6 * * *", "late_after_s": 60.0},
}
PLAN: Final = {"strategy": "canary", "steps": [{"weight": 10, "until": "verdict"}]}


@pytest.fixture
async def served(plane: ControlPlane, tmp_path: Path) -> ControlPlane:
    """Endpoints `fraud`, with a rollout, and `churn`; a stream `pay` and a job `nightly`."""
    model = tmp_path / "m.onnx"
    for content in (b"one", b"two"):
        model.write_bytes(content)
        plane.registry.push("fraud", model)
    async with client_of(plane) as api:
        document = {"endpoints": [], "streams": [STREAM], "jobs": [JOB]}
        assert (await api.post("/apply", json=document)).status_code == 200
        for name in ("fraud", "churn"):
            put = await api.put(f"/endpoints/{name}", json={"model": "fraud:1"})
            assert put.status_code == 201, put.text
        body = {"version": "2", "rollout": PLAN}
        assert (await api.post("/endpoints/fraud/rollout", json=body)).status_code == 201
    return plane
