"""Every page, for whoever may see it and for who may not; over the real management API."""

import json
import math
import re
from typing import Final

import httpx
import msgspec
import pytest

from headrace.console.app import LIVE
from headrace.console.render import POLICY
from headrace.control.model.desired import DesiredState
from headrace.control.plane.control_plane import ControlPlane
from headrace.core import EndpointName
from headrace.monitor import LoadReading
from headrace.rollout.evidence import RolloutEvidenceState
from headrace.rollout.outcomes import MetricVerdict, Outcome, RolloutVerdict
from tests.unit.console.browser import URL, app_of, browser_of, hidden_of, log_in, visitor_of
from tests.unit.control.api_client import client_of, headers_of, token_of
from tests.unit.control.notify.alert_samples import FIRING

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

PATHS: Final = (
    "/",
    "/endpoints/fraud",
    "/endpoints/fraud/try",
    "/rollouts",
    "/rollouts/r1",
    "/rollouts/r1/promote",
    "/streams",
    "/streams/pay",
    "/streams/pay/pause",
    "/jobs",
    "/jobs/nightly",
    "/models",
    "/models/fraud",
    "/usage",
    "/alerts",
    "/activity",
    "/diagram",
    "/logs",
    "/access",
    "/upload",
    "/endpoints/churn/rollout",
    "/endpoints/churn/scale",
    "/endpoints/churn/pause",
    "/endpoints/churn/resume",
    "/endpoints/churn/undo/1",
    "/models/fraud/1/serve",
    "/access/keys/new",
    "/access/users/new",
    "/access/tokens/new",
)


# What everybody sees.


async def test_every_page_has_its_landmarks_and_runs_nothing_of_others(
    served: ControlPlane,
) -> None:
    async with visitor_of(served) as visitor:
        answers = {path: await visitor.get(path) for path in PATHS}

    for path, answer in answers.items():
        assert answer.status_code == 200, path
        assert answer.headers["content-security-policy"] == POLICY
        assert answer.headers["cache-control"] == "no-store"
        assert answer.text.count("<main") == answer.text.count("<h1") == 1, path
        assert len(answer.content) < 100_000, path
        for forbidden in ("style=", "onclick", 'src="http', "javascript:"):
            assert forbidden not in answer.text, path


async def test_a_silenced_alert_shows_until_when(served: ControlPlane) -> None:
    served.telemetry.alerting.load([FIRING])
    async with client_of(served) as api, visitor_of(served) as visitor:
        loud = (await visitor.get("/alerts")).text
        made = await api.post("/silences", json={"endpoint": "fraud", "duration_s": 3600})
        silenced = (await visitor.get("/alerts")).text

    assert made.status_code == 201
    assert "LatencyP95" in loud
    assert "silenced until" not in loud
    assert "silenced until" in silenced


async def test_who_is_not_known_is_sent_to_log_in_and_back(served: ControlPlane) -> None:
    async with browser_of(served) as browser:
        sent = {path: await browser.get(path) for path in PATHS}
        page = httpx.URL(sent["/rollouts/r1"].headers["location"]).params["next"]
        back = await log_in(browser, token_of(served), page=page)

    assert {answer.status_code for answer in sent.values()} == {303}
    assert {httpx.URL(one.headers["location"]).path for one in sent.values()} == {"/login"}
    assert back.headers["location"] == "/rollouts/r1"


async def test_an_empty_system_says_what_to_do_first(plane: ControlPlane) -> None:
    async with visitor_of(plane) as visitor:
        page = (await visitor.get("/")).text

    assert "headrace up model.onnx --name fraud" in page
    assert "headrace rollout start fraud" in page


async def test_a_search_that_finds_nothing_says_so_and_runs_nothing(served: ControlPlane) -> None:
    async with visitor_of(served) as visitor:
        page = (await visitor.get("/", params={"search": "<script>x"})).text

    assert "No matching endpoints" in page
    assert "<script>x" not in page
    assert "&lt;script&gt;x" in page


