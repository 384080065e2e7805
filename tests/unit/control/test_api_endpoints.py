"""Endpoints over the management API: conditional changes, history, the way back, differences."""

import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.api.endpoints import Precondition, _precondition
from headrace.control.asgi.guards import StaleError
from headrace.control.plane.control_plane import ControlPlane
from headrace.core import ConflictError, InvalidArgumentError
from tests.unit.control.api_client import client_of, document

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(plane: ControlPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(plane) as client:
        yield client


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"model")
    return path


def entry(model: Path, **more: Any) -> dict[str, Any]:  # noqa: ANN401  # as JSON has it
    return {"model": str(model), **more}


async def test_an_endpoint_is_put_alone_and_read_with_its_generation(
    api: httpx.AsyncClient, model: Path
) -> None:
    await api.post("/apply", json=document(model, "a"))
    created = await api.put("/endpoints/b", json=entry(model))
    changed = await api.put("/endpoints/b", json=entry(model, timeout_s=5.0))
    same = await api.put("/endpoints/b", json=entry(model, timeout_s=5.0))
    read = await api.get("/endpoints/b")
    names = [view["name"] for view in (await api.get("/endpoints")).json()["endpoints"]]

    assert (created.status_code, changed.status_code) == (201, 200)
    assert [answer.headers["etag"] for answer in (created, changed, same, read)] == [
        *('"1"', '"2"', '"2"', '"2"')
    ]
    assert same.json()["changes"] == []
    assert read.json()["spec"] == {"name": "b", **entry(model, timeout_s=5.0)}
    assert read.json()["rollout"] is None
    assert [c["type"] for c in read.json()["conditions"]] == [
        *("Ready", "Progressing", "RolledBack", "Scaled", "AnswersIndependent")
    ]
    assert names == ["a", "b"]


async def test_conditions_keep_their_time_from_one_look_to_the_next(
    api: httpx.AsyncClient, model: Path
) -> None:
    await api.put("/endpoints/a", json=entry(model))
    first = (await api.get("/endpoints/a")).json()["conditions"]
    second = (await api.get("/endpoints/a")).json()["conditions"]

    assert [c["since"] for c in first] == [c["since"] for c in second]


async def test_two_writers_never_lose_an_update(api: httpx.AsyncClient, model: Path) -> None:
    await api.put("/endpoints/a", json=entry(model))
    mine = await api.put(
        "/endpoints/a", json=entry(model, timeout_s=1.0), headers={"if-match": '"1"'}
    )
    theirs = await api.put(
        "/endpoints/a", json=entry(model, timeout_s=9.0), headers={"if-match": '"1"'}
    )
    kept = (await api.get("/endpoints/a")).json()["spec"]["timeout_s"]

    assert mine.status_code == 200
    assert theirs.status_code == 412
    assert theirs.json()["code"] == "ABORTED"
    assert "generation 2, not 1" in theirs.json()["detail"]
    assert kept == 1.0


@pytest.mark.parametrize(
    ("headers", "exists", "missing"),
    [
        ({}, 200, 201),
        ({"if-match": "*"}, 200, 412),
        ({"if-match": '"7", "1"'}, 200, 412),
        ({"if-none-match": "*"}, 412, 201),
        ({"if-none-match": '"1"'}, 400, 400),
        ({"if-none-match": "*", "if-match": "*"}, 400, 400),
        ({"if-match": "1"}, 400, 400),
        ({"if-match": 'W/"1"'}, 400, 400),
        ({"if-match": '"1" "2"'}, 400, 400),
    ],
)
async def test_preconditions_are_kept(
    api: httpx.AsyncClient, model: Path, headers: dict[str, str], exists: int, missing: int
) -> None:
    await api.put("/endpoints/a", json=entry(model))
    body = entry(model, timeout_s=2.0)
    answers = [
        await api.put(f"/endpoints/{name}", json=body, headers=headers) for name in ("a", "b")
    ]

    assert [answer.status_code for answer in answers] == [exists, missing]


async def test_deleting_may_be_conditional_too(api: httpx.AsyncClient, model: Path) -> None:
    await api.put("/endpoints/a", json=entry(model))
    stale = await api.delete("/endpoints/a", headers={"if-match": '"3"'})
    done = await api.delete("/endpoints/a", headers={"if-match": '"1"'})
    gone = await api.delete("/endpoints/a")

    assert [stale.status_code, done.status_code, gone.status_code] == [412, 200, 404]


async def test_an_endpoint_that_is_a_fallback_cannot_be_removed(api: httpx.AsyncClient) -> None:
    server = {"upstream": {"url": "http://8.8.8.8", "protocol": "openai"}}
    early = await api.put("/endpoints/a", json={**server, "fallback": "b"})
    for name in ("a", "b"):
        await api.put(f"/endpoints/{name}", json=server)
    added = await api.put("/endpoints/a", json={**server, "fallback": "b"})
    kept = await api.delete("/endpoints/b")
    left = await api.put("/endpoints/a", json=server)
    removed = await api.delete("/endpoints/b")

    assert "there is no endpoint 'b'" in early.text
    assert added.json()["changes"] == ["endpoint 'a': fallback added"]
    assert kept.status_code == 409
    assert "'b' is the fallback of endpoint 'a'; remove `fallback` there first" in kept.text
    assert left.json()["changes"] == ["endpoint 'a': fallback removed"]
    assert removed.status_code == 200


