"""What may stand under `alerts`."""

from pathlib import Path
from typing import Any

import pytest

from headrace.core.spec.parse import SpecError, parse_spec

EMAIL = {"to": ["a@b.example"], "sender": "h@b.example", "host": "mail"}
HOOK = {"url": "https://x.example"}


def parse(*receivers: dict[str, Any], **alerts: object) -> Any:  # noqa: ANN401  # a spec's part
    document = {"alerts": {"receivers": list(receivers), **alerts}}
    return parse_spec(document, base_dir=Path("/etc/headrace")).alerts


@pytest.mark.parametrize(
    "receiver",
    [
        {"webhook": HOOK},
        {"webhook": {"url_file": "hook", "token_file": "token"}},
        {"slack": {"url": "${SLACK_URL}", "channel": "#x"}},
        {"email": EMAIL},
        {"email": {**EMAIL, "username": "h", "password_file": "pw", "tls": "always", "port": 465}},
        {"email": {**EMAIL, "tls": "never"}, "severities": ["page"]},
    ],
)
def test_a_receiver_hears_in_one_way(receiver: dict[str, Any]) -> None:
    assert parse({"name": "one", **receiver}).receivers[0].name == "one"


@pytest.mark.parametrize(
    ("receiver", "reason"),
    [
        ({}, "exactly one of"),
        ({"webhook": HOOK, "slack": HOOK}, "exactly one of"),
        ({"webhook": {}}, "either 'url' or 'url_file'"),
        ({"webhook": {**HOOK, "url_file": "x"}}, "either 'url' or 'url_file'"),
        ({"webhook": {"url": "ftp://x"}}, "does not match"),
        ({"webhook": HOOK, "severities": []}, "severities"),
        ({"webhook": HOOK, "severities": ["loud"]}, "severities"),
        ({"email": {**EMAIL, "username": "h"}}, "must be set together"),
        ({"email": {**EMAIL, "password_file": "pw"}}, "must be set together"),
        (
            {"email": {**EMAIL, "username": "h", "password_file": "pw", "tls": "never"}},
            "in plain text",
        ),
        ({"email": {**EMAIL, "to": ["a@b.example\r\nBcc: all@c.example"]}}, "does not match"),
        ({"email": {**EMAIL, "to": []}}, "to"),
    ],
)
def test_what_cannot_be_heard_is_refused(receiver: dict[str, Any], reason: str) -> None:
    with pytest.raises(SpecError, match=reason):
        parse({"name": "one", **receiver})


def test_two_receivers_of_one_name_are_refused() -> None:
    with pytest.raises(SpecError, match="several receivers have the name 'one'"):
        parse({"name": "one", "webhook": HOOK}, {"name": "one", "slack": HOOK})


def test_files_are_found_beside_the_spec() -> None:
    receiver = {"name": "one", "webhook": {"url_file": "hook", "token_file": "/abs/token"}}

    webhook = parse(receiver).receivers[0].webhook

    assert (webhook.url_file, webhook.token_file) == ("/etc/headrace/hook", "/abs/token")


def test_a_spec_without_alerts_tells_nobody() -> None:
    spec = parse_spec({"endpoints": []})

    assert spec.alerts.receivers == ()
    assert spec.alerts.repeat_s == 4 * 3600
    assert "alerts" not in spec.document()
