"""Rollouts over the management API: started, looked at, told what to do."""

import json
import math
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from pydantic import TypeAdapter

from headrace.control.api import answers as examples
from headrace.control.api.events import Reward, Rewards, Truth
from headrace.control.api.rollouts import StartRollout
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.rollouts.status import RolloutEvidence, RolloutStatus
from headrace.rollout.evidence import RolloutEvidenceState
from headrace.rollout.outcomes import MetricVerdict, Outcome, RolloutVerdict
from headrace.rollout.state import RolloutPhase
from tests.unit.control.api_client import client_of
from tests.unit.monitor.counted import Counted

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(plane: ControlPlane, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """Endpoint `fraud` serves version 1 of three."""
    model = tmp_path / "m.onnx"
    for content in (b"one", b"two", b"three"):
        model.write_bytes(content)
        plane.registry.push("fraud", model)
    async with client_of(plane) as client:
        await client.put("/endpoints/fraud", json={"model": "fraud:1"})
        yield client


async def start(api: httpx.AsyncClient, **body: Any) -> httpx.Response:  # noqa: ANN401  # JSON
    return await api.post("/endpoints/fraud/rollout", json=body)


async def test_a_rollout_is_started_and_found_again(api: httpx.AsyncClient) -> None:
    plan = {"strategy": "canary", "steps": [{"weight": 10, "until": "verdict"}]}
    started = await start(api, version="2", rollout=plan)
    newest = await api.get("/endpoints/fraud/rollout")
    by_id = await api.get(started.headers["location"].removeprefix("/api/v1"))
    listed = (await api.get("/rollouts")).json()["rollouts"]
    of_others = (await api.get("/rollouts?endpoint=other")).json()["rollouts"]
    endpoint = (await api.get("/endpoints/fraud")).json()

    assert started.status_code == 201
    assert started.json() | {"since": 0, "began": 0} == {
        "id": "r1",
        "endpoint": "fraud",
        "strategy": "canary",
        "phase": "preparing",
        "over": False,
        "from_version": "1",
        "to_version": "2",
        "from_model": "fraud:1",
        "to_model": "fraud:2",
        "weight": 0,
        "baseline_weight": 0,
        "mirror_percent": 0,
        "step": 0,
        "steps": [{"weight": 10, "pause_s": 0.0, "until": "verdict"}],
        "began": 0,
        "since": 0,
        "duration_s": 0.0,
        "reason": started.json()["reason"],
        "problem": "",
        "actor": "ann@laptop",
        "verdict": None,
        "requests": {"baseline": 0, "candidate": 0},
        "counted": started.json()["counted"],
        "outlook": None,
        "notes": [],
    }
    assert newest.json()["id"] == by_id.json()["id"] == listed[0]["id"] == "r1"
    assert of_others == []
    assert endpoint["rollout"]["id"] == "r1"
    progressing = next(c for c in endpoint["conditions"] if c["type"] == "Progressing")
    assert (progressing["status"], progressing["reason"]) == (True, "Preparing")


async def test_words_by_hand_move_it_and_say_who_and_why(api: httpx.AsyncClient) -> None:
    await start(api, version="2")
    paused = await api.post("/endpoints/fraud/rollout/pause")
    resumed = await api.post("/endpoints/fraud/rollout/resume", json={})
    aborted = await api.post("/endpoints/fraud/rollout/abort", json={"reason": "wrong file"})
    again = await api.post("/endpoints/fraud/rollout/resume")
    conditions = (await api.get("/endpoints/fraud")).json()["conditions"]
    events = (await api.get("/events?endpoint=fraud")).json()["events"]
    [end] = (await api.get("/endpoints/fraud/history")).json()["rollouts"]

    assert (end["id"], end["phase"], end["decided_by"]) == ("r1", "aborted", "ann@laptop")
    assert (end["from_version"], end["to_version"]) == ("1", "2")
    assert "wrong file" in end["why"]
    assert [a.json()["phase"] for a in (paused, resumed, aborted)] == [
        *("paused", "preparing", "aborted")
    ]
    assert aborted.json()["over"] is True
    assert "wrong file" in aborted.json()["reason"]
    assert "ann@laptop" in aborted.json()["reason"]
    assert again.status_code == 409
    assert {c["type"]: c["status"] for c in conditions}["RolledBack"] is True
    assert [e["reason"] for e in events][-3:] == ["Paused", "Preparing", "Aborted"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({}, 400),
        ({"version": "x"}, 400),
        ({"version": "2", "x": 1}, 400),
        ({"model": "fraud:2", "upstream": {"url": "http://x:1"}}, 400),
        ({"version": "1"}, 400),
        ({"version": "9"}, 400),
        ({"model": "nobody:1"}, 400),
        ({"version": "2", "rollout": {"strategy": "hope"}}, 400),
        ({"version": "2", "rollout": {"strategy": "canary", "steps": []}}, 400),
        ({"upstream": {"url": "no url"}}, 400),
        ({"model": "fraud:3", "rollout": {"strategy": "shadow"}}, 201),
        ({"upstream": {"url": "http://127.0.0.1:9"}, "version": "7"}, 201),
    ],
)
async def test_what_cannot_be_rolled_out_is_refused_before_anything_moves(
    api: httpx.AsyncClient, plane: ControlPlane, body: dict[str, Any], status: int
) -> None:
    answer = await start(api, **body)

    assert answer.status_code == status, answer.text
    assert (plane.target_state.rollouts.get("fraud") is not None) is (status == 201)


