"""Every action of the console: confirmed, done, in the audit log, and refused without the role."""

import re
from collections.abc import Mapping
from typing import Any, Final

import httpx
import pytest

from headrace.control.plane.control_plane import ControlPlane
from tests.unit.console.browser import hidden_of, visitor_of
from tests.unit.control.api_client import client_of
from tests.unit.monitor.counted import Counted

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
CANARY: Final = {"model": "fraud:2", "strategy": "canary", "steps": "10, 40", "until": "verdict"}
KEYS: Final = "/access/keys/new"
"""Keys need a gateway that runs: end-to-end tests create them."""
OPERATOR: Final[tuple[tuple[str, dict[str, str], str], ...]] = (
    ("/endpoints/churn/scale", {"replicas": "3"}, "endpoint.scale"),
    ("/endpoints/churn/pause", {}, "endpoint.pause"),
    ("/endpoints/churn/resume", {}, "endpoint.resume"),
    ("/endpoints/churn/undo/1", {}, "endpoint.undo"),
    ("/endpoints/churn/rollout", {**CANARY, "action": "start"}, "rollout.start"),
    ("/models/fraud/2/serve", {"endpoint": "third", "replicas": "2"}, "endpoint.put"),
    (KEYS, {"name": "shop", "scopes": "infer:churn", "days": "9"}, "key.create"),
)
"""Path of each action of operators, its form, and its action in the audit log."""
ADMIN: Final[tuple[tuple[str, dict[str, str], str], ...]] = (
    ("/access/users/new", {"name": "ann", "kind": "user", "roles": "viewer"}, "user.add"),
    ("/access/tokens/new", {"owner": "ci", "roles": "viewer", "days": ""}, "token.create"),
)


async def send(visitor: httpx.AsyncClient, path: str, form: Mapping[str, str]) -> httpx.Response:
    """Open a page and send its form."""
    page = await visitor.get(path)
    assert page.status_code == 200, page.text
    return await visitor.post(path, data={**hidden_of(page.text), **form})


async def forged(visitor: httpx.AsyncClient, path: str, form: Mapping[str, str]) -> int:
    """Send a form without its page, with the token of another page."""
    token = hidden_of((await visitor.get("/")).text)
    return (await visitor.post(path, data={**token, **form})).status_code


async def audit_log(plane: ControlPlane) -> list[dict[str, Any]]:
    """The entries without logins."""
    async with client_of(plane) as api:
        entries = (await api.get("/trail?newest=true")).json()["entries"]
    return [entry for entry in entries if entry["action"] != "login"]


@pytest.mark.parametrize(
    ("path", "form", "action"), [row for row in (*OPERATOR, *ADMIN) if row[0] != KEYS]
)
async def test_an_action_is_confirmed_and_in_the_audit_log(
    served: ControlPlane, path: str, form: dict[str, str], action: str
) -> None:
    async with client_of(served) as api:
        if action == "endpoint.resume":
            await api.post("/endpoints/churn/pause")
        if action == "endpoint.undo":
            await api.post("/endpoints/churn/scale", json={"replicas": 2})
    async with visitor_of(served) as visitor:
        answer = await send(visitor, path, form)
    last = (await audit_log(served))[-1]

    assert answer.status_code in {200, 303}, answer.text
    assert (last["action"], last["actor"]) == (action, "visitor")


@pytest.mark.parametrize(("path", "form", "action"), [*OPERATOR, *ADMIN])
async def test_an_action_is_refused_without_its_role(
    served: ControlPlane, path: str, form: dict[str, str], action: str
) -> None:
    before = await audit_log(served)
    roles = ("operator",) if (path, form, action) in ADMIN else ("viewer",)
    async with visitor_of(served, *roles) as visitor:
        shown = await visitor.get(path)
        status = await forged(visitor, path, form)
        listing = path.rpartition("/")[0] if "/undo/" in path else path
        pages = [
            (await visitor.get(page)).text
            for page in ("/endpoints/churn", "/models", "/models/fraud", "/access")
        ]

    assert shown.status_code == 403
    assert status == 403
    assert not any(f'href="{listing}' in page for page in pages)
    assert await audit_log(served) == before


@pytest.mark.parametrize("path", [path for path, _, _ in (*OPERATOR, *ADMIN)])
async def test_an_action_needs_its_forms_token(served: ControlPlane, path: str) -> None:
    before = await audit_log(served)
    async with visitor_of(served) as visitor:
        without = await visitor.post(path, data={"name": "x", "endpoint": "x", "replicas": "1"})
        guessed = await visitor.post(
            path, data={"csrf_token": "guessed", "name": "x", "endpoint": "x", "replicas": "1"}
        )

    assert (without.status_code, guessed.status_code) == (403, 403)
    assert await audit_log(served) == before


