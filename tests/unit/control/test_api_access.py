"""Nobody passes who is not known, and nobody does more than his roles say."""

import asyncio
import json
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import Route

from headrace.control.api.app import build_api, build_metrics, management_app
from headrace.control.auth.access import AccessControl, make_access
from headrace.control.auth.credentials import csrf_token, hash_of, new_secret
from headrace.control.auth.gatekeeper import RULES, Extent, RuleBook
from headrace.control.model.audit_log import Verifier
from headrace.control.model.credentials import Credential, CredentialKind, Principal
from headrace.control.model.records import Event
from headrace.control.plane.control_plane import ControlPlane
from headrace.core import FailedPreconditionError
from tests.unit.control.api_client import access_of, client_of, document, headers_of, token_of

pytestmark = pytest.mark.anyio
URL = "http://localhost:8080"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "m.onnx"
    path.write_bytes(b"model")
    return path


@dataclass
class Turned:
    """A clock that the test turns."""

    at: float = 0.0

    def now(self) -> float:
        return self.at

    def monotonic(self) -> float:
        return self.at


@pytest.fixture
def access(plane: ControlPlane) -> AccessControl:
    return access_of(plane)


@pytest.fixture
async def admin(plane: ControlPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(plane) as client:
        yield client


@asynccontextmanager
async def stranger_of(
    plane: ControlPlane, access: AccessControl, address: str = "10.0.0.1", **headers: str
) -> AsyncIterator[httpx.AsyncClient]:
    """Somebody with these headers only."""
    app = build_api(plane, access, allowed_hosts=frozenset())
    transport = httpx.ASGITransport(app=app, client=(address, 1), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url=URL, headers=headers) as client:
        yield client


def routes_of(plane: ControlPlane, access: AccessControl) -> set[tuple[str, str]]:
    found = set()
    for route in management_app(plane, access).routes:
        assert isinstance(route, Route | APIRoute), route
        found |= {(method, route.path) for method in route.methods or () if method != "HEAD"}
    return found


def test_every_route_has_a_rule_and_every_rule_a_route(
    plane: ControlPlane, access: AccessControl
) -> None:
    assert routes_of(plane, access) == set(RULES)


def test_only_health_and_login_are_open() -> None:
    public = {path for (_, path), rule in RULES.items() if rule.is_public}

    assert public == {"/api/v1/health", "/auth/login", "/auth/callback", "/auth/token"}


def test_a_route_for_one_endpoint_names_it_in_its_path() -> None:
    for (_, path), rule in RULES.items():
        if rule.extent in {Extent.ENDPOINT, Extent.MODEL}:
            assert "{name}" in path


def test_what_changes_something_needs_an_operator() -> None:
    reads = {"/v2/repository/index"}
    for (method, path), rule in RULES.items():
        if method != "GET" and path not in {*reads, "/auth/logout", "/auth/token"}:
            assert rule.role in {"operator", "admin"}, path


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/v1/stop"),
        ("GET", "/api/v1/status\n"),
        ("GET", "/api/v1/status/"),
        ("GET", "//api/v1/status"),
        ("GET", "/api/v1/endpoints/a/b/c"),
        ("HEAD", "/api/v1/status"),
        ("OPTIONS", "/api/v1/status"),
    ],
)
def test_what_is_no_route_has_no_rule(method: str, path: str) -> None:
    assert RuleBook().find(method, path) is None


async def test_without_a_token_every_route_but_the_open_ones_is_401(
    plane: ControlPlane, access: AccessControl
) -> None:
    async with stranger_of(plane, access) as stranger:
        for (method, path), rule in RULES.items():
            answer = await stranger.request(method, path.replace("{", "").replace("}", ""))
            if rule.is_public:
                assert answer.status_code != 401
                continue
            assert answer.status_code == 401, path
            assert answer.headers["www-authenticate"] == 'Bearer realm="headrace"'
            assert answer.headers["content-type"] == "application/problem+json"
            assert answer.json()["code"] == "UNAUTHENTICATED"