async def test_former_rollouts_are_found_and_those_under_way_told_apart(
    api: httpx.AsyncClient,
) -> None:
    await start(api, version="2")
    before = [r["id"] for r in (await api.get("/rollouts?active=true")).json()["rollouts"]]
    await api.post("/endpoints/fraud/rollout/abort")
    ended = (await api.get("/rollouts?active=true")).json()["rollouts"]
    await start(api, version="3")
    former = await api.get("/rollouts/r1")
    listed = [r["id"] for r in (await api.get("/rollouts")).json()["rollouts"]]
    active = (await api.get("/rollouts?active=true&endpoint=fraud")).json()["rollouts"]
    elsewhere = (await api.get("/rollouts?active=true&endpoint=other")).json()["rollouts"]

    assert before == ["r1"]
    assert ended == elsewhere == []
    assert (former.json()["id"], former.json()["phase"]) == ("r1", "aborted")
    assert listed == ["r2", "r1"]
    assert [r["id"] for r in active] == ["r2"]


async def test_only_one_rollout_at_a_time(api: httpx.AsyncClient) -> None:
    await start(api, version="2")
    second = await start(api, version="3")

    assert second.status_code == 409
    assert "promote or abort it first" in second.json()["detail"]


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/endpoints/fraud/rollout", 404, "headrace rollout start fraud"),
        ("GET", "/endpoints/nobody/rollout", 404, "nobody"),
        ("POST", "/endpoints/fraud/rollout/pause", 404, "has no rollout"),
        ("POST", "/endpoints/nobody/rollout/pause", 404, "nobody"),
        ("POST", "/endpoints/fraud/rollout/hasten", 400, "promote"),
        ("GET", "/rollouts/r7", 404, "r7"),
        ("GET", "/rollouts/7", 400, "rollout_id"),
        ("GET", "/rollouts/r7/evidence", 404, "r7"),
        ("GET", "/rollouts/7/evidence", 400, "rollout_id"),
        ("GET", "/rollouts?limit=0", 400, "limit"),
        ("GET", "/rollouts?endpoint=-", 400, "endpoint"),
    ],
)
async def test_what_is_not_there_is_said(
    api: httpx.AsyncClient, method: str, path: str, status: int, text: str
) -> None:
    answer = await api.request(method, path)

    assert answer.status_code == status
    assert text in answer.json()["detail"]