async def test_two_thousand_endpoints_have_pages_that_stay_small(served: ControlPlane) -> None:
    [endpoint, *_] = served.target_state.effective.endpoints
    many = tuple(
        msgspec.structs.replace(endpoint, name=EndpointName(f"e{number:04}"))
        for number in range(2000)
    )
    served.reconciling.reconciler.desired = DesiredState(generation=9, endpoints=many)
    async with visitor_of(served) as visitor:
        pages = [
            await visitor.get(path)
            for path in ("/", "/?page=40", "/?search=e19&sort=p99_s", "/models", "/diagram")
        ]
    first, last, found, models, diagram = (page.text for page in pages)

    assert max(len(page.content) for page in pages) < 100_000
    assert "Endpoints 1 to 50 of 2,000" in first
    assert 'rel="next"' in first
    assert "Endpoints 1951 to 2000 of 2,000" in last
    assert 'rel="prev"' in last
    assert "Endpoints 1 to 50 of 100" in found
    assert "and 1992 more" in models
    assert "20 of 2000 endpoints are drawn" in diagram


async def test_a_rollout_that_was_watched_for_long_has_a_page_that_stays_small(
    served: ControlPlane,
) -> None:
    record = served.target_state.rollouts["fraud"]
    evidence = RolloutEvidenceState.start(record.state.settings)
    verdict = RolloutVerdict(outcome=Outcome.WAIT, at=0.0)
    for at in range(2000):
        width = math.sin(at) / 10 + 100 / (1 + at)  # never level, so that nothing is left out
        metrics = tuple(
            MetricVerdict(
                metric=name,
                outcome=Outcome.WAIT,
                reason="",
                unit="times",
                effect=1.0 + width / 3,
                low=1.0 - width,
                high=1.0 + width,
                margin=1.25 + width / 100,
            )
            for name in ("errors", "rejections", "latency", "predictions")
        )
        verdict = RolloutVerdict(outcome=Outcome.WAIT, at=1e9 + at, metrics=metrics)
        evidence.note(verdict)
    state = msgspec.structs.replace(record.state, verdict=verdict)
    served.target_state.rollouts["fraud"] = msgspec.structs.replace(
        record, id="r9", state=state, evidence=evidence.encode()
    )
    async with visitor_of(served, "viewer:fraud") as visitor:
        page = await visitor.get("/rollouts/r9")

    assert page.status_code == 200
    assert page.text.count('class="band outcome-wait"') == 4
    assert len(set(re.findall(r' id="([^"]+)"', page.text))) == page.text.count(' id="')
    assert len(page.content) < 100_000


async def test_what_is_not_there_is_a_page_that_says_so(served: ControlPlane) -> None:
    paths = ("/nothing", "/endpoints/nobody", "/endpoints/a%20b", "/rollouts/r99")
    async with visitor_of(served) as visitor:
        answers = [
            await visitor.get(path) for path in (*paths, "/rollouts/r1/explode", "/models/nothing")
        ]

    assert [answer.status_code for answer in answers] == [404] * 6
    assert all("Not found" in answer.text for answer in answers)


async def test_the_api_stays_what_it_was(served: ControlPlane) -> None:
    async with browser_of(served) as browser:
        refused = await browser.get("/api/v1/status")
        known = await browser.get("/api/v1/status", headers=headers_of(served))

    assert refused.status_code == 401
    assert refused.headers["content-type"] == "application/problem+json"
    assert known.json()["endpoints"][0]["name"] == "fraud"


async def test_what_does_not_change_is_kept_by_browsers(plane: ControlPlane) -> None:
    async with browser_of(plane) as browser:
        page = (await browser.get("/login")).text
        path = page.partition('stylesheet" href="')[2].partition('"')[0]
        style = await browser.get(path)

    assert style.status_code == 200
    assert "immutable" in style.headers["cache-control"]


async def test_an_endpoint_shows_its_load_where_replicas_told_of_it(served: ControlPlane) -> None:
    now = served.clock.now()
    for second in range(-60, 1):
        reading = LoadReading(ready=2, totals={})
        served.telemetry.load_history.add(now + second, "fraud", "1", reading)
    async with visitor_of(served) as visitor:
        told = (await visitor.get("/endpoints/fraud")).text
        other = (await visitor.get("/endpoints/churn")).text

    for chart in ("batches", "queue", "in-flight", "ready"):
        assert f'id="{chart}-title"' in told
        assert f'id="{chart}-title"' not in other
    assert "in rows per batch; mean rows per model run" in told