async def test_what_is_not_there_is_told_to_those_who_are_known_only(
    plane: ControlPlane, access: AccessControl, admin: httpx.AsyncClient
) -> None:
    async with stranger_of(plane, access) as stranger:
        unknown = await stranger.get("/api/v1/nothing")
    known = await admin.get("/nothing")

    assert (unknown.status_code, known.status_code) == (401, 404)


async def test_health_tells_nothing_but_that_it_lives(
    plane: ControlPlane, access: AccessControl
) -> None:
    async with stranger_of(plane, access) as stranger:
        answer = await stranger.get("/api/v1/health")

    assert (answer.status_code, answer.json()) == (200, {"alive": True})


@pytest.mark.parametrize(
    "given",
    [
        "Basic YTpi",
        "Bearer",
        "Bearer ",
        "Bearer hrt_aaaaaaaaaaaa_" + "A" * 43,
        "Bearer hr_aaaaaaaaaaaa_" + "A" * 43,
        "hrt_aaaaaaaaaaaa_" + "A" * 43,
        "Bearer hrt_\xff",
    ],
)
async def test_what_is_no_token_of_ours_is_refused(
    plane: ControlPlane, access: AccessControl, given: str
) -> None:
    async with stranger_of(plane, access) as stranger:
        bearer = {b"authorization": given.encode("latin-1")}
        answer = await stranger.get("/api/v1/status", headers=bearer)

    assert answer.status_code == 401


async def test_two_tokens_at_once_are_none(plane: ControlPlane, access: AccessControl) -> None:
    bearer = f"Bearer {token_of(plane)}"
    async with stranger_of(plane, access) as stranger:
        two = [("authorization", bearer), ("authorization", bearer)]
        answer = await stranger.get("/api/v1/status", headers=two)

    assert answer.status_code == 401


async def test_a_body_of_somebody_unknown_is_dropped_after_the_answer(
    plane: ControlPlane, access: AccessControl
) -> None:
    """Unread, it would reset the connection; nothing is kept of it, nor is it waited for long."""
    sent: list[Any] = []
    known_before: list[int] = []

    async def receive() -> dict[str, Any]:
        known_before.append(len(sent))
        return {"type": "http.request", "body": b"", "more_body": True}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/apply",
        "headers": [(b"host", b"localhost")],
        "client": ("10.0.0.1", 1),
    }
    await build_api(plane, access, allowed_hosts=frozenset())(scope, receive, send)

    assert sent[0]["status"] == 401
    assert b"detail" in sent[1]["body"]
    assert set(known_before) == {2}
    assert sent[-1] == {"type": "http.response.body", "body": b""}


# Time.


async def test_a_revoked_token_is_refused_at_once(
    plane: ControlPlane, access: AccessControl, admin: httpx.AsyncClient
) -> None:
    made = (await admin.post("/tokens", json={"owner": "ci", "roles": ["viewer"]})).json()
    bearer = {"authorization": f"Bearer {made['token']}"}
    async with stranger_of(plane, access, **bearer) as ci:
        before = await ci.get("/api/v1/status")
        await access.people.revoke(made["id"], actor="ann")
        after = await ci.get("/api/v1/status")

    assert (before.status_code, after.status_code) == (200, 401)
    assert "is revoked" in after.json()["detail"]


async def test_an_expired_token_is_refused(plane: ControlPlane, access: AccessControl) -> None:
    made = await access.people.create_token("ci", roles=["viewer"], expires_in_s=0.01, actor="ann")
    await asyncio.sleep(0.02)
    async with stranger_of(plane, access, authorization=f"Bearer {made.text}") as ci:
        answer = await ci.get("/api/v1/status")

    assert (answer.status_code, "is expired" in answer.json()["detail"]) == (401, True)


async def test_who_is_disabled_is_out_with_all_tokens_until_enabled(
    plane: ControlPlane, access: AccessControl
) -> None:
    made = await access.people.create_token("ci", roles=["viewer"], expires_in_s=None, actor="ann")
    async with stranger_of(plane, access, authorization=f"Bearer {made.text}") as ci:
        await access.people.change("ci", disabled=True, actor="ann")
        out = await ci.get("/api/v1/status")
        await access.people.change("ci", disabled=False, actor="ann")
        again = await ci.get("/api/v1/status")

    assert (out.status_code, again.status_code) == (401, 200)


