"""A model becomes slow: the alerts of the control plane and of a real Prometheus fire, and end."""

import contextlib
import http.client
import json
import re
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from ruamel.yaml import YAML

from headrace.cli import main
from headrace.monitor.dashboards import DASHBOARDS
from headrace.monitor.prometheus_files import ALERTING, RECORDING
from tests.e2e.alerts.receivers import wait_for, web_server
from tests.e2e.control.system import System
from tests.e2e.debian import NoToolError
from tests.e2e.observe.prometheus import (
    PrometheusServer,
    find_prometheus,
    running_prometheus,
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PROMISED_S: Final = 0.5
CALLERS: Final = 96
"""Enough for the 200 requests in a window that a p99 needs to say anything."""
FAST_S, SLOW_S = 0.005, 0.6
ALERTS: Final = frozenset({"HeadraceLatencyP95", "HeadraceLatencyP99"})
MODEL: Final = '''
import time

import numpy as np


class Slow:
    """Takes as long as its callers say."""

    inputs = {"seconds": ("FP32", [-1])}
    outputs = {"slept": ("FP32", [-1])}
    batched = True

    def infer(self, inputs):
        time.sleep(float(inputs["seconds"].max()))
        return {"slept": inputs["seconds"]}
'''
NOT_HERE: Final = re.compile("nv_gpu|certificate_left|drift_score|rollout_|slo_error_budget")
"""What this system has none of: no GPU, no TLS, no rollout, no promise of availability."""


@pytest.fixture
def system() -> Iterator[System]:
    # Not pytest's tmp_path: a socket's path may have 107 bytes only.
    with tempfile.TemporaryDirectory(prefix="hr-") as directory:
        system = System(Path(directory) / "home")
        try:
            yield system
        finally:
            system.close()


def test_an_alert_of_slow_requests_fires_and_ends_here_and_in_prometheus(
    system: System, tmp_path: Path
) -> None:
    try:
        find_prometheus()
    except NoToolError as error:
        pytest.skip(str(error))
    (tmp_path / "model.py").write_text(MODEL)
    slo = {"latency_s": PROMISED_S, "alert_window_ratio": 0.02}
    with web_server() as web:
        receivers = [{"name": "ops", "severities": ["page", "ticket"], "webhook": {"url": web.url}}]
        document = {
            "version": 1,
            "alerts": {"group_wait_s": 0, "receivers": receivers},
            "endpoints": [{"name": "slow", "model": str(tmp_path / "model.py"), "slo": slo}],
        }
        system.start(spec=document)
        system.wait_ready()
        out = tmp_path / "out"
        assert main(["export", "prometheus", "-o", str(out), "--home", str(system.home)]) == 0
        rules = [out / RECORDING, out / ALERTING]
        with (
            running_prometheus(system.where().metrics_url, rules=rules, interval_s=0.5) as server,
            Callers(system.where().http_url).calling() as callers,
        ):
            wait_for(lambda: server.query("headrace:latency_seconds:q95_rate6s") or None)
            wait_for(lambda: not ALERTS & (firing_here(system) | firing_there(server)) or None)

            callers.seconds = SLOW_S
            wait_for(lambda: firing_here(system) >= ALERTS or None)
            wait_for(lambda: firing_there(server) >= ALERTS or None)
            for alert in sorted(ALERTS):
                web.wait_for(partial(tells_of, alert))
            asked = [*queries(), *recorded(out / RECORDING)]
            empty = [query for query in asked if not server.query(query)]

            callers.seconds = FAST_S
            wait_for(lambda: not ALERTS & firing_here(system) or None)
            wait_for(lambda: not ALERTS & firing_there(server) or None)

    assert [query for query in empty if not NOT_HERE.search(query)] == []


def tells_of(alert: str, body: Any) -> bool:
    return alert in str(body) and body["status"] == "firing"


def firing_here(system: System) -> set[str]:
    found = system.get("/api/v1/alerts?endpoint=slow&state=firing")["alerts"]
    return {alert["name"] for alert in found}


def firing_there(server: PrometheusServer) -> set[str]:
    return {
        alert["labels"]["alertname"]
        for alert in server.alerts()
        if alert["state"] == "firing" and alert["labels"].get("endpoint") == "slow"
    }


def recorded(path: Path) -> Iterator[str]:
    """What all recording rules ask; those of long windows run too seldom to wait for."""
    for group in YAML(typ="safe").load(path.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def queries() -> Iterator[str]:
    """Every query of every dashboard, as Grafana asks it of this system."""
    for dashboard in DASHBOARDS:
        for query in dashboard.queries():
            filled = query.replace("$__rate_interval", "6s").replace("$endpoint", "slow")
            yield filled.replace("$replica", ".*")


@dataclass(slots=True)
class Callers:
    """Requests that take `seconds` each, from several callers."""

    url: str
    seconds: float = FAST_S
    failures: list[Any] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def calling(self) -> Iterator["Callers"]:
        threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _call(self) -> None:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=20)
        while not self._over.wait(0.2):
            tensor = {"name": "seconds", "shape": [1], "datatype": "FP32", "data": [self.seconds]}
            body = json.dumps({"inputs": [tensor]})
            connection.request("POST", "/v2/models/slow/infer", body)
            answer = connection.getresponse()
            answer.read()
            if answer.status != http.client.OK:
                self.failures.append(answer.status)
        connection.close()