async def test_drift_has_a_section_where_it_is_watched(served: ControlPlane) -> None:
    async with client_of(served) as api, visitor_of(served) as visitor:
        body = {"model": "fraud:1", "drift": {}}
        assert (await api.put("/endpoints/churn", json=body)).status_code == 200
        watched = (await visitor.get("/endpoints/churn")).text
        other = (await visitor.get("/endpoints/fraud")).text

    assert 'id="drift"' in watched
    assert "No replica has reported" in watched
    assert 'id="drift"' not in other


# Roles.


async def test_a_viewer_of_one_endpoint_sees_only_that(served: ControlPlane) -> None:
    async with visitor_of(served, "viewer:churn") as visitor:
        fleet = (await visitor.get("/")).text
        other = await visitor.get("/endpoints/fraud")
        rollout = await visitor.get("/rollouts/r1")
        activity = (await visitor.get("/activity")).text

    assert "/endpoints/churn" in fleet
    assert "/endpoints/fraud" not in fleet
    assert other.status_code == 403
    assert "Not allowed" in other.text
    assert rollout.status_code == 404
    assert "visible to admins only" in activity


async def test_who_may_only_look_has_no_buttons_and_no_effect(served: ControlPlane) -> None:
    async with visitor_of(served, "viewer") as visitor:
        page = (await visitor.get("/rollouts/r1")).text
        form = hidden_of((await visitor.get("/rollouts/r1/abort")).text)
        told = await visitor.post("/rollouts/r1/abort", data=form)

    assert "/rollouts/r1/abort" not in page
    assert told.status_code == 403
    assert "needs operator" in told.text
    assert served.target_state.rollouts.get("fraud").state.phase == "preparing"  # type: ignore[union-attr]  # started


async def test_an_operator_tells_a_rollout_what_to_do(served: ControlPlane) -> None:
    async with visitor_of(served, "operator:fraud") as visitor:
        page = (await visitor.get("/rollouts/r1")).text
        confirm = (await visitor.get("/rollouts/r1/abort")).text
        told = await visitor.post(
            "/rollouts/r1/abort", data={**hidden_of(confirm), "reason": "too early"}
        )
        after = (await visitor.get("/rollouts/r1")).text
        again = await visitor.post("/rollouts/r1/abort", data=hidden_of(confirm))

    assert "/rollouts/r1/promote" in page
    assert "go back to version 1 immediately" in confirm
    assert told.headers["location"] == "/rollouts/r1"
    assert "aborted by hand: too early" in after
    assert "/rollouts/r1/abort" not in after
    assert again.status_code == 409
    assert "Not possible now" in again.text


# Sessions and forms.


async def test_a_form_of_another_page_changes_nothing(served: ControlPlane) -> None:
    async with visitor_of(served) as visitor:
        form = hidden_of((await visitor.get("/rollouts/r1/abort")).text)
        codes = [
            (await visitor.post("/rollouts/r1/abort", data=data, headers=headers)).status_code
            for data, headers in (
                ({}, {}),
                ({"csrf_token": "guessed"}, {}),
                (form, {"origin": "http://evil.example"}),
            )
        ]
        as_json = await visitor.post("/rollouts/r1/abort", json=form)
        tried = await visitor.post("/endpoints/fraud/try", data={"data.x": "[1]"})

    assert codes == [403, 403, 403]
    assert as_json.status_code == 403
    assert tried.status_code == 403
    assert served.target_state.rollouts.get("fraud").state.phase == "preparing"  # type: ignore[union-attr]  # started


async def test_a_form_without_a_site_to_come_from_changes_nothing(served: ControlPlane) -> None:
    async with visitor_of(served) as visitor:
        form = hidden_of((await visitor.get("/rollouts/r1/abort")).text)
        cookies = dict(visitor.cookies)
    async with httpx.AsyncClient(
        transport=app_of(served), base_url=URL, cookies=cookies
    ) as nowhere:
        told = await nowhere.post("/rollouts/r1/abort", data=form)

    assert told.status_code == 403