async def test_while_the_store_is_away_who_was_known_stays_so(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: str) -> None:
        raise FailedPreconditionError("the database is away")

    clock = Turned()
    access = make_access(plane.store, clock)
    codes = []
    other = headers_of(plane, "other")
    async with stranger_of(plane, access, **headers_of(plane)) as known:
        codes.append((await known.get("/api/v1/spec")).status_code)
        monkeypatch.setattr(plane.store, "credential", away)
        for clock.at in (5.0, 10.0, 890.0, 901.0):
            codes.append((await known.get("/api/v1/spec")).status_code)
        unknown = await known.get("/api/v1/spec", headers=other)

    assert codes == [200, 200, 200, 200, 503]
    assert (unknown.status_code, "cannot authenticate the caller" in unknown.text) == (503, True)


# Guessing.


async def test_whoever_guesses_is_slowed_and_locks_out_nobody_else(
    plane: ControlPlane, access: AccessControl
) -> None:
    right = token_of(plane)
    wrong = f"{right[:-1]}{'A' if right[-1] != 'A' else 'B'}"
    other = token_of(plane, "bob")
    async with stranger_of(plane, access) as guesser:
        guesses = [
            (await guesser.get("/api/v1/spec", headers={"authorization": f"Bearer {wrong}"}))
            for _ in range(12)
        ]
        hit = await guesser.get("/api/v1/spec", headers={"authorization": f"Bearer {right}"})
        bob = await guesser.get("/api/v1/spec", headers={"authorization": f"Bearer {other}"})
    async with stranger_of(plane, access, "10.0.0.2") as elsewhere:
        ann = await elsewhere.get("/api/v1/spec", headers={"authorization": f"Bearer {right}"})

    assert [answer.status_code for answer in guesses] == [401] * 10 + [429] * 2
    assert 1 <= int(guesses[-1].headers["retry-after"]) <= 60
    assert (hit.status_code, bob.status_code, ann.status_code) == (429, 200, 200)


async def test_made_up_tokens_are_slowed_by_address(
    plane: ControlPlane, access: AccessControl
) -> None:
    async with stranger_of(plane, access) as guesser:
        codes = [
            (
                await guesser.get(
                    "/api/v1/spec", headers={"authorization": f"Bearer {new_secret('hrt')[1]}"}
                )
            ).status_code
            for _ in range(12)
        ]
        known = await guesser.get("/api/v1/spec", headers=headers_of(plane))

    assert codes == [401] * 10 + [429] * 2
    assert known.status_code == 200


async def test_failed_attempts_are_in_the_trail_but_not_each(
    plane: ControlPlane, access: AccessControl
) -> None:
    async with stranger_of(plane, access) as guesser:
        for _ in range(20):
            await guesser.get("/api/v1/spec", headers={"authorization": "Bearer hrt_x"})

    entries = [e for e in plane.store.trail.blocking() if e.action == "login.failed"]
    assert [(e.actor, e.object) for e in entries] == [("", "10.0.0.1")] * 2


# Roles.


async def test_a_viewer_reads_and_changes_nothing(
    plane: ControlPlane, admin: httpx.AsyncClient, model: Path
) -> None:
    await admin.post("/apply", json=document(model, "a"))
    async with client_of(plane, "viewer") as viewer:
        reads = [
            (await viewer.get(path)).status_code
            for path in ("/status", "/endpoints/a", "/endpoints/a/history", "/models", "/events")
        ]
        changes = [
            (await viewer.put("/endpoints/a", json={})),
            (await viewer.delete("/endpoints/a")),
            (await viewer.post("/apply", json=document(model, "a"))),
            (await viewer.post("/diff", json=document(model, "a"))),
            (await viewer.post("/endpoints/a/undo")),
            (await viewer.post("/endpoints/a/rollout", json={"version": "2"})),
            (await viewer.post("/models/a?filename=m", content=b"x")),
            (await viewer.post("/gc")),
            (await viewer.post("/feedback", json={"request_id": "x", "reward": 1})),
            (await viewer.get("/trail")),
            (await viewer.get("/users")),
            (await viewer.post("/stop")),
        ]

    assert reads == [200] * 5
    assert [answer.status_code for answer in changes] == [403] * len(changes)
    detail = changes[0].json()["detail"]
    assert "has viewer, but this needs operator:a" in detail
    assert "headrace users grant" in detail