async def test_an_operator_of_one_endpoint_operates_that_one_only(served: ControlPlane) -> None:
    async with visitor_of(served, "operator:churn") as visitor:
        own = (await visitor.get("/endpoints/churn")).text
        done = await send(visitor, "/endpoints/churn/scale", {"replicas": "2"})
        other = await forged(visitor, "/endpoints/fraud/scale", {"replicas": "2"})

    for action in ("rollout", "scale", "pause"):
        assert f'href="/endpoints/churn/{action}"' in own
    assert done.headers["location"] == "/endpoints/churn"
    assert other == 403


async def test_a_paused_endpoint_shows_it_and_is_resumed(served: ControlPlane) -> None:
    async with visitor_of(served) as visitor:
        confirm = (await visitor.get("/endpoints/churn/pause")).text
        await send(visitor, "/endpoints/churn/pause", {})
        page, fleet = (await visitor.get("/endpoints/churn")).text, (await visitor.get("/")).text
        await send(visitor, "/endpoints/churn/resume", {})
        after = (await visitor.get("/endpoints/churn")).text
        unknown = await visitor.get("/endpoints/churn/explode")

    assert "refuses all requests with 503" in confirm
    assert "paused</span>" in page
    assert "paused</span>" in fleet
    assert 'href="/endpoints/churn/resume"' in page
    assert "paused</span>" not in after
    assert unknown.status_code == 404


async def test_an_invalid_field_shows_the_form_again_with_the_reason(served: ControlPlane) -> None:
    async with visitor_of(served) as visitor:
        text = await send(visitor, "/endpoints/churn/scale", {"replicas": "many"})
        many = await send(visitor, "/endpoints/churn/scale", {"replicas": "99999"})
        steps = await send(visitor, "/endpoints/churn/rollout", {**CANARY, "steps": "5, x"})
        key = await send(visitor, "/access/keys/new", {"name": "a b", "scopes": "infer:*"})
        role = await send(visitor, "/access/users/new", {"name": "ann", "roles": "boss"})

    for answer in (text, many, steps, key, role):
        assert answer.status_code == 400
        assert 'role="alert"' in answer.text
        assert 'name="csrf_token"' in answer.text
    assert "must be an integer" in text.text
    assert 'value="99999"' in many.text
    assert "is not a list of percentages" in steps.text
    assert "unknown role" in role.text
    assert 'value="ann"' in role.text


async def test_an_undo_shows_the_difference_first(served: ControlPlane) -> None:
    async with client_of(served) as api:
        await api.post("/endpoints/churn/scale", json={"replicas": 3})
    async with visitor_of(served) as visitor:
        page = (await visitor.get("/endpoints/churn")).text
        confirm = (await visitor.get("/endpoints/churn/undo/1")).text
        await send(visitor, "/endpoints/churn/undo/1", {})
        history = (await visitor.get("/endpoints/churn")).text
        missing = await visitor.get("/endpoints/churn/undo/77")

    assert 'href="/endpoints/churn/undo/1"' in page
    assert 'href="/endpoints/churn/undo/2"' not in page  # is the present one
    assert '<span class="diff-removed">-replicas: 3</span>' in confirm
    assert "undone to generation 1" in history
    assert missing.status_code == 404


async def test_a_rollout_is_previewed_and_then_started(served: ControlPlane) -> None:
    async with visitor_of(served) as visitor:
        form = (await visitor.get("/endpoints/churn/rollout")).text
        preview = await send(visitor, "/endpoints/churn/rollout", {**CANARY, "action": "preview"})
        assert served.target_state.rollout("churn") is None
        again = hidden_of(preview.text)
        started = await visitor.post(
            "/endpoints/churn/rollout", data={**again, **CANARY, "action": "start"}
        )
        rollout = (await visitor.get(started.headers["location"])).text
        second = await visitor.get("/endpoints/churn/rollout")
        page = (await visitor.get("/endpoints/churn")).text

    assert 'value="fraud:2"' in form
    assert 'value="start"' not in form
    assert "<strong>10 %</strong> until verdict" in preview.text
    assert "<strong>40 %</strong> until verdict" in preview.text
    assert "No outlook" in preview.text
    assert 'value="start"' in preview.text
    record = served.target_state.rollout("churn")
    assert record is not None
    assert [step.weight for step in record.state.settings.steps] == [10, 40]  # type: ignore[union-attr]  # a canary
    assert "version 1 to 2" in rollout
    assert "is in progress" in second.text
    assert 'href="/endpoints/churn/rollout"' not in page


