"""Streams over the management API: in the status, waited for, over time, and for whom."""

from pathlib import Path
from typing import Any

import pytest

from headrace.control.plane.control_plane import ControlPlane
from headrace.control.streams.status import Lagging
from headrace.streaming.settings import StreamStatus
from tests.unit.control.api_client import client_of

pytestmark = pytest.mark.anyio
JOB: dict[str, Any] = {"name": "j", "model": "m", "input": "/in", "output": "/out/{run_id}"}


@pytest.fixture
def spec(tmp_path: Path) -> dict[str, Any]:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"model")
    stream = {
        "name": "pay",
        "model": str(model),
        "source": {"broker": "log:demo", "topics": ["in"]},
        "sink": {"topic": "out"},
    }
    return {"version": 1, "endpoints": [], "streams": [stream], "jobs": [JOB]}


async def test_the_status_has_streams_and_jobs_for_who_sees_the_whole_system(
    plane: ControlPlane, spec: dict[str, Any]
) -> None:
    async with client_of(plane) as api:
        assert (await api.post("/apply", json=spec)).status_code == 200
        step = await plane.workloads.jobs.planner.read()
        plane.workloads.jobs.snapshot, plane.workloads.jobs.jobs = step.snapshot, step.jobs
        found = (await api.get("/status")).json()
    async with client_of(plane, "viewer:m") as api:
        other = (await api.get("/status")).json()

    assert [(one["name"], one["state"]) for one in found["streams"]] == [("pay", "starting")]
    assert [(one["name"], one["cron"], one["is_late"]) for one in found["jobs"]] == [
        ("j", "", False)
    ]
    assert other["streams"] == other["jobs"] == []


async def test_an_apply_that_waits_says_which_stream_does_not_run(
    plane: ControlPlane, spec: dict[str, Any]
) -> None:
    async with client_of(plane) as api:
        told = (await api.post("/apply?wait_s=0.05", json=spec)).json()

    assert told["ready"] is False
    assert told["not_ready"] == {"stream 'pay'": "starting, 0 of 1 workers ready"}


async def test_a_stream_has_a_history(plane: ControlPlane, spec: dict[str, Any]) -> None:
    async with client_of(plane) as api:
        await api.post("/apply", json=spec)
        nothing = (await api.get("/streams/pay/history")).json()
        team, now = plane.workloads.streams._team("pay", 1), plane.clock.now()
        for at in range(-20, 1):
            status = StreamStatus(stream="pay", member="pay-0", answered=50 * (at + 20))
            lag = Lagging(records=7, seconds=0.5, partitions=1)
            team.track.note([status], lag, running=1, now=now + at)
        points = (await api.get("/streams/pay/history?since_s=60")).json()["points"]
        wrong = await api.get("/streams/pay/history?since_s=0")
        missing = await api.get("/streams/nobody/history")

    assert nothing == {"points": []}
    assert [(one["answered_per_s"], one["lag_records"]) for one in points] == [(50.0, 7)] * 2
    assert (wrong.status_code, missing.status_code) == (400, 404)


async def test_alerts_know_of_streams_once_they_were_looked_at(
    plane: ControlPlane, spec: dict[str, Any]
) -> None:
    async with client_of(plane) as api:
        await api.post("/apply", json=spec)
    before = plane.workloads.streams.facts()
    await plane.workloads.streams.ask()
    plane.workloads.streams._asked_at = plane.clock.monotonic()

    assert before == {}
    assert plane.workloads.streams.facts()["pay"].running == 0