async def test_an_operator_changes_what_is_served_but_not_who_may(
    plane: ControlPlane, model: Path
) -> None:
    async with client_of(plane, "operator") as operator:
        plane.registry.push("m", model)
        applied = await operator.post("/apply", json=document(Path("m:1"), "a"))
        codes = [
            (await operator.get("/users")).status_code,
            (await operator.post("/users", json={"name": "eve"})).status_code,
            (await operator.post("/tokens", json={"owner": "eve"})).status_code,
            (await operator.get("/trail")).status_code,
            (await operator.post("/stop")).status_code,
        ]

    assert applied.status_code == 200
    assert codes == [403] * 5
    assert not plane.stop_requested.is_set()


async def test_an_operator_of_one_endpoint_changes_that_one_only(
    plane: ControlPlane, admin: httpx.AsyncClient, model: Path
) -> None:
    await admin.post("/apply", json=document(model, "a", "b"))
    async with client_of(plane, "operator:a") as mine:
        put = await mine.put("/endpoints/a", json={"model": str(model), "timeout_s": 3})
        new = await mine.put("/endpoints/c", json={"model": str(model)})
        other = await mine.delete("/endpoints/b")
        unload = await mine.post(f"{URL}/v2/repository/models/b/unload")
        gone = await mine.delete("/endpoints/a")

    assert (put.status_code, gone.status_code) == (200, 200)
    assert [new.status_code, other.status_code, unload.status_code] == [403] * 3
    assert [endpoint.name for endpoint in plane.target_state.desired.endpoints] == ["b"]


async def test_an_apply_of_everything_may_not_change_others(
    plane: ControlPlane, admin: httpx.AsyncClient, model: Path
) -> None:
    both = document(model, "a", "b")
    await admin.post("/apply", json=both)
    mine, other = ({"name": name, "model": str(model), "timeout_s": 2} for name in "ab")
    plain = {"name": "b", "model": str(model)}
    async with client_of(plane, "operator:a") as operator:
        refused = [
            await operator.post("/apply", json=wanted)
            for wanted in (
                {"endpoints": [mine]},
                {"endpoints": [mine, other]},
                {"endpoints": [mine, plain, {"name": "c", "model": str(model)}]},
                {"endpoints": [mine, plain], "gateway": {"http_port": 9}},
                {"endpoints": [mine, plain], "pools": [{"name": "p", "memory": "1GB"}]},
            )
        ]
        diffed = await operator.post("/diff", json={"endpoints": [mine]})
        taken = await operator.post("/apply", json={"endpoints": [mine, plain]})

    codes = [answer.status_code for answer in refused]
    assert set(codes) <= {400, 403}, [answer.text for answer in refused]
    assert codes[:4] == [403] * 4
    assert "'b'" not in refused[0].text
    assert diffed.status_code == 403
    assert taken.status_code == 200
    assert plane.target_state.desired.entry("a") == mine


async def test_an_apply_that_would_serve_a_newer_version_elsewhere_is_refused(
    plane: ControlPlane, admin: httpx.AsyncClient
) -> None:
    await admin.post("/models/m?filename=m", content=b"one")
    spec = {"endpoints": [{"name": name, "model": "m"} for name in "ab"]}
    await admin.post("/apply", json=spec)
    await admin.post("/models/m?filename=m", content=b"two")
    async with client_of(plane, "operator:a") as operator:
        answer = await operator.post("/apply", json=spec)

    assert (answer.status_code, plane.target_state.desired.generation) == (403, 1)