async def test_counts_are_told_as_long_as_they_can_be_read(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    await start(api, version="2")
    await api.post("/endpoints/fraud/rollout/abort")
    told = (await api.get("/endpoints/fraud/rollout")).json()["counted"]
    stored = (await plane.rollouts.records("fraud"))[0]
    old = msgspec.structs.replace(stored, id="r9")
    unreadable = [msgspec.structs.replace(old, evidence=data) for data in (b"", b"of old")]

    assert told["candidate_requests"] == 0
    assert plane.rollouts.counted(old) == told
    assert [plane.rollouts.counted(record) for record in unreadable] == [{}, {}]


async def test_intervals_over_time_are_told_as_long_as_they_can_be_read(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    await start(api, version="2")
    before = (await api.get("/rollouts/r1/evidence")).json()
    await api.post("/endpoints/fraud/rollout/abort")
    record = plane.target_state.rollouts.get("fraud")
    assert record is not None
    evidence = RolloutEvidenceState.start(record.state.settings)
    for at, high in ((10.0, 0.5), (12.0, math.inf)):
        metric = MetricVerdict(
            metric="errors", outcome=Outcome.WAIT, reason="", unit="times", low=0.1, high=high
        )
        evidence.note(RolloutVerdict(outcome=Outcome.WAIT, at=at, metrics=(metric,)))
    former = msgspec.structs.replace(record, id="r9", evidence=evidence.encode())
    plane.target_state.rollouts["fraud"] = former
    after = (await api.get("/rollouts/r9/evidence")).json()
    plane.target_state.rollouts["fraud"] = msgspec.structs.replace(former, evidence=b"of old")
    unreadable = (await api.get("/rollouts/r9/evidence")).json()

    nothing = {"endpoint": "fraud", "step_s": 1.0, "metrics": []}
    unknown = {"effect": None, "margin": None}
    assert (before, unreadable) == ({"id": "r1", **nothing}, {"id": "r9", **nothing})
    assert after["metrics"] == [
        {
            "metric": "errors",
            "unit": "times",
            "points": [
                {"at": 10.0, "low": 0.1, "high": 0.5, **unknown},
                {"at": 12.0, "low": 0.1, "high": None, **unknown},
            ],
        }
    ]


# What the API's description shows is right, and complete.


async def test_every_path_of_the_new_kind_shows_an_example(api: httpx.AsyncClient) -> None:
    described = (await api.get("/openapi.json")).json()
    without = [
        f"{method} {path}"
        for path, methods in described["paths"].items()
        if path.startswith(("/api/v1/endpoints", "/api/v1/rollouts", "/api/v1/models"))
        for method, operation in methods.items()
        if not any(
            "example" in content
            for status, response in operation["responses"].items()
            if status.startswith("2")
            for content in response["content"].values()
        )
    ]

    assert without == []
    known = described["components"]["schemas"]
    named = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(described)))
    assert named <= set(known)
    assert {"ProblemDocument", "KnownVersion", "RolloutStatus", "AppliedView"} <= named


def test_examples_are_of_the_types_that_they_show() -> None:
    for example in examples.START.values():
        StartRollout.model_validate(example["value"])  # raises if it is not
    for example in examples.FEEDBACK.values():
        TypeAdapter(Reward | Truth | Rewards).validate_python(example["value"])
    assert set(examples.ROLLOUT) == set(RolloutStatus.__slots__)
    assert msgspec.convert(examples.EVIDENCE, RolloutEvidence).metrics[0].points[1].low == 0.032


async def promote(api: httpx.AsyncClient, plane: ControlPlane, version: str) -> None:
    """Start a rollout, and set its end: no replica runs that could decide it."""
    await start(api, version=version, rollout={"strategy": "canary"})
    record = plane.target_state.rollouts["fraud"]
    state = msgspec.structs.replace(record.state, phase=RolloutPhase.PROMOTED)
    ended = await plane.store.save_rollout(msgspec.structs.replace(record, state=state), events=[])
    plane.target_state.set_target(rollouts=[ended])


def spec_of(model: str, **more: Any) -> dict[str, Any]:  # noqa: ANN401  # JSON
    return {"endpoints": [{"name": "fraud", "model": model, **more}]}


