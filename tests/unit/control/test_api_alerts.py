"""Alerts over the management API."""

import time

import msgspec
import pytest

from headrace.control.notify.messages import AlertMessage
from headrace.control.plane.control_plane import ControlPlane
from headrace.control.plane.metrics import own_families
from headrace.core import UnavailableError
from tests.metrics import exposed
from tests.unit.control.api_client import client_of
from tests.unit.control.notify.alert_samples import FIRING, OVER, STREAM

pytestmark = pytest.mark.anyio
SPAM = msgspec.structs.replace(OVER, endpoint="spam")
GATEWAY = msgspec.structs.replace(FIRING, name="HeadraceGatewayDown", endpoint="")


@pytest.fixture
def alarmed(plane: ControlPlane) -> ControlPlane:
    plane.telemetry.alerting.load([SPAM, FIRING, GATEWAY])
    return plane


async def test_alerts_are_told_with_what_to_do(alarmed: ControlPlane) -> None:
    async with client_of(alarmed) as api:
        every = (await api.get("/alerts")).json()["alerts"]
        of_one = (await api.get("/alerts?endpoint=spam")).json()["alerts"]
        firing = (await api.get("/alerts?state=firing")).json()["alerts"]
        wrong = await api.get("/alerts?state=burning")

    assert [alert["state"] for alert in every] == ["firing", "firing", "resolved"]
    assert every[1] == {
        "name": "HeadraceLatencyP95",
        "endpoint": "fraud",
        "stream": "",
        "severity": "page",
        "state": "firing",
        "since": 1764000000.0,
        "value": 0.31,
        "threshold": 0.2,
        "unit": "s",
        "summary": FIRING.summary,
        "action": FIRING.action,
        "silenced_until": None,
    }
    assert [alert["endpoint"] for alert in of_one] == ["spam"]
    assert [alert["endpoint"] for alert in firing] == ["", "fraud"]
    assert wrong.status_code == 400


async def test_alerts_of_a_stream_are_for_who_sees_the_whole_system(plane: ControlPlane) -> None:
    plane.telemetry.alerting.load([FIRING, STREAM])
    async with client_of(plane, "viewer") as api:
        of_stream = (await api.get("/alerts?stream=fraud")).json()["alerts"]
        of_endpoint = (await api.get("/alerts?endpoint=fraud")).json()["alerts"]
    async with client_of(plane, "viewer:fraud") as api:
        own = (await api.get("/alerts")).json()["alerts"]

    assert [(one["name"], one["stream"]) for one in of_stream] == [("HeadraceStreamDown", "fraud")]
    assert [one["name"] for one in of_endpoint] == [one["name"] for one in own] == [FIRING.name]


async def test_who_sees_one_endpoint_sees_its_alerts_only(alarmed: ControlPlane) -> None:
    async with client_of(alarmed, "viewer:fraud") as api:
        found = (await api.get("/alerts")).json()["alerts"]

    assert [alert["endpoint"] for alert in found] == ["fraud"]


async def test_alerts_are_among_the_metrics(alarmed: ControlPlane) -> None:
    text = exposed(own_families(alarmed))

    assert 'headrace_alert_firing{alert="HeadraceLatencyP95",endpoint="fraud"} 1' in text


async def test_facts_are_read_of_a_system_that_does_not_run(alarmed: ControlPlane) -> None:
    await alarmed.telemetry.alerting.poll()

    states = {alert.name: alert.state.value for alert in alarmed.telemetry.alerting.alerts()}
    assert states["HeadraceGatewayDown"] == "firing"
    assert states["HeadraceLatencyP95"] == "resolved"


async def test_only_an_admin_says_who_hears_of_alerts(plane: ControlPlane) -> None:
    hook = {"url": "https://elsewhere.example", "token_file": "/home/owner/admin-token"}
    receivers = {"receivers": [{"name": "mine", "webhook": hook}]}
    document = {"endpoints": [], "alerts": receivers}

    async with client_of(plane, "operator") as operator:
        refused = await operator.post("/apply", json=document)
        harmless = await operator.post("/apply", json={"endpoints": [], "alerts": {}})
        mistaken = await operator.post("/apply", json={"endpoints": [], "alerts": 7})
    async with client_of(plane) as admin:
        taken = await admin.post("/apply", json=document)
    async with client_of(plane, "operator") as operator:
        kept = await operator.post("/apply", json=document)
        removed = await operator.post("/apply", json={"endpoints": []})

    assert refused.status_code == 403
    assert "only an admin" in refused.json()["detail"]
    assert harmless.status_code == taken.status_code == kept.status_code == 200
    assert mistaken.status_code == 400
    assert removed.status_code == 403