@pytest.mark.parametrize(
    ("form", "stage"),
    [
        ({"strategy": "blue-green", "approval": "1"}, "until approval"),
        ({"strategy": "shadow", "share": "20"}, "<strong>20 %</strong> mirrored"),
        ({"strategy": "canary", "steps": "50%", "pause_s": "60", "until": "none"}, "50 %</strong>"),
        ({"strategy": ""}, "<strong>25 %</strong> until verdict"),
    ],
)
async def test_every_strategy_has_a_preview(
    served: ControlPlane, form: dict[str, str], stage: str
) -> None:
    async with visitor_of(served) as visitor:
        sent = {"model": "fraud:2", "action": "preview", **form}
        preview = await send(visitor, "/endpoints/churn/rollout", sent)

    assert preview.status_code == 200
    assert stage in preview.text


async def test_a_preview_tells_the_expected_time_to_a_verdict(served: ControlPlane) -> None:
    now, totals = served.clock.now(), Counted()
    for second in range(-120, 1):
        totals = totals.after([0.02] * 50)
        served.telemetry.history.add(now + second, "churn", "1", totals)
    async with visitor_of(served) as visitor:
        preview = await send(visitor, "/endpoints/churn/rollout", {**CANARY, "action": "preview"})
        fleet = (await visitor.get("/")).text

    assert "Verdict on a good version" in preview.text
    assert "has its verdict after about" in preview.text
    for chart in ("all-requests", "all-errors", "all-p99"):
        assert f'id="{chart}-title"' in fleet


async def test_a_token_is_shown_once(served: ControlPlane) -> None:
    async with visitor_of(served) as visitor:
        form = {"owner": "ci", "roles": "viewer", "days": ""}
        created = await send(visitor, "/access/tokens/new", form)
        [secret] = set(re.findall(r"hrt_[a-z0-9]+_[\w-]{40,}", created.text))
        listed = (await visitor.get("/access")).text
        unknown = [
            (await visitor.get(f"/access/{kind}/nothing/revoke")).status_code
            for kind in ("keys", "tokens")
        ]

    assert created.headers["cache-control"] == "no-store"
    assert "does not expire" in created.text
    assert secret not in listed
    assert secret.split("_")[1] in listed
    assert unknown == [404, 404]


async def test_a_refused_form_leads_back_to_the_page_above(served: ControlPlane) -> None:
    async with visitor_of(served) as visitor:
        answer = await send(visitor, KEYS, {"name": "shop", "scopes": "infer:churn"})

    assert answer.status_code == 503
    assert "the gateway does not run" in answer.text
    assert 'href="/access">Back' in answer.text


async def test_roles_are_changed_and_a_token_is_revoked(served: ControlPlane) -> None:
    ann = "ann@example.com"
    async with visitor_of(served) as visitor:
        await send(visitor, "/access/users/new", {"name": ann, "kind": "user", "roles": "viewer"})
        change = f"/access/users/change?name={ann}"
        await send(visitor, change, {"roles": "operator:fraud, viewer:churn", "disabled": "1"})
        token = await send(visitor, "/access/tokens/new", {"owner": "ci", "roles": "viewer"})
        [id_] = set(re.findall(r"hrt_([a-z0-9]+)_", token.text))
        listed = (await visitor.get("/access")).text
        await send(visitor, f"/access/tokens/{id_}/revoke", {})
        after = (await visitor.get("/access")).text
    async with client_of(served) as api:
        users = {user["name"]: user for user in (await api.get("/users")).json()["users"]}
    async with visitor_of(served, "operator") as operator:
        own = (await operator.get("/access")).text
        refused = [
            (await operator.get(path)).status_code
            for path in (change, f"/access/tokens/{id_}/revoke")
        ]

    assert users[ann]["roles"] == ["operator:fraud", "viewer:churn"]
    assert users[ann]["disabled"]
    assert f"/access/tokens/{id_}/revoke" in listed
    assert f"/access/tokens/{id_}/revoke" not in after
    assert "visible to admins only" in own
    assert refused == [403, 403]


# Uploads.


async def upload(
    visitor: httpx.AsyncClient, *, name: str = "new", content: bytes = b"model" * 50_000
) -> httpx.Response:
    form = hidden_of((await visitor.get("/upload")).text)
    files = {"file": ("m.onnx", content, "application/octet-stream")}
    return await visitor.post("/upload", data={**form, "name": name}, files=files)


