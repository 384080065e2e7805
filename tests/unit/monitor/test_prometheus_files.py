"""What Prometheus and Alertmanager are told."""

from typing import Any

from headrace.core.spec.alerts import AlertsSpec
from headrace.monitor.prometheus import (
    ScrapeTarget,
    alertmanager_configuration,
    prometheus_files,
    scrape_configuration,
)
from tests.unit.monitor.told import PROMISE

TARGET = ScrapeTarget(url="https://gpu-box:8002/metrics", token_file="/t", ca_file="/ca.pem")  # noqa: S106  # a path
EMAIL = {"to": ["a@b.example", "c@b.example"], "sender": "h@b.example", "host": "mail"}


def configuration(**receiver: object) -> dict[str, Any]:
    spec = AlertsSpec.model_validate({"receivers": [{"name": "one", **receiver}]})
    found: dict[str, Any] = alertmanager_configuration(spec)["receivers"][1]
    return found


def test_a_system_elsewhere_is_scraped_as_it_has_to_be_asked() -> None:
    (job,) = scrape_configuration(TARGET)["scrape_configs"]

    assert job["scheme"] == "https"
    assert job["static_configs"] == [{"targets": ["gpu-box:8002"]}]
    assert job["authorization"] == {"credentials_file": "/t"}
    assert job["tls_config"] == {"ca_file": "/ca.pem"}


def test_secrets_are_named_and_never_written() -> None:
    hook = configuration(webhook={"url": "https://x.example", "token_file": "/token"})
    slack = configuration(slack={"url": "${SLACK_URL}"})
    file = configuration(slack={"url_file": "/slack"})

    assert hook["webhook_configs"][0]["http_config"] == {
        "authorization": {"credentials_file": "/token"}
    }
    assert slack["slack_configs"] == [{"api_url_file": "secrets/SLACK_URL", "send_resolved": True}]
    assert file["slack_configs"][0]["api_url_file"] == "/slack"


def test_an_email_is_sent_as_the_spec_says() -> None:
    plain = configuration(email={**EMAIL, "tls": "never", "port": 25})["email_configs"][0]
    login = configuration(email={**EMAIL, "username": "h", "password_file": "/pw"})

    assert (plain["to"], plain["smarthost"]) == ("a@b.example, c@b.example", "mail:25")
    assert plain["require_tls"] is False
    assert login["email_configs"][0]["auth_password_file"] == "/pw"  # noqa: S105  # a path


def test_a_system_without_receivers_tells_nobody() -> None:
    files = prometheus_files([PROMISE], AlertsSpec(), TARGET)

    assert files["alertmanager.yml"]["receivers"] == [{"name": "nobody"}]
    assert set(files) == {
        "headrace-recording.yml",
        "headrace-alerts.yml",
        "prometheus.yml",
        "alertmanager.yml",
    }