@pytest.mark.parametrize(
    ("token", "said"), [("", "unknown token"), ("hrt_x", "unknown token"), ("é\x00", "token")]
)
async def test_a_wrong_token_begins_no_session(plane: ControlPlane, token: str, said: str) -> None:
    async with browser_of(plane) as browser:
        answer = await log_in(browser, token)

    assert answer.status_code == 401
    assert said in answer.text
    assert "headrace-session" not in browser.cookies


async def test_logging_in_needs_this_servers_own_form(plane: ControlPlane) -> None:
    async with browser_of(plane) as browser:
        without = await browser.post("/login", data={"token": token_of(plane)})
        form = hidden_of((await browser.get("/login")).text)
        browser.cookies.clear()
        no_cookie = await browser.post("/login", data={**form, "token": token_of(plane)})

    assert (without.status_code, no_cookie.status_code) == (403, 403)
    assert "headrace-session" not in browser.cookies


async def test_logging_in_leads_to_pages_of_this_server_only(plane: ControlPlane) -> None:
    places = []
    async with browser_of(plane) as browser:
        for page in ("//evil.example", "https://evil.example", "/\\evil", "x"):
            form = hidden_of((await browser.get("/login")).text)
            data = {**form, "token": token_of(plane), "next": page}
            places.append((await browser.post("/login", data=data)).headers["location"])

    assert places == ["/"] * 4


async def test_a_session_does_not_outlive_its_token(plane: ControlPlane) -> None:
    token = token_of(plane, "bob", "viewer")
    async with browser_of(plane) as browser, client_of(plane) as admin:
        await log_in(browser, token)
        before = await browser.get("/")
        await admin.delete(f"/tokens/{token.split('_')[1]}")
        cookies = dict(browser.cookies)
    async with browser_of(plane) as later:  # which remembers nothing of a second ago
        later.cookies.update(cookies)
        after = await later.get("/")

    assert before.status_code == 200
    assert after.status_code == 303


async def test_logging_out_ends_the_session(plane: ControlPlane) -> None:
    async with visitor_of(plane) as visitor:
        form = hidden_of((await visitor.get("/")).text)
        cookies = dict(visitor.cookies)
        without = await visitor.post("/logout", data={})
        out = await visitor.post("/logout", data=form)
    async with browser_of(plane) as again:
        again.cookies.update(cookies)
        sent = await again.get("/")

    assert without.status_code == 403
    assert out.headers["location"] == "/login"
    assert sent.status_code == 303


# Streams.


async def test_only_pages_that_change_have_a_stream(served: ControlPlane) -> None:
    pages = ("/endpoints/fraud/try", "/nothing", "https://evil.example/x", "")
    async with visitor_of(served) as visitor:
        codes = [(await visitor.get("/live", params={"page": page})).status_code for page in pages]

    assert codes == [404] * 4


async def test_a_stream_is_for_whoever_is_known(served: ControlPlane) -> None:
    async with browser_of(served) as browser:
        assert (await browser.get("/live", params={"page": "/"})).status_code == 401


async def test_a_stream_sends_the_parts_of_its_page(served: ControlPlane) -> None:
    names = {"name": "fraud", "rollout": "r1", "stream": "pay", "job": "nightly"}
    paths = [path.format(**names) for path in LIVE]
    parts = {}
    async with visitor_of(served) as visitor:
        for path in paths:
            lines = (await visitor.get("/live", params={"page": path})).text.splitlines()
            data = [json.loads(line[6:]) for line in lines if line.startswith("data: ")]
            parts[path] = {one["part"]: one["html"] for one in data}
        pages = {path: (await visitor.get(path)).text for path in paths}

    for path, page in pages.items():
        places = set(re.findall(r'data-live="(\w+)"', page))
        assert places, path
        assert places <= parts[path].keys(), path
    assert "/endpoints/fraud" in parts["/"]["table"]
    assert parts["/streams/pay"]["say"] == "Stream pay is starting."
    assert parts["/rollouts/r1"]["say"] == "Rollout r1 is preparing, version 2 at 0 %."


async def test_a_stream_says_when_what_it_shows_is_gone(served: ControlPlane) -> None:
    async with visitor_of(served) as visitor:
        text = (await visitor.get("/live", params={"page": "/endpoints/nobody"})).text

    assert "event: gone" in text