@given(st.lists(st.integers(0, 10**18 - 1), min_size=1, max_size=5), st.integers(0, 3))
def test_only_the_generations_that_were_read_are_changed(read: list[int], current: int) -> None:
    precondition = _precondition(", ".join(f'"{number}"' for number in read), None)

    if current and current in read:
        assert precondition.expected("m", current) == current
    else:
        with pytest.raises(StaleError):
            precondition.expected("m", current)


def test_a_change_in_between_is_the_preconditions_failure_only_if_there_is_one() -> None:
    def change(precondition: Precondition) -> None:
        with precondition.held():
            raise ConflictError("somebody was faster")

    with pytest.raises(StaleError, match="faster"):
        change(Precondition(must_exist=True))
    with pytest.raises(ConflictError) as caught:
        change(Precondition())
    assert type(caught.value) is ConflictError


def test_a_long_header_is_cut_in_the_message() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        _precondition("x" * 900, None)
    assert len(str(caught.value)) < 200


async def test_history_tells_who_changed_what_and_undo_goes_back(
    api: httpx.AsyncClient, model: Path
) -> None:
    await api.put("/endpoints/a", json=entry(model, timeout_s=1.0))
    await api.put("/endpoints/a", json=entry(model, timeout_s=2.0), headers={})
    undone = await api.post("/endpoints/a/undo")
    history = (await api.get("/endpoints/a/history")).json()
    one = await api.get("/endpoints/a/history/2")
    newest = (await api.get("/endpoints/a/history?limit=1")).json()["generations"]

    assert undone.headers["etag"] == '"3"'
    assert history["endpoint"] == "a"
    assert [(e["generation"], e["current"], e["actor"]) for e in history["generations"]] == [
        (3, True, "ann@laptop"),
        (2, False, "ann@laptop"),
        (1, False, "ann@laptop"),
    ]
    assert [e["spec"]["timeout_s"] for e in history["generations"]] == [1.0, 2.0, 1.0]
    assert one.json() == history["generations"][1]
    assert one.json()["versions"] == [
        {"version": "1", "model": "a:1", "weight": 100, "replicas": 1}
    ]
    assert newest == history["generations"][:1]


async def test_undo_takes_a_generation_and_brings_back_what_was_removed(
    api: httpx.AsyncClient, model: Path
) -> None:
    for timeout_s in (1.0, 2.0, 3.0):
        await api.put("/endpoints/a", json=entry(model, timeout_s=timeout_s))
    first = await api.post("/endpoints/a/undo", json={"generation": 1})
    waited = await api.post("/endpoints/a/undo?wait_s=0.01", json={"generation": 2})
    await api.delete("/endpoints/a")
    removed = (await api.get("/endpoints/a/history")).json()["generations"][0]
    back = await api.post("/endpoints/a/undo")
    spec = (await api.get("/endpoints/a")).json()["spec"]

    assert first.status_code == 200
    assert waited.json()["ready"] is False
    assert "a" in waited.json()["not_ready"]
    assert (removed["spec"], removed["versions"], removed["current"]) == (None, [], False)
    assert back.status_code == 200
    assert spec["timeout_s"] == 2.0


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/endpoints/nobody", 404),
        ("GET", "/endpoints/nobody/history", 404),
        ("GET", "/endpoints/a/history/9", 404),
        ("GET", "/endpoints/a/history/0", 400),
        ("GET", "/endpoints/a/history/x", 400),
        ("GET", "/endpoints/a/history?limit=0", 400),
        ("GET", "/endpoints/a/history?limit=1001", 400),
        ("GET", "/endpoints/-bad-", 400),
        ("POST", "/endpoints/a/undo", 409),
        ("POST", "/endpoints/nobody/undo", 404),
    ],
)
async def test_what_is_not_there_or_not_allowed_is_a_problem(
    api: httpx.AsyncClient, model: Path, method: str, path: str, status: int
) -> None:
    await api.put("/endpoints/a", json=entry(model))
    answer = await api.request(method, path)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"


async def test_a_wrong_entry_is_told_with_its_mistakes(api: httpx.AsyncClient, model: Path) -> None:
    typo = await api.put("/endpoints/a", json={"modle": str(model)})
    other = await api.put("/endpoints/a", json={"name": "b", "model": str(model)})
    name = await api.put(
        "/endpoints/a", content=b"[1]", headers={"content-type": "application/json"}
    )
    extra = await api.post("/endpoints/a/undo", json={"generation": 1, "x": 2})

    assert [a.status_code for a in (typo, other, name, extra)] == [400] * 4
    assert any("modle" in mistake["place"] for mistake in typo.json()["errors"])


