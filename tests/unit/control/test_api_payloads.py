"""Payload logs over the management API: files, the newest rows, and who may see them."""

import importlib.util
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from headrace.control.plane.control_plane import ControlPlane
from headrace.core.spec.observe import PayloadLogSpec
from headrace.serving.telemetry.report import PayloadSample, SampledTensor
from tests.unit.control.api_client import client_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"model")
    async with client_of(plane) as client:
        log = {"sample_ratio": 0.5, "drop": ["input.x"]}
        entry = {"model": str(model), "payload_log": log}
        (await client.put("/endpoints/m", json=entry)).raise_for_status()
        (await client.put("/endpoints/off", json={"model": str(model)})).raise_for_status()
        yield client


def sample(request_id: str, at: float) -> PayloadSample:
    array = np.array([[0.5, np.nan]], np.float32)
    given = SampledTensor(name="x", dtype="<f4", shape=[1, 2], data=array.tobytes())
    answered = SampledTensor(name="y", dtype="O", shape=[100], items=[b"\xffa"] * 100)
    return PayloadSample(
        request_id=request_id,
        trace_id="",
        caller="",
        at=at,
        duration_s=0.1,
        code="OK",
        inputs=[given],
        outputs=[answered],
    )


async def rows(api: httpx.AsyncClient, **query: Any) -> list[dict[str, Any]]:  # noqa: ANN401  # as httpx has it
    answer = await api.get("/endpoints/m/payloads/rows", params=query)
    found: list[dict[str, Any]] = answer.raise_for_status().json()["rows"]
    return found


async def test_an_endpoint_without_a_payload_log_has_no_files(api: httpx.AsyncClient) -> None:
    off = (await api.get("/endpoints/off/payloads")).json()

    assert (off["on"], off["written"], off["files"]) == (False, 0, [])
    assert (await api.get("/endpoints/off/payloads/rows")).json() == {"rows": []}


async def test_the_newest_rows_come_first_as_plain_json(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    writer = plane.telemetry.payloads
    writer.add("m", "1", PayloadLogSpec(), [sample("a", 1.0), sample("b", 2.0)])
    writer.add("m", "2", PayloadLogSpec(), [sample("c", 3.0)])
    writer.lost("m", 2)
    writer.stop()

    files = (await api.get("/endpoints/m/payloads")).json()
    everything = await rows(api)

    assert (files["on"], files["written"], files["dropped"]) == (True, 3, 2)
    assert sorted(file["version"] for file in files["files"]) == ["1", "2"]
    assert [row["request_id"] for row in everything] == ["c", "b", "a"]
    assert [row["request_id"] for row in await rows(api, limit=2)] == ["c", "b"]
    assert [row["version"] for row in await rows(api, request_id="a")] == ["1"]
    assert everything[0]["time"] == "1970-01-01T00:00:03Z"
    assert everything[0]["input.x"] == [0.5, "nan"]
    assert len(everything[0]["output.y"]) == 64
    assert everything[0]["output.y"][0] == "\ufffda"


@pytest.mark.parametrize("path", ["payloads", "payloads/rows"])
async def test_payloads_are_for_operators(
    api: httpx.AsyncClient, plane: ControlPlane, path: str
) -> None:
    async with client_of(plane, "viewer") as viewer, client_of(plane, "operator:m") as operator:
        statuses = [
            (await client.get(f"/endpoints/m/{path}")).status_code for client in (viewer, operator)
        ]

    assert statuses == [403, 200]
    assert (await api.get(f"/endpoints/nobody/{path}")).status_code == 404


async def test_a_column_that_cannot_be_is_refused(api: httpx.AsyncClient) -> None:
    entry = {"model": "/m", "payload_log": {"drop": ["x"]}}

    answer = await api.put("/endpoints/m", json=entry)

    assert answer.status_code == 400
    assert "payload_log.drop" in answer.text


async def test_without_pyarrow_a_payload_log_is_refused_with_the_way_out(
    api: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    entry = {"model": str(tmp_path / "m.onnx"), "payload_log": {"sample_ratio": 0.1}}

    answer = await api.put("/endpoints/m", json=entry)

    assert answer.status_code == 409
    assert "headrace[data]" in answer.json()["detail"]
