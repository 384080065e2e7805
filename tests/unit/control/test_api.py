"""The management API, over ASGI: what it answers, and what it refuses."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from headrace.control.api.app import build_api, build_gateway_answers, build_metrics
from headrace.control.auth.roles import SYSTEM
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.plane.control_plane import ControlPlane
from tests.unit.control.api_client import access_of, headers_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(plane: ControlPlane) -> AsyncIterator[httpx.AsyncClient]:
    app = build_api(plane, access_of(plane), allowed_hosts=frozenset({"models.example"}))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    url, headers = "http://localhost:8080", headers_of(plane)
    async with httpx.AsyncClient(transport=transport, base_url=url, headers=headers) as client:
        yield client


def document(path: Path, *names: str) -> dict[str, object]:
    return {"endpoints": [{"name": name, "model": str(path)} for name in names]}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"model")
    return path


async def test_an_empty_system_waits_for_its_gateway_only(api: httpx.AsyncClient) -> None:
    status = (await api.get("/api/v1/status")).json()

    assert status["ready"] is False
    assert status["endpoints"] == []
    assert status["addresses"]["http"] == "http://127.0.0.1:8000"


async def test_apply_pins_models_and_says_what_changes(
    api: httpx.AsyncClient, plane: ControlPlane, model: Path
) -> None:
    first = await api.post("/api/v1/apply", json=document(model, "a", "b"))
    again = await api.post("/api/v1/apply", json=document(model, "a", "b"))
    spec = (await api.get("/api/v1/spec")).json()

    assert first.json()["generation"] == 1
    assert len(first.json()["changes"]) == 2
    assert again.json() == {"changes": [], "generation": 1, "warnings": []}
    assert spec == {"generation": 1, "spec": {"version": 1, **document(model, "a", "b")}}
    endpoint = plane.target_state.desired.endpoint("a")
    assert endpoint is not None
    settings = endpoint.arms[0].revision.settings
    assert settings.model_name == "a"
    assert settings.sha256
    assert plane.store.load.blocking() == plane.target_state.desired


async def test_apply_may_wait_and_then_tells_who_is_not_ready(
    api: httpx.AsyncClient, model: Path
) -> None:
    answer = (await api.post("/api/v1/apply?wait_s=0.01", json=document(model, "a"))).json()

    assert answer["ready"] is False
    assert "0 of 1 replicas ready" in answer["not_ready"]["a"]


async def test_all_mistakes_come_as_one_problem_and_nothing_changes(
    api: httpx.AsyncClient, plane: ControlPlane, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"bad")
    typos = await api.post("/api/v1/apply", json={"endpoints": [{"nam": "x"}], "q": 1})
    models = await api.post(
        "/api/v1/apply",
        json={
            "endpoints": [
                {"name": "a", "model": str(bad)},
                {"name": "b", "model": "nobody:3"},
                {"name": "c", "model": str(tmp_path / "absent")},
            ]
        },
    )

    assert typos.status_code == models.status_code == 400
    assert typos.headers["content-type"] == "application/problem+json"
    assert {e["place"] for e in typos.json()["errors"]} >= {"q", "endpoints[0].nam"}
    assert typos.json()["code"] == "INVALID_ARGUMENT"
    assert [e["place"] for e in models.json()["errors"]] == [
        "endpoints[0].model",
        "endpoints[1].model",
        "endpoints[2].model",
    ]
    assert plane.target_state.desired.generation == 0


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"3", b"\xff"])
async def test_what_is_no_document_is_refused(api: httpx.AsyncClient, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = await api.post("/api/v1/apply", content=body, headers=headers)

    assert answer.status_code == 400
    assert answer.json()["code"] == "INVALID_ARGUMENT"


async def test_wrong_fields_of_a_body_are_described_in_words(api: httpx.AsyncClient) -> None:
    body = {"name": "a b", "scopes": ["chat"], "tier": "", "expires_in_s": 9e9, "owner": "x"}
    answer = await api.post("/api/v1/keys", json=body)
    broken = await api.post(
        "/api/v1/keys", content=b"{", headers={"content-type": "application/json"}
    )

    assert {e["place"]: e["message"] for e in answer.json()["errors"]} == {
        "body.name": "is 'a b', which must have 1 to 128 letters, digits, '_', '-' or '.', and "
        "start with a letter or digit",
        "body.scopes[0]": "is 'chat', which must be infer:ENDPOINT, infer:ENDPOINT:VERSION, or "
        "infer:* for all",
        "body.expires_in_s": "should be less than or equal to 316224000, got 9000000000.0",
        "body.owner": "is not a setting",
    }
    assert "JSON decode error" in broken.json()["detail"]


async def test_a_body_that_is_not_called_json_is_told_how_to_be(api: httpx.AsyncClient) -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    answer = await api.post("/api/v1/feedback", content=b'{"reward": 1}', headers=form)

    assert answer.status_code == 400
    assert "content-type: application/json only, not application/x-www-form" in answer.text


async def test_an_endpoint_can_be_removed_alone(
    api: httpx.AsyncClient, plane: ControlPlane, model: Path
) -> None:
    await api.post("/api/v1/apply", json=document(model, "a", "b"))
    removed = await api.delete("/api/v1/endpoints/a")
    missing = await api.delete("/api/v1/endpoints/a")

    changes = ["endpoint 'a' removed"]
    assert removed.json() == {"changes": changes, "generation": 2, "warnings": []}
    assert missing.status_code == 404
    assert [e.name for e in plane.target_state.desired.endpoints] == ["b"]
    assert [e["name"] for e in plane.target_state.desired.spec["endpoints"]] == ["b"]


async def test_a_model_of_a_repository_cannot_be_removed_alone(
    api: httpx.AsyncClient, tmp_path: Path
) -> None:
    for name in ("x", "y"):
        file = tmp_path / "repository" / name / "1" / "model.onnx"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"model")
    await api.post("/api/v1/apply", json=document(tmp_path / "repository", "all"))
    answer = await api.delete("/api/v1/endpoints/x")

    assert answer.status_code == 409
    assert "repository" in answer.json()["detail"]


async def test_the_index_lists_what_is_served_and_what_could_be(
    api: httpx.AsyncClient, plane: ControlPlane, model: Path
) -> None:
    await api.post("/api/v1/apply", json=document(model, "a", "b"))
    await api.post("/api/v1/apply", json=document(model, "b"))
    before = (await api.post("/v2/repository/index")).json()
    revision = plane.target_state.desired.endpoints[0].arms[0].revision
    replica = Replica(
        name="b-1-1",
        serial=1,
        endpoint="b",
        version="1",
        revision_id=revision.id,
        address="unix:/nowhere/r1.sock",
        phase=ReplicaPhase.READY,
        since=0.0,
    )
    plane.reconciling.reconciler.replicas["b-1-1"] = replica
    ready = (await api.post("/v2/repository/index", json={"ready": True})).json()
    bad = await api.post("/v2/repository/index", content=b"[")

    assert before == [
        {"name": "a", "version": "1", "state": "UNAVAILABLE", "reason": "not loaded"},
        {"name": "b", "version": "1", "state": "LOADING", "reason": ""},
    ]
    assert ready == [{"name": "b", "version": "1", "state": "READY", "reason": ""}]
    assert bad.status_code == 400


async def test_load_changes_one_endpoint_and_leaves_the_others_pinned(
    plane: ControlPlane, model: Path, tmp_path: Path
) -> None:
    for name in ("x", "y"):
        file = tmp_path / "repository" / name / "1" / "model.onnx"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"model")
    plane.registry.push("fraud", model)
    plane.registry.push("extra", model)
    await plane.desired_state.apply(
        {
            "endpoints": [
                {"name": "a", "model": "fraud"},
                {"name": "b", "model": "fraud"},
                {"name": "all", "model": str(tmp_path / "repository")},
            ]
        },
        caller=SYSTEM,
    )
    before = plane.target_state.desired
    await asyncio.to_thread(model.write_bytes, b"newer")
    plane.registry.push("fraud", model)
    await plane.desired_state.load("a", caller=SYSTEM)
    await plane.desired_state.load("x", caller=SYSTEM)
    await plane.desired_state.load("extra", caller=SYSTEM)
    after = plane.target_state.desired
    versions = {str(e.name): e.arms[0].revision.version for e in after.endpoints}

    assert versions == {"a": "2", "b": "1", "x": "1", "y": "1", "extra": "1"}
    assert after.endpoint("b") == before.endpoint("b")
    assert after.endpoint("y") == before.endpoint("y")
    assert after.endpoint("x") != before.endpoint("x")  # loaded anew: another revision
    assert [entry["name"] for entry in after.spec["endpoints"]] == ["a", "b", "all", "extra"]


async def test_load_takes_no_parameters_and_no_bad_names(api: httpx.AsyncClient) -> None:
    files = await api.post(
        "/v2/repository/models/a/load", json={"parameters": {"config": "{}", "file:1/m": "x"}}
    )
    broken = await api.post("/v2/repository/models/a/load", content=b"{")
    name = await api.post("/v2/repository/models/a%20b/load")
    unload = await api.post("/v2/repository/models/a/unload", content=b"[]")

    assert files.status_code == 501
    assert "config, file:1/m" in files.json()["error"]
    assert [broken.status_code, name.status_code, unload.status_code] == [400, 400, 400]


async def test_statistics_and_metrics_survive_replicas_that_do_not_answer(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    plane.reconciling.reconciler.replicas["m-1-1"] = Replica(
        name="m-1-1",
        serial=1,
        endpoint="m",
        version="1",
        revision_id="r",
        address="unix:/nowhere/r1.sock",
        phase=ReplicaPhase.READY,
        since=0.0,
    )
    stats = await api.get("/v2/models/stats")
    one = await api.get("/v2/models/m/versions/1/stats")
    unknown = await api.get("/v2/models/other/stats")
    metrics = await api.get("/metrics")

    assert stats.json() == one.json() == {"model_stats": []}
    assert unknown.status_code == 404
    assert 'headrace_control_replica_ready{endpoint="m",version="1",replica="m-1-1"} 1' in (
        metrics.text
    )
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")


async def test_the_other_ports_have_their_own_routes_only(plane: ControlPlane) -> None:
    answers = []
    metrics = build_metrics(plane, access_of(plane), is_open=True)
    for app, path in (
        (metrics, "/metrics"),
        (metrics, "/api/v1/status"),
        (build_gateway_answers(plane, is_local=True), "/v2/models/stats"),
        (build_gateway_answers(plane, is_local=True), "/api/v1/stop"),
        # Gateways on other hosts forward no credentials.
        (build_gateway_answers(plane, is_local=False), "/v1/files"),
    ):
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://any.name") as client:
            answers.append(await client.get(path))

    assert [answer.status_code for answer in answers] == [200, 404, 200, 404, 404]
    assert answers[-1].json()["error"]["message"] == "Not Found: GET /v1/files"


async def test_logs_are_text_or_json_and_of_known_sources(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    plane.home.log_of("m-1-1").write_text("12:00:00.000 INFO    x  one\nplain\n")
    text = await api.get("/api/v1/logs?tail=1")
    rows = await api.get("/api/v1/logs?format=json&source=m-1-1")
    unknown = await api.get("/api/v1/logs?source=nobody")
    bad = await api.get("/api/v1/logs?tail=-1&format=xml")

    assert text.text == "m-1-1            | plain\n"
    assert [json.loads(line)["source"] for line in rows.text.splitlines()] == ["m-1-1"] * 2
    assert rows.headers["content-type"].startswith("application/x-ndjson")
    assert "there are: m-1-1" in unknown.json()["detail"]
    assert len(bad.json()["errors"]) == 2


async def test_following_the_logs_ends_with_the_system(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    plane.home.log_of("m").write_text("one\n")
    plane.request_stop()
    answer = await api.get("/api/v1/logs?follow=1")

    assert answer.text == "m                | one\n"


async def test_stop_is_accepted_and_done_later(api: httpx.AsyncClient, plane: ControlPlane) -> None:
    answer = await api.post("/api/v1/stop")

    assert answer.status_code == 202
    assert plane.stop_requested.is_set()


async def test_the_api_describes_itself(api: httpx.AsyncClient) -> None:
    paths = (await api.get("/api/v1/openapi.json")).json()["paths"]
    schema = (await api.get("/api/v1/schema")).json()

    assert {"/api/v1/status", "/api/v1/apply", "/v2/repository/index"} <= set(paths)
    assert schema["title"] == "headrace.yaml"


async def test_what_is_not_there_is_a_problem_too(api: httpx.AsyncClient) -> None:
    absent = await api.get("/api/v1/nothing")
    wrong = await api.get("/api/v1/stop")

    assert (absent.status_code, absent.json()["code"]) == (404, "NOT_FOUND")
    assert wrong.status_code == 405
    assert wrong.headers["content-type"] == "application/problem+json"


async def test_a_bug_is_told_without_its_trace(
    api: httpx.AsyncClient, plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plane.store, "save", None)
    answer = await api.post("/api/v1/apply", json={"endpoints": []})

    assert answer.status_code == 500
    assert answer.json()["code"] == "INTERNAL"
    assert "NoneType" not in answer.text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "[::1]:8080", "models.example:1"])
async def test_names_of_this_machine_are_served(api: httpx.AsyncClient, host: str) -> None:
    assert (await api.get("/api/v1/spec", headers={"host": host})).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "", "[::1", "a b"])
async def test_a_rebound_name_is_refused(api: httpx.AsyncClient, host: str) -> None:
    answer = await api.get("/api/v1/spec", headers={"host": host})

    assert answer.status_code == 421
    assert answer.json()["code"] == "PERMISSION_DENIED"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"origin": "http://localhost:8080"}, 202),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:9999"}, 403),
        ({"origin": "null"}, 403),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-origin"}, 202),
    ],
)
async def test_other_web_sites_are_refused(
    api: httpx.AsyncClient, headers: dict[str, str], status: int
) -> None:
    assert (await api.post("/api/v1/stop", headers=headers)).status_code == status


async def test_a_large_body_is_refused_before_it_is_read(api: httpx.AsyncClient) -> None:
    answer = await api.post("/api/v1/apply", content=b" " * (5 << 20))

    assert answer.status_code == 413
