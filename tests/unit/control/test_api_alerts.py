"""Alerts over the management API."""

import msgspec
import pytest

from headrace.control.plane import ControlPlane
from headrace.control.scrape import own_metrics
from tests.unit.control.api_client import client_of
from tests.unit.control.notify.alert_samples import FIRING, OVER, STREAM

pytestmark = pytest.mark.anyio
SPAM = msgspec.structs.replace(OVER, endpoint="spam")
GATEWAY = msgspec.structs.replace(FIRING, name="HeadraceGatewayDown", endpoint="")


@pytest.fixture
def alarmed(plane: ControlPlane) -> ControlPlane:
    plane.alerting.load([SPAM, FIRING, GATEWAY])
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
    }
    assert [alert["endpoint"] for alert in of_one] == ["spam"]
    assert [alert["endpoint"] for alert in firing] == ["", "fraud"]
    assert wrong.status_code == 400


async def test_alerts_of_a_stream_are_for_who_sees_the_whole_system(plane: ControlPlane) -> None:
    plane.alerting.load([FIRING, STREAM])
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
    text = own_metrics(alarmed)

    assert 'headrace_alert_firing{alert="HeadraceLatencyP95",endpoint="fraud"} 1' in text


async def test_facts_are_read_of_a_system_that_does_not_run(alarmed: ControlPlane) -> None:
    await alarmed.alerting.look()

    states = {alert.name: alert.state.value for alert in alarmed.alerting.alerts()}
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