async def test_lists_hold_what_the_caller_may_see(
    plane: ControlPlane, admin: httpx.AsyncClient, model: Path
) -> None:
    await admin.post("/apply", json=document(model, "a", "b") | {"gateway": {"http_port": 9}})
    await admin.post("/models/spare?filename=m", content=b"spare")
    plane.home.log_of("b-1-1").write_text("secret of b\n")
    async with client_of(plane, "viewer:a") as viewer:
        status = (await viewer.get("/status")).json()
        spec = (await viewer.get("/spec")).json()["spec"]
        endpoints = (await viewer.get("/endpoints")).json()["endpoints"]
        events = (await viewer.get("/events")).json()["events"]
        models = (await viewer.get("/models")).json()["models"]
        index = (await viewer.post(f"{URL}/v2/repository/index")).json()
        logs = await viewer.get("/logs")
        refused = [
            (await viewer.get(path)).status_code
            for path in (
                *(
                    "/endpoints/b",
                    "/endpoints/nobody",
                    "/endpoints/b/history",
                    "/events?endpoint=b",
                ),
                *("/models/b", "/models/spare", "/models/b/versions/1", f"{URL}/metrics"),
                *(f"{URL}/v2/models/b/stats", "/watch?endpoint=b"),
            )
        ]
        log = await viewer.get("/logs?source=b-1-1")

    assert [one["name"] for one in status["endpoints"]] == ["a"]
    assert spec == {"version": 1, "endpoints": [{"name": "a", "model": str(model)}]}
    assert [one["name"] for one in endpoints] == ["a"]
    assert {event["endpoint"] for event in events} == {"a"}
    assert {one["name"] for one in models} == {"a"}
    assert {one["name"] for one in index} == {"a"}
    assert refused == [403] * 10
    assert (logs.text, log.status_code) == ("", 400)


async def test_rollouts_of_others_are_not_told(plane: ControlPlane) -> None:
    async with client_of(plane, "viewer:a") as viewer:
        found = await viewer.get("/rollouts/r1")
        evidence = await viewer.get("/rollouts/r1/evidence")
        listed = await viewer.get("/rollouts")
        of_other = await viewer.get("/rollouts?endpoint=b")

    assert found.status_code == evidence.status_code == 404
    assert listed.json() == of_other.json() == {"rollouts": []}


async def test_a_stream_of_events_leaves_others_out(plane: ControlPlane) -> None:
    of = {
        name: Event(at=1.0, endpoint=name, kind="spec", reason="x", message=name) for name in "ab"
    }
    await plane.journal.write([of["b"], of["a"], of["b"]])
    async with client_of(plane, "viewer:a") as viewer:
        asyncio.get_running_loop().call_later(1.0, plane.stop_requested.set)
        text = (await viewer.get("/watch?after=0")).text

    told = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: ")]
    assert [event["message"] for event in told] == ["a"]


async def test_models_are_pushed_by_whoever_operates_their_endpoints(
    plane: ControlPlane, admin: httpx.AsyncClient
) -> None:
    await admin.post("/models/shared?filename=m", content=b"shared")
    spec = {"endpoints": [{"name": name, "model": "shared:1"} for name in "ab"]}
    await admin.post("/apply", json=spec)
    async with client_of(plane, "operator:a") as operator:
        codes = [
            (await operator.post(path, content=b"new")).status_code
            for path in (
                "/models/a?filename=m",
                "/models/shared?filename=m",
                "/models/b?filename=m",
            )
        ]

    assert codes == [201, 403, 403]


# Users, tokens, trail.


async def test_users_are_added_changed_and_listed(admin: httpx.AsyncClient) -> None:
    added = await admin.post("/users", json={"name": "bob", "roles": ["viewer"]})
    again = await admin.post("/users", json={"name": "bob"})
    changed = await admin.post(
        "/users/change", json={"name": "bob", "grant": ["operator:a"], "revoke": ["viewer"]}
    )
    odd = await admin.post("/users/change", json={"name": "bob", "grant": ["king"]})
    nobody = await admin.post("/users/change", json={"name": "eve", "disabled": True})
    users = (await admin.get("/users")).json()["users"]

    assert (added.status_code, again.status_code) == (201, 409)
    assert changed.json()["roles"] == ["operator:a"]
    assert (odd.status_code, nobody.status_code) == (400, 404)
    assert {one["name"]: one["roles"] for one in users}["bob"] == ["operator:a"]


