"""A whole system says by itself that an endpoint has no replica, and that it has one again."""

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from headrace.cli import main
from headrace.monitor.prometheus import RECORDING, SCRAPE
from headrace.testing import models
from tests.e2e.alerts.receivers import wait_for, web_server
from tests.e2e.control.system import System

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long]


def test_an_endpoint_without_a_replica_is_told_until_it_has_one(
    system: System, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "mlp.onnx"
    model.write_bytes(models.mlp())
    endpoint = {"name": "mlp", "model": str(model), "slo": {"alert_window_ratio": 0.001}}
    with web_server() as web:
        receivers = [{"name": "ops", "severities": ["page"], "webhook": {"url": web.url}}]
        alerts = {"group_wait_s": 0, "receivers": receivers}
        system.start(spec={"version": 1, "alerts": alerts, "endpoints": [endpoint]})
        system.wait_ready()

        with no_replica_lives(system):
            firing = web.wait_for(lambda body: body["status"] == "firing")
            status = main(["alerts", "--firing", "--home", str(system.home)])
            shown = capsys.readouterr()
            metrics = System.call("GET", system.where().metrics_url)[1]
        resolved = web.wait_for(lambda body: body["status"] == "resolved")
        told = system.get("/api/v1/events?endpoint=mlp")["events"]
        main(["alerts", "mlp", "--json", "--home", str(system.home)])
        after = json.loads(capsys.readouterr().out)["alerts"]
        exported = main(
            ["export", "prometheus", "-o", str(tmp_path / "out"), "--home", str(system.home)]
        )

    (alert,) = firing["alerts"]
    assert alert["labels"]["alertname"] == "HeadraceNoReplicaReady"
    assert resolved["alerts"][0]["fingerprint"] == alert["fingerprint"]
    assert status == 1
    assert "no replica of mlp is ready" in shown.out
    assert "headrace status" in shown.err
    assert 'headrace_alert_firing{alert="HeadraceNoReplicaReady",endpoint="mlp"} 1' in metrics
    states = {alert["name"]: alert["state"] for alert in after}
    assert states["HeadraceNoReplicaReady"] == "resolved"
    assert states["HeadraceReplicaCrashing"] == "firing"  # until it has lived for a while
    assert exported == 0
    assert urlsplit(system.where().metrics_url).netloc in (tmp_path / "out" / SCRAPE).read_text()
    assert "mlp" in (tmp_path / "out" / RECORDING).read_text()
    reasons = [e["reason"] for e in told if e["data"].get("alert") == "HeadraceNoReplicaReady"]
    assert reasons == ["Firing", "Resolved"]


def test_a_receiver_is_told_the_end_after_a_sigkill_and_nothing_in_a_silence(
    system: System, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "mlp.onnx"
    model.write_bytes(models.mlp())
    endpoint = {"name": "mlp", "model": str(model), "slo": {"alert_window_ratio": 0.001}}
    home = ("--home", str(system.home))

    def statuses() -> list[str]:
        """Those of messages about the replica that is missing."""
        return [
            alert["status"]
            for body in web.bodies
            for alert in body["alerts"]
            if alert["labels"]["alertname"] == "HeadraceNoReplicaReady"
        ]

    def wait_for_statuses(*expected: str) -> None:
        wait_for(lambda: statuses() == list(expected) or None, lambda: f"{web.bodies}")

    def fires() -> bool:
        return any(
            alert["name"] == "HeadraceNoReplicaReady"
            for alert in system.get("/api/v1/alerts?state=firing")["alerts"]
        )

    with web_server() as web:
        receivers = [{"name": "ops", "severities": ["page"], "webhook": {"url": web.url}}]
        alerts = {"group_wait_s": 0, "receivers": receivers}
        system.start(spec={"version": 1, "alerts": alerts, "endpoints": [endpoint]})
        system.wait_ready()
        tests = [main(["alerts", "test", *home]) for _ in range(2)]
        tested = capsys.readouterr()
        # Windows so short page while the replica starts.
        wait_for(lambda: (statuses()[-1:] in ([], ["resolved"]) and not fires()) or None)
        names = [alert["labels"]["alertname"] for body in web.bodies for alert in body["alerts"]]
        web.bodies.clear()

        with no_replica_lives(system):
            wait_for_statuses("firing")
            system.kill_control()
        system.start()
        wait_for_statuses("firing", "resolved")
        system.wait_ready()

        assert main(["alerts", "silence", "mlp", "--for", "1h", "--json", *home]) == 0
        silence = json.loads(capsys.readouterr().out)
        with no_replica_lives(system):
            wait_for(lambda: fires() or None)
            time.sleep(3)  # several turns of the notifier
            quiet = statuses()
            main(["alerts", "mlp", *home])
            shown = capsys.readouterr().out
            main(["alerts", "unsilence", silence["id"], *home])
            wait_for_statuses("firing", "resolved", "firing")
        wait_for_statuses("firing", "resolved", "firing", "resolved")

    assert tests == [0, 1]
    assert "taken" in tested.out
    assert "every 30 s at most" in tested.err
    assert names.count("HeadraceTest") == 2
    assert quiet == ["firing", "resolved"]
    assert "silenced until" in shown


@contextlib.contextmanager
def no_replica_lives(system: System) -> Iterator[None]:
    """Replicas are ended as soon as they are seen, while the block runs."""
    over = threading.Event()

    def end_all() -> None:
        while not over.is_set():
            for process in system.processes():
                with contextlib.suppress(psutil.NoSuchProcess):
                    if "envoy" not in process.name():
                        process.kill()
            time.sleep(0.05)

    thread = threading.Thread(target=end_all)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
