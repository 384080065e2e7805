"""Pause and scale of endpoints over the management API."""

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from headrace.control.plane.control_plane import ControlPlane
from tests.unit.control.api_client import client_of

pytestmark = pytest.mark.anyio
PLAN = {"strategy": "canary", "steps": [{"weight": 10, "until": "verdict"}]}


@pytest.fixture
async def api(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Endpoint `fraud` serves version 1 of two."""
    model = tmp_path / "m.onnx"
    for content in (b"one", b"two"):
        model.write_bytes(content)
        plane.registry.push("fraud", model)
    async with client_of(plane) as client:
        await client.put("/endpoints/fraud", json={"model": "fraud:1"})
        yield client


def is_paused(plane: ControlPlane) -> bool:
    endpoint = plane.target_state.effective_endpoint("fraud")
    assert endpoint is not None
    return endpoint.paused


def replicas_of(plane: ControlPlane) -> dict[str, int]:
    endpoint = plane.target_state.effective_endpoint("fraud")
    assert endpoint is not None
    return {arm.key: arm.replicas for arm in endpoint.arms}


async def test_a_pause_is_in_the_spec_the_status_and_the_audit_log(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    paused = await api.post("/endpoints/fraud/pause")
    view = (await api.get("/endpoints/fraud")).json()
    again = await api.post("/endpoints/fraud/pause")
    overview = (await api.get("/overview")).json()["endpoints"]
    assert is_paused(plane)
    resumed = await api.post("/endpoints/fraud/resume")
    [*_, before, last] = (await api.get("/trail?newest=true")).json()["entries"]

    assert paused.json()["changes"] == ["endpoint 'fraud': paused becomes true"]
    assert view["spec"] == {"name": "fraud", "model": "fraud:1", "paused": True}
    assert view["status"]["paused"]
    assert view["status"]["note"] == "paused: the gateway refuses its requests"
    assert overview[0]["paused"]
    assert again.json()["changes"] == []
    assert resumed.json()["changes"] == ["endpoint 'fraud': paused becomes false"]
    assert not is_paused(plane)
    assert (before["action"], last["action"]) == ("endpoint.pause", "endpoint.resume")
    assert (last["object"], last["actor"]) == ("fraud", "ann@laptop")


async def test_a_rollout_continues_through_a_pause_and_a_new_scale(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    await api.post("/endpoints/fraud/rollout", json={"version": "2", "rollout": PLAN})
    await api.post("/endpoints/fraud/pause")
    await api.post("/endpoints/fraud/resume")
    scaled = await api.post("/endpoints/fraud/scale", json={"replicas": 3})
    status = (await api.get("/endpoints/fraud/rollout")).json()
    during = replicas_of(plane)
    aborted = await api.post("/endpoints/fraud/rollout/abort")

    assert scaled.status_code == 200
    assert status["phase"] == "preparing"
    assert during["1"] == 3
    assert aborted.json()["phase"] == "aborted"
    assert replicas_of(plane) == {"1": 3}


async def test_a_version_that_was_rolled_back_stays_back_after_a_pause(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    await api.post("/endpoints/fraud/rollout", json={"version": "2", "rollout": PLAN})
    await api.post("/endpoints/fraud/rollout/rollback")
    await api.post("/endpoints/fraud/pause")
    scaled = await api.post("/endpoints/fraud/scale", json={"replicas": 2})
    await api.post("/endpoints/fraud/resume")

    assert scaled.status_code == 200
    assert replicas_of(plane) == {"1": 2}
    undone = await api.post("/endpoints/fraud/undo")
    assert undone.status_code == 200
    assert set(replicas_of(plane)) == {"1"}


async def test_a_rollout_starts_after_a_scale_and_keeps_its_replicas(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    await api.post("/endpoints/fraud/scale", json={"replicas": 4})
    await api.post("/endpoints/fraud/rollout", json={"version": "2", "rollout": PLAN})
    await api.post("/endpoints/fraud/rollout/promote")

    record = plane.target_state.rollout("fraud")
    assert record is not None
    assert record.target.arms[0].replicas == 4


async def test_bounds_are_scaled_where_the_autoscaler_decides(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    entry = {"model": "fraud:1", "autoscale": {"min_replicas": 1, "max_replicas": 2}}
    await api.put("/endpoints/fraud", json=entry)
    fixed = await api.post("/endpoints/fraud/scale", json={"replicas": 3})
    wrong = await api.post("/endpoints/fraud/scale", json={"min_replicas": 9})
    scaled = await api.post("/endpoints/fraud/scale", json={"min_replicas": 3, "max_replicas": 5})
    spec = (await api.get("/endpoints/fraud")).json()["spec"]

    assert fixed.status_code == 409
    assert "set its bounds" in fixed.json()["detail"]
    assert wrong.status_code == 400
    assert "above max_replicas" in wrong.json()["detail"]
    assert scaled.status_code == 200
    assert spec["autoscale"] == {"min_replicas": 3, "max_replicas": 5}
    desired = plane.target_state.desired.endpoint("fraud")
    assert desired is not None
    assert desired.autoscale is not None
    assert (desired.autoscale.min_replicas, desired.arms[0].replicas) == (3, 3)


async def test_bounds_need_an_autoscaler(api: httpx.AsyncClient) -> None:
    refused = await api.post("/endpoints/fraud/scale", json={"max_replicas": 5})
    empty = await api.post("/endpoints/fraud/scale", json={})
    unknown = await api.post("/endpoints/nobody/scale", json={"replicas": 2})

    assert (refused.status_code, empty.status_code, unknown.status_code) == (409, 409, 404)


async def test_viewers_pause_and_scale_nothing(plane: ControlPlane, api: httpx.AsyncClient) -> None:
    async with client_of(plane, "viewer") as viewer:
        codes = [
            (await viewer.post("/endpoints/fraud/pause")).status_code,
            (await viewer.post("/endpoints/fraud/resume")).status_code,
            (await viewer.post("/endpoints/fraud/scale", json={"replicas": 2})).status_code,
        ]

    assert codes == [403] * 3
    assert not is_paused(plane)
    assert (await api.get("/endpoints/fraud")).json()["generation"] == 1