async def test_a_token_is_shown_once_and_kept_as_its_hash(
    plane: ControlPlane, admin: httpx.AsyncClient
) -> None:
    made = await admin.post("/tokens", json={"owner": "ci", "roles": ["operator:a"]})
    listed = await admin.get("/tokens")
    other = await admin.post("/tokens", json={"owner": "ci", "roles": ["admin"]})
    more = await admin.post("/tokens", json={"owner": "ci", "expires_in_s": None})
    none = await admin.post("/tokens", json={"owner": "nobody"})
    trail = (await admin.get("/trail")).text
    token = made.json()["token"]

    assert made.status_code == more.status_code == 201
    assert made.headers["cache-control"] == "no-store"
    assert token not in listed.text + trail
    assert token.encode() not in (plane.home.root / "state.db").read_bytes()
    assert (other.status_code, none.status_code) == (400, 400)
    assert more.json()["expires"] is None


async def test_a_key_is_no_token_and_is_not_revoked_as_one(
    plane: ControlPlane, admin: httpx.AsyncClient
) -> None:
    id_, text = new_secret("hr")
    key = Credential(id=id_, kind=CredentialKind.KEY, owner="app", hash=hash_of(text), created=1.0)
    plane.store.add_credential.blocking(key)

    assert (await admin.delete(f"/tokens/{id_}")).status_code == 404


async def test_every_change_is_in_the_trail_with_who_and_what(
    plane: ControlPlane, admin: httpx.AsyncClient, model: Path
) -> None:
    await admin.post("/apply", json=document(model, "a"))
    await admin.put("/endpoints/a", json={"model": str(model), "timeout_s": 9})
    await admin.post("/endpoints/a/undo")
    other = model.with_name("other.onnx")
    await asyncio.to_thread(other.write_bytes, b"other")
    await admin.post("/endpoints/a/rollout", json={"model": str(other)})
    await admin.post("/endpoints/a/rollout/abort", json={"reason": "no"})
    await admin.delete("/endpoints/a")
    pushed = await admin.post("/models/m?filename=m", content=b"m")
    await admin.delete("/models/m/versions/1")
    await admin.post("/gc")
    token = (await admin.post("/tokens", json={"owner": "ci", "roles": ["viewer"]})).json()
    await admin.delete(f"/tokens/{token['id']}")
    await admin.post("/users/change", json={"name": "ci", "disabled": True})
    await admin.post("/stop")
    entries = (await admin.get("/trail?limit=1000")).json()["entries"]

    assert pushed.status_code == 201
    assert [entry["action"] for entry in entries] == [
        *("apply", "endpoint.put", "endpoint.undo", "rollout.start", "rollout.abort"),
        *("endpoint.remove", "model.push", "model.remove", "model.gc"),
        *("user.add", "token.create", "token.revoke", "user.change", "system.stop"),
    ]
    assert {entry["actor"] for entry in entries} == {"ann@laptop"}
    put = entries[1]
    assert json.loads(put["before"])["endpoints"]["a"]["spec"] == {"name": "a", "model": str(model)}
    assert json.loads(put["after"])["endpoints"]["a"]["spec"]["timeout_s"] == 9
    assert Verifier().read(plane.store.trail.blocking()) is None


async def test_a_change_that_fails_is_not_in_the_trail(
    plane: ControlPlane, admin: httpx.AsyncClient, model: Path
) -> None:
    await admin.post("/apply", json={"endpoints": [{"name": "a", "model": "nothing:1"}]})
    await admin.post("/apply", json=document(model, "a"))
    await admin.post("/apply", json=document(model, "a"))

    assert [entry.action for entry in plane.store.trail.blocking()] == ["apply"]


async def test_whoami_says_who_asks(plane: ControlPlane) -> None:
    async with client_of(plane, "viewer", "operator:a") as client:
        answer = (await client.get("/whoami")).json()

    assert answer["roles"] == ["viewer", "operator:a"]
    assert answer["csrf_token"] == ""


# Sessions.