async def test_the_same_spec_keeps_the_promoted_version_and_says_so(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    await api.post("/apply", json=spec_of("fraud:1"))
    await promote(api, plane, "2")
    before = plane.target_state.desired
    difference = (await api.post("/diff", json=spec_of("fraud:1"))).json()
    applied = (await api.post("/apply", json=spec_of("fraud:1"))).json()

    assert difference["changes"] == applied["changes"] == []
    assert difference["endpoints"] == {}
    assert difference["warnings"] == applied["warnings"]
    assert "keeps version 2 (fraud:2)" in applied["warnings"][0]
    assert plane.target_state.desired is before


async def test_another_setting_in_the_same_spec_keeps_the_promoted_version(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    await api.post("/apply", json=spec_of("fraud:1"))
    await promote(api, plane, "2")
    changed = [
        (await api.post("/apply", json=spec_of("fraud:1", replicas=n))).json()["changes"]
        for n in (2, 3)
    ]
    serving = plane.target_state.serving("fraud")

    assert changed[0] == ["endpoint 'fraud': version 2: replicas 1 becomes 2"]
    assert changed[1] == ["endpoint 'fraud': version 2: replicas 2 becomes 3"]
    assert serving is not None
    assert [arm.key for arm in serving.arms] == ["2"]
    assert plane.target_state.desired.entry("fraud") == {
        "name": "fraud",
        "model": "fraud:2",
        "replicas": 3,
    }


async def test_another_model_in_the_spec_replaces_the_promoted_version(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    canary = {"rollout": {"strategy": "canary"}}
    await api.post("/apply", json=spec_of("fraud:1", **canary))
    await promote(api, plane, "2")
    named = (await api.post("/apply", json=spec_of("fraud:2", **canary))).json()
    difference = (await api.post("/diff", json=spec_of("fraud:1", **canary))).json()
    back = (await api.post("/apply", json=spec_of("fraud:1", **canary))).json()

    assert named["changes"] == named["warnings"] == []
    assert (
        difference["changes"]
        == back["changes"]
        == ["endpoint 'fraud': starts a canary from version 2 to 1 (fraud:1)"]
    )
    assert [record.id for record in plane.target_state.active()] == ["r2"]


async def test_the_same_spec_leaves_a_rollout_under_way_alone(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    await api.post("/apply", json=spec_of("fraud:1"))
    await start(api, version="2")
    applied = (await api.post("/apply", json=spec_of("fraud:1"))).json()

    assert applied["changes"] == []
    assert [record.id for record in plane.target_state.active()] == ["r1"]


async def test_the_same_spec_takes_its_own_version_after_a_rollback(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    await api.post("/apply", json=spec_of("fraud:1"))
    await start(api, version="2")
    await api.post("/endpoints/fraud/rollout/abort")
    applied = (await api.post("/apply", json=spec_of("fraud:1"))).json()

    assert applied["warnings"] == []
    assert plane.target_state.desired.entry("fraud") == {"name": "fraud", "model": "fraud:1"}
    assert plane.target_state.active() == []


async def test_new_content_of_a_file_in_the_spec_replaces_the_promoted_version(
    api: httpx.AsyncClient, plane: ControlPlane, tmp_path: Path
) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(b"one")
    await api.post("/apply", json=spec_of(str(model)))
    await promote(api, plane, "2")
    kept = (await api.post("/apply", json=spec_of(str(model)))).json()
    model.write_bytes(b"four")
    applied = (await api.post("/apply", json=spec_of(str(model)))).json()
    serving = plane.target_state.serving("fraud")

    assert kept["changes"] == []
    assert applied["warnings"] == []
    assert serving is not None
    assert [arm.key for arm in serving.arms] == ["4"]


async def test_a_preview_shows_the_plan_and_changes_nothing(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    plan = {"strategy": "canary", "steps": [{"weight": 10, "pause_s": 5, "until": "verdict"}]}
    shown = (await api.post("/endpoints/fraud/rollout/preview", json={"rollout": plan})).json()
    default = (await api.post("/endpoints/fraud/rollout/preview")).json()
    wrong = await api.post(
        "/endpoints/fraud/rollout/preview", json={"rollout": {"strategy": "guess"}}
    )
    unknown = await api.post("/endpoints/nobody/rollout/preview")

    assert shown["strategy"] == "canary"
    assert [(s["weight"], s["pause_s"], s["until"]) for s in shown["stages"]] == [
        (10, 5.0, "verdict")
    ]
    assert shown["outlook"] is None
    assert "no outlook" in shown["notes"][0]
    assert [stage["weight"] for stage in default["stages"]] == [5, 25, 50]
    assert (wrong.status_code, unknown.status_code) == (400, 404)
    assert plane.target_state.rollout("fraud") is None
    assert plane.target_state.generation("fraud") == 1


async def test_a_preview_of_an_endpoint_with_requests_has_an_outlook(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    now, totals = plane.clock.now(), Counted()
    for second in range(-120, 1):
        totals = totals.after([0.02] * 50)
        plane.telemetry.history.add(now + second, "fraud", "1", totals)
    shown = (await api.post("/endpoints/fraud/rollout/preview")).json()

    assert shown["outlook"]["requests_per_s"] == pytest.approx(50, rel=0.1)
    assert "has its verdict" in shown["notes"][0]