async def test_a_model_is_uploaded_and_served(served: ControlPlane) -> None:
    async with visitor_of(served) as visitor:
        models = (await visitor.get("/models")).text
        stored = await upload(visitor)
        confirm = (await visitor.get(stored.headers["location"])).text
        done = await send(
            visitor, stored.headers["location"], {"endpoint": "fresh", "replicas": "1"}
        )
        again = await send(
            visitor, stored.headers["location"], {"endpoint": "fresh", "replicas": "1"}
        )
    version = served.registry.get("new:1")
    pushed, put = (await audit_log(served))[-2:]

    assert 'href="/upload"' in models
    assert stored.headers["location"] == "/models/new/1/serve"
    assert served.registry.path(version).read_bytes() == b"model" * 50_000
    assert "Adds an endpoint that serves new:1" in confirm
    assert done.headers["location"] == "/endpoints/fresh"
    assert again.status_code == 412
    assert (pushed["action"], put["action"]) == ("model.push", "endpoint.put")


async def test_an_endpoint_that_exists_leads_to_a_rollout(served: ControlPlane) -> None:
    async with visitor_of(served) as visitor:
        page = (await visitor.get("/models/fraud/2/serve")).text
        form = (await visitor.get("/endpoints/churn/rollout?model=fraud:2")).text

    assert "/endpoints/fraud/rollout?model=fraud:2" in page
    assert 'value="fraud:2"' in form


async def test_an_upload_needs_its_role_its_token_and_a_file(served: ControlPlane) -> None:
    files = {"file": ("m.onnx", b"model", "application/octet-stream")}
    async with visitor_of(served) as visitor:
        without = await visitor.post("/upload", data={"name": "new"}, files=files)
        form = hidden_of((await visitor.get("/upload")).text)
        empty = await visitor.post(
            "/upload", data={**form, "name": "new"}, files={"file": ("", b"", "x/y")}
        )
        plain = await visitor.post("/upload", data={**form, "name": "new"})
        broken = await visitor.post(
            "/upload",
            content=b"--x\r\nno header\r\n",
            headers={"content-type": "multipart/form-data; boundary=x"},
        )
        odd = await upload(visitor, name="a/../b")
    async with visitor_of(served, "viewer") as viewer:
        token = hidden_of((await viewer.get("/")).text)
        page = await viewer.get("/upload")
        refused = await viewer.post("/upload", data={**token, "name": "new"}, files=files)
        models = (await viewer.get("/models")).text

    assert without.status_code == 403
    assert [answer.status_code for answer in (empty, plain, broken)] == [400] * 3
    assert odd.status_code in {400, 404}
    assert (page.status_code, refused.status_code) == (403, 403)
    assert 'href="/upload"' not in models
    assert [version.name for version in served.registry.list()] == ["fraud", "fraud"]


# Logs.


async def test_logs_are_shown_by_process_level_and_text(served: ControlPlane) -> None:
    logs = served.home.root / "logs"
    logs.mkdir(exist_ok=True)
    (logs / "fraud-1.log").write_text(
        "10:00:00.000 INFO    headrace  <b>loaded</b>\n10:00:01.000 ERROR   headrace  no memory\n"
    )
    lines = [
        '{"time": "2026-01-01T10:00:02Z", "level": "warning", "message": "slow", "wait_s": 2}',
        '{"time": "2026-01-01T10:00:03Z", "path": "/v2/<infer>", "status": 200, "rows": [1]}',
    ]
    (logs / "churn-1.log").write_text("\n".join(lines) + "\n")
    async with visitor_of(served) as visitor:
        all_ = (await visitor.get("/logs")).text
        bad = (await visitor.get("/logs?level=warning&text=MEM")).text
        one = (await visitor.get("/logs?source=churn-1")).text
        none = (await visitor.get("/logs?source=nobody&text=zzz")).text
    async with visitor_of(served, "viewer:churn") as viewer:
        limited = (await viewer.get("/logs")).text

    assert "&lt;b&gt;loaded" in all_
    assert "slow" in all_
    assert "no memory" in bad
    assert "loaded" not in bad
    assert "2026-01-01T10:00:02Z slow wait_s=2<" in one
    assert "2026-01-01T10:00:03Z path=/v2/&lt;infer&gt; status=200 rows=[1]<" in one
    assert "memory" not in one
    assert "No matching lines" in none
    assert "memory" not in limited