async def test_a_silence_is_made_shown_and_removed_and_is_in_the_audit_log(
    alarmed: ControlPlane,
) -> None:
    async with client_of(alarmed) as api:
        made = await api.post(
            "/silences",
            json={
                "endpoint": "fraud",
                "severity": "page",
                "duration_s": 60,
                "comment": "load test",
            },
        )
        listed = (await api.get("/silences")).json()["silences"]
        during = (await api.get("/alerts?endpoint=fraud")).json()["alerts"]
        removed = await api.delete(f"/silences/{made.json()['id']}")
        again = await api.delete(f"/silences/{made.json()['id']}")
        after = (await api.get("/alerts?endpoint=fraud")).json()["alerts"]
        trail = (await api.get("/trail?newest=true")).json()["entries"]

    assert made.status_code == 201
    assert listed == [made.json()]
    assert made.json()["created_by"] == "ann@laptop"
    assert during[0]["silenced_until"] == made.json()["ends"]
    assert (removed.status_code, again.status_code) == (200, 404)
    assert after[0]["silenced_until"] is None
    actions = [entry["action"] for entry in trail if entry["object"] == made.json()["id"]]
    assert sorted(actions) == ["silence.create", "silence.remove"]


async def test_an_operator_silences_the_alerts_of_its_endpoint_only(alarmed: ControlPlane) -> None:
    async with client_of(alarmed) as admin:
        every = (await admin.post("/silences", json={"duration_s": 60})).json()
    async with client_of(alarmed, "operator:fraud") as operator:
        own = await operator.post("/silences", json={"endpoint": "fraud", "duration_s": 60})
        other = await operator.post("/silences", json={"endpoint": "spam", "duration_s": 60})
        whole = await operator.post("/silences", json={"severity": "page", "duration_s": 60})
        stream = await operator.post("/silences", json={"stream": "fraud", "duration_s": 60})
        seen = (await operator.get("/silences")).json()["silences"]
        hidden = await operator.delete(f"/silences/{every['id']}")
        removed = await operator.delete(f"/silences/{own.json()['id']}")
        tested = await operator.post("/alerts/test", json={})
    async with client_of(alarmed, "viewer:fraud") as viewer:
        refused = await viewer.post("/silences", json={"endpoint": "fraud", "duration_s": 60})

    assert own.status_code == 201
    assert [other.status_code, whole.status_code, stream.status_code] == [403, 403, 403]
    assert seen == [own.json()]
    assert (hidden.status_code, removed.status_code) == (404, 200)
    assert (tested.status_code, refused.status_code) == (403, 403)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"duration_s": 60, "ends": 2e9},
        {"ends": 1.0},
        {"ends": 1e12},
        {"duration_s": -1},
        {"duration_s": 1e9},
        {"duration_s": 60, "alert": "NoSuchAlert"},
        {"duration_s": 60, "severity": "loud"},
        {"duration_s": 60, "endpoint": "a", "stream": "b"},
        {"duration_s": 60, "endpoint": "no name"},
    ],
)
async def test_a_silence_needs_an_end_and_alerts_that_there_are(
    alarmed: ControlPlane, wrong: dict[str, object]
) -> None:
    async with client_of(alarmed) as api:
        refused = await api.post("/silences", json=wrong)
        listed = (await api.get("/silences")).json()["silences"]

    assert refused.status_code == 400
    assert listed == []


async def test_a_silence_may_be_given_by_its_end_and_outlasts_a_restart(
    alarmed: ControlPlane,
) -> None:
    ends = time.time() + 3600  # noqa: TID251  # of the plane's own clock
    async with client_of(alarmed) as api:
        made = (await api.post("/silences", json={"ends": ends})).json()

    alarmed.telemetry.silences.load(alarmed.store.alerts.load.blocking().silences)

    assert made["ends"] == ends
    assert [silence.id for silence in alarmed.telemetry.silences.active()] == [made["id"]]


async def test_receivers_are_tested_and_told_that_it_was_a_test(alarmed: ControlPlane) -> None:
    sent: list[tuple[str, str, str]] = []

    async def send(message: AlertMessage, **_: object) -> str:
        alerts = (*message.firing, *message.resolved)
        sent.append((message.receiver.name, alerts[0].name, alerts[0].state.value))
        if message.receiver.name == "chat":
            raise UnavailableError("it answered 403: no", retry_after_s=None)
        return "200"

    alarmed.telemetry.notifier.send = send
    receivers = [
        {"name": name, "webhook": {"url": "https://x.example"}} for name in ("ops", "chat")
    ]
    async with client_of(alarmed) as api:
        none = await api.post("/alerts/test", json={})
        await api.post("/apply", json={"endpoints": [], "alerts": {"receivers": receivers}})
        done = await api.post("/alerts/test", json={})
        soon = await api.post("/alerts/test", json={"receiver": "ops"})
        nobody = await api.post("/alerts/test", json={"receiver": "nobody"})
        trail = (await api.get("/trail?newest=true")).json()["entries"]

    deliveries = {one["receiver"]: one for one in done.json()["deliveries"]}
    assert (deliveries["ops"]["ok"], deliveries["ops"]["answer"]) == (True, "200")
    assert (deliveries["chat"]["ok"], deliveries["chat"]["answer"]) == (
        False,
        "it answered 403: no",
    )
    assert sorted(sent) == [
        ("chat", "HeadraceTest", "firing"),
        ("ops", "HeadraceTest", "firing"),
        ("ops", "HeadraceTest", "resolved"),
    ]
    assert (soon.status_code, nobody.status_code, none.status_code) == (429, 404, 404)
    assert float(soon.headers["retry-after"]) > 0
    assert "alerts.test" in [entry["action"] for entry in trail]
