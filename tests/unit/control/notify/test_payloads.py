"""How messages look to those who get them."""

from typing import Any

from headrace.control.notify.delivery import email_message, slack_payload, title, webhook_payload
from headrace.control.notify.messages import AlertMessage
from tests.unit.control.notify.alert_samples import (
    FIRING,
    OVER,
    STREAM,
    TICKET,
    settings,
    webhook,
)

URL = "http://127.0.0.1:8080"
EMAIL: dict[str, Any] = {
    "name": "post",
    "email": {"to": ["a@b.example", "c@d.example"], "sender": "h@b.example", "host": "mail"},
}
SLACK: dict[str, Any] = {
    "name": "chat",
    "slack": {"url": "https://hooks.example/x", "channel": "#ops"},
}


def message(*, is_over: bool = False, receiver: dict[str, Any] | None = None) -> AlertMessage:
    spec = settings(receiver or webhook()).receivers[0]
    firing = () if is_over else (FIRING, TICKET)
    resolved = (OVER,) if is_over else ()
    return AlertMessage(receiver=spec, endpoint="fraud", firing=firing, resolved=resolved)


def test_a_webhook_gets_what_alertmanager_sends() -> None:
    payload = webhook_payload(message(), url=URL)

    first = payload["alerts"][0]
    assert payload["version"] == "4"
    assert (payload["status"], payload["receiver"]) == ("firing", "ops")
    assert payload["groupLabels"] == {"endpoint": "fraud"}
    assert payload["commonLabels"] == {"endpoint": "fraud"}
    assert payload["commonAnnotations"]["action"] == FIRING.action
    assert payload["externalURL"] == URL
    assert first["labels"] == {
        "alertname": "HeadraceLatencyP95",
        "endpoint": "fraud",
        "severity": "page",
    }
    assert first["startsAt"] == "2025-11-24T16:00:00.000Z"
    assert first["endsAt"] == "0001-01-01T00:00:00Z"
    assert first["fingerprint"] != payload["alerts"][1]["fingerprint"]


def test_a_webhook_is_told_what_is_over_and_when() -> None:
    payload = webhook_payload(message(is_over=True), url=URL)

    assert payload["status"] == "resolved"
    assert payload["alerts"][0]["status"] == "resolved"
    assert payload["alerts"][0]["endsAt"] == "2025-11-24T16:01:40.000Z"


def test_an_alert_of_a_stream_names_the_stream() -> None:
    spec = settings(webhook()).receivers[0]
    told = AlertMessage(receiver=spec, endpoint="", stream="fraud", firing=(STREAM,), resolved=())
    payload = webhook_payload(told, url=URL)

    assert title(told) == "[page] stream fraud: HeadraceStreamDown"
    assert payload["groupLabels"] == {"stream": "fraud"}
    assert payload["groupKey"] == '{}:{stream="fraud"}'
    assert payload["alerts"][0]["labels"] == {
        "alertname": "HeadraceStreamDown",
        "stream": "fraud",
        "severity": "page",
    }


def test_an_alert_keeps_its_fingerprint() -> None:
    firing = webhook_payload(message(), url=URL)["alerts"][0]
    over = webhook_payload(message(is_over=True), url=URL)["alerts"][0]

    assert firing["fingerprint"] == over["fingerprint"]


def test_slack_gets_a_text_and_an_attachment_for_each_alert() -> None:
    payload = slack_payload(message(receiver=SLACK), url=URL)

    assert payload["channel"] == "#ops"
    assert payload["text"] == "[page] fraud: HeadraceLatencyP95 and 1 more"
    assert [one["color"] for one in payload["attachments"]] == ["#c62828", "#ef6c00"]
    assert "&lt;what&gt;" in payload["attachments"][0]["text"]
    assert "&amp;" in payload["attachments"][0]["text"]


def test_what_is_over_is_green_and_needs_nothing_done() -> None:
    (attachment,) = slack_payload(message(is_over=True, receiver=SLACK), url=URL)["attachments"]

    assert attachment["color"] == "#2e7d32"
    assert FIRING.action not in attachment["text"]


def test_an_email_says_what_to_do() -> None:
    found = message(receiver=EMAIL)
    assert found.receiver.email is not None

    mail = email_message(found, found.receiver.email, url=URL, now=1764000000.0)

    assert mail["To"] == "a@b.example, c@d.example"
    assert mail["Subject"] == title(found)
    assert FIRING.action in mail.get_content()
    assert URL in mail.get_content()


def test_a_title_names_the_system_where_no_endpoint_is_concerned() -> None:
    whole = AlertMessage(receiver=message().receiver, endpoint="", firing=(), resolved=(OVER,))

    assert title(whole) == "[resolved] the system: HeadraceLatencyP95"