def session_of(
    plane: ControlPlane, access: AccessControl, *roles: str, now: float | None = None
) -> str:
    store = plane.store
    store.save_principal.blocking(Principal(name="ann", kind="user", created=1.0))
    at = plane.clock.now() if now is None else now
    session = access.authenticator.rules.begin("ann", roles, now=at, by="idp")
    store.add_credential.blocking(session.credential)
    return session.text


async def test_a_session_changes_things_only_with_its_token_and_from_its_own_pages(
    plane: ControlPlane, access: AccessControl
) -> None:
    cookie = session_of(plane, access, "admin")
    right = {"origin": URL, "x-csrf-token": csrf_token(cookie)}
    tries = [
        right,
        {"sec-fetch-site": "same-origin", "x-csrf-token": csrf_token(cookie)},
        {},
        {"x-csrf-token": csrf_token(cookie)},
        {"origin": URL},
        {"origin": URL, "x-csrf-token": csrf_token("other")},
        {"origin": "http://evil.example", "x-csrf-token": csrf_token(cookie)},
        {"sec-fetch-site": "same-site", "x-csrf-token": csrf_token(cookie)},
    ]
    async with stranger_of(plane, access, cookie=f"x=1; headrace-session={cookie}") as browser:
        read = await browser.get("/api/v1/whoami")
        codes = [(await browser.post("/api/v1/gc", headers=one)).status_code for one in tries]

    assert read.json() == {
        "name": "ann",
        "kind": "user",
        "roles": ["admin"],
        "csrf_token": csrf_token(cookie),
    }
    assert codes == [200, 200] + [403] * 6


async def test_a_session_ends_when_it_is_idle_or_old(plane: ControlPlane) -> None:
    clock = Turned()
    access = make_access(plane.store, clock)
    cookie = session_of(plane, access, "viewer", now=0.0)
    codes = []
    async with stranger_of(plane, access, cookie=f"headrace-session={cookie}") as browser:
        for tenths in (9, 18, 27, 36, 45, 54, 63, 72, 81, 90, 99, 108, 117, 119.9, 120.1):
            clock.at = 360.0 * tenths
            codes.append((await browser.get("/api/v1/whoami")).status_code)
    idle = session_of(plane, access, "viewer", now=clock.at)
    clock.at += 3601.0
    async with stranger_of(plane, access, cookie=f"headrace-session={idle}") as browser:
        late = await browser.get("/api/v1/whoami")

    assert codes == [200] * 14 + [401]
    assert late.status_code == 401


async def test_a_cookie_that_is_there_twice_or_made_up_is_none(
    plane: ControlPlane, access: AccessControl
) -> None:
    cookie = session_of(plane, access, "viewer")
    twice = f"headrace-session={cookie}; headrace-session={cookie}"
    async with stranger_of(plane, access) as browser:
        codes = [
            (await browser.get("/api/v1/whoami", headers={"cookie": text})).status_code
            for text in (twice, "headrace-session=hrs_x", f"headrace-session={token_of(plane)}")
        ]

    assert codes == [401] * 3


async def test_nobody_logs_in_where_there_is_no_identity_provider(
    plane: ControlPlane, access: AccessControl, admin: httpx.AsyncClient
) -> None:
    async with stranger_of(plane, access) as browser:
        answers = [await browser.get(f"/auth/{path}") for path in ("login", "callback")]
    logout = await admin.post(f"{URL}/auth/logout")

    assert [answer.status_code for answer in answers] == [404, 404]
    assert "--oidc-issuer" in answers[0].text
    assert logout.status_code == 409


# Metrics.


async def test_metrics_beyond_loopback_are_for_viewers_of_everything(
    plane: ControlPlane, access: AccessControl
) -> None:
    app = build_metrics(plane, access, is_open=False)
    transport = httpx.ASGITransport(app=app, client=("10.0.0.1", 1))
    codes = {}
    async with httpx.AsyncClient(transport=transport, base_url="http://any.name") as client:
        codes["nobody"] = (await client.get("/metrics")).status_code
        for roles in (("viewer",), ("viewer:a",)):
            headers = headers_of(plane, "-".join(roles), *roles)
            codes[roles[0]] = (await client.get("/metrics", headers=headers)).status_code

    assert codes == {"nobody": 401, "viewer": 200, "viewer:a": 403}
