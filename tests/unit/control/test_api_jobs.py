"""Jobs over the management API: who may see, begin, end and change them, and as metrics."""

from typing import Any

import pytest

from headrace.control.plane.control_plane import ControlPlane
from headrace.control.plane.metrics import own_families
from tests.metrics import exposed
from tests.unit.control.api_client import client_of

pytestmark = pytest.mark.anyio
JOB: dict[str, Any] = {
    "name": "j",
    "model": "m",
    "input": "/in",
    "output": "/out/{run_id}",
    "schedule": {"cron": "0 6 * * *", "late_after_s": 60.0},
}
SPEC: dict[str, Any] = {"version": 1, "endpoints": [], "jobs": [JOB]}


async def test_a_job_is_listed_begun_and_cancelled(plane: ControlPlane) -> None:
    async with client_of(plane) as api:
        applied = await api.post("/apply", json=SPEC)
        (listed,) = (await api.get("/jobs")).json()["jobs"]
        begun = await api.post("/jobs/j/run")
        run = begun.json()
        again = (await api.get(f"/jobs/j/runs/{run['id']}")).json()
        ended = (await api.post("/jobs/j/cancel", json={"run": run["id"]})).json()
        nothing = (await api.post("/jobs/j/cancel")).json()
        (kept,) = (await api.get("/jobs/j/runs")).json()["runs"]

    assert applied.status_code == 200
    assert (listed["name"], listed["cron"], listed["last_run"]) == ("j", "0 6 * * *", None)
    assert begun.status_code == 201
    assert (run["state"], run["trigger"], run["output"]) == (
        "waiting",
        "manual",
        f"/out/{run['id']}",
    )
    assert again == run
    assert [one["state"] for one in ended["runs"]] == ["cancelled"]
    assert nothing == {"runs": []}
    assert kept == ended["runs"][0]


async def test_what_there_is_not_is_said(plane: ControlPlane) -> None:
    async with client_of(plane) as api:
        await api.post("/apply", json=SPEC)
        answers = [
            await api.post("/jobs/k/run"),
            await api.get("/jobs/k/runs"),
            await api.get("/jobs/j/runs/j-1"),
            await api.post("/jobs/j/cancel", json={"run": "j-1"}),
            await api.post("/jobs/k/cancel"),
        ]

    assert [one.status_code for one in answers] == [404] * 5
    assert answers[0].json()["detail"] == "there is no job 'k'; there are: j"


async def test_only_an_admin_changes_jobs_and_an_operator_begins_them(plane: ControlPlane) -> None:
    changed = {**SPEC, "jobs": [{**JOB, "input": "/etc/shadow"}]}
    async with client_of(plane) as api:
        await api.post("/apply", json=SPEC)
    async with client_of(plane, "operator") as api:
        same = await api.post("/apply", json=SPEC)
        refused = await api.post("/apply", json=changed)
        begun = await api.post("/jobs/j/run")
    async with client_of(plane, "viewer") as api:
        seen = await api.get("/jobs")
        not_begun = await api.post("/jobs/j/run")
    async with client_of(plane, "operator:m") as api:
        hidden = await api.get("/jobs")

    assert (same.status_code, refused.status_code, begun.status_code) == (200, 403, 201)
    assert "only an admin" in refused.json()["detail"]
    assert (seen.status_code, not_begun.status_code, hidden.status_code) == (200, 403, 403)


async def test_jobs_have_metrics_once_they_were_looked_at(plane: ControlPlane) -> None:
    async with client_of(plane) as api:
        await api.post("/apply", json=SPEC)
    assert "headrace_job" not in exposed(own_families(plane))
    assert plane.workloads.jobs.late() is None

    now = plane.clock.now()
    await plane.workloads.jobs.planner.step(now=now - 3 * 86_400, monotonic=0.0, own=frozenset())
    step = await plane.workloads.jobs.planner.read()
    plane.workloads.jobs.snapshot, plane.workloads.jobs.jobs = step.snapshot, step.jobs
    text = exposed(own_families(plane))

    assert 'headrace_job_late{job_name="j"} 1' in text
    assert 'headrace_job_running{job_name="j"} 0' in text
    assert "headrace_job_rows{" not in text
    assert plane.workloads.jobs.late() == 1