async def test_diff_shows_what_apply_would_change_and_changes_nothing(
    api: httpx.AsyncClient, plane: ControlPlane, model: Path
) -> None:
    await api.post("/apply", json=document(model, "a", "b"))
    found = (await api.post("/diff", json=document(model, "b", "c"))).json()
    nothing = (await api.post("/diff", json=document(model, "a", "b"))).json()
    wrong = await api.post("/diff", json={"endpoints": [{"nam": 1}]})

    assert len(found["changes"]) == 2
    assert found["endpoints"] == {
        "a": {"before": {"name": "a", "model": str(model)}, "after": None},
        "c": {"before": None, "after": {"name": "c", "model": str(model)}},
    }
    assert nothing == {"changes": [], "endpoints": {}, "warnings": []}
    assert wrong.status_code == 400
    assert [e.name for e in plane.target_state.desired.endpoints] == ["a", "b"]


async def test_apply_may_expect_generations(api: httpx.AsyncClient, model: Path) -> None:
    await api.post("/apply", json=document(model, "a"))
    fine = await api.post("/apply?expected=a:1&expected=b:0", json=document(model, "a", "b"))
    stale = await api.post("/apply?expected=a:1&expected=b:0", json=document(model, "a"))
    odd = [
        await api.post(f"/apply?expected={text}", json=document(model, "a"))
        for text in ("a", ":1", "a:x", "a:-1")
    ]

    assert fine.status_code == 200
    assert stale.status_code == 409
    assert stale.json()["code"] == "ABORTED"
    assert [answer.status_code for answer in odd] == [400] * 4


async def test_who_asks_is_who_is_known_and_not_what_a_header_says(
    api: httpx.AsyncClient, model: Path
) -> None:
    await api.put("/endpoints/a", json=entry(model), headers={"x-headrace-actor": "eve"})
    history = (await api.get("/endpoints/a/history")).json()["generations"]

    assert history[0]["actor"] == "ann@laptop"


async def test_a_patch_adds_an_endpoint_and_changes_only_the_given_fields(
    api: httpx.AsyncClient, model: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.onnx"
    other.write_bytes(b"other")
    await api.post("/apply", json=document(model, "a"))
    added = await api.patch("/endpoints/b", json=entry(model, replicas=2))
    changed = await api.patch("/endpoints/b", json=entry(other))
    removed = await api.patch("/endpoints/b", json={"replicas": None})
    wrong = await api.patch("/endpoints/b", json={"name": "c"})
    read = (await api.get("/endpoints")).json()["endpoints"]

    assert (added.status_code, changed.status_code, wrong.status_code) == (201, 200, 400)
    assert changed.json()["changes"] == [
        "endpoint 'b': version 1 removed",
        "endpoint 'b': version 2 (b:2, weight 100, 2 replicas) added",
    ]
    assert removed.json()["changes"] == ["endpoint 'b': version 2: replicas 2 becomes 1"]
    assert [view["spec"] for view in read] == [
        {"name": "a", **entry(model)},
        {"name": "b", **entry(other)},
    ]


async def test_a_patched_model_replaces_a_split_and_starts_the_rollout_of_the_entry(
    api: httpx.AsyncClient, model: Path, tmp_path: Path, plane: ControlPlane
) -> None:
    plane.registry.push("a", model)
    other = tmp_path / "other.onnx"
    other.write_bytes(b"other")
    split = [{"model": "a:1", "weight": 100}]
    await api.put("/endpoints/a", json={"versions": split, "rollout": {"strategy": "canary"}})
    changed = await api.patch("/endpoints/a", json=entry(other))

    assert changed.json()["changes"] == ["endpoint 'a': starts a canary from version 1 to 2 (a:2)"]
    assert plane.target_state.desired.entry("a") == {
        "name": "a",
        "rollout": {"strategy": "canary"},
        **entry(other),
    }


async def test_a_patch_with_a_repository_adds_its_models_and_drops_those_that_are_gone(
    api: httpx.AsyncClient, model: Path, tmp_path: Path, plane: ControlPlane
) -> None:
    repository = tmp_path / "models"
    for name in ("x", "y"):
        (repository / name / "1").mkdir(parents=True)
        (repository / name / "1" / "model.onnx").write_bytes(name.encode())
    await api.post("/apply", json=document(model, "a"))
    added = await api.patch("/endpoints/models", json=entry(repository))
    names = [endpoint.name for endpoint in plane.target_state.desired.endpoints]
    shutil.rmtree(repository / "y")
    again = await api.patch("/endpoints/models", json=entry(repository))

    assert added.status_code == 201, added.text
    assert names == ["a", "x", "y"]
    assert again.json()["changes"] == ["endpoint 'y' removed"]


async def test_a_repository_does_not_take_the_name_of_an_endpoint_in_the_spec(
    api: httpx.AsyncClient, model: Path, tmp_path: Path
) -> None:
    repository = tmp_path / "models"
    (repository / "a" / "1").mkdir(parents=True)
    (repository / "a" / "1" / "model.onnx").write_bytes(b"a")
    await api.post("/apply", json=document(model, "a"))
    refused = await api.patch("/endpoints/models", json=entry(repository))

    assert refused.status_code == 409
    assert "'a'" in refused.json()["detail"]
