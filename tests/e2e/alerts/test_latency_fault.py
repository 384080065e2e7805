"""A model becomes slow: the alerts of the control plane and of a real Prometheus fire, and end."""

import contextlib
import http.client
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from ruamel.yaml import YAML

from headrace.cli import main
from headrace.monitor.dashboards import DASHBOARDS
from headrace.monitor.prometheus import ALERTING, RECORDING
from headrace.monitor.promql import latency_quantile, request_count
from tests.e2e.alerts.receivers import wait_for, web_server
from tests.e2e.control.system import System
from tests.e2e.debian import NoToolError
from tests.e2e.observe.prometheus import (
    PrometheusServer,
    find_prometheus,
    running_prometheus,
)

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.long]

PROMISED_S: Final = 0.5
CALLERS: Final = 96
"""Enough for the 200 requests in a window that a p99 needs to say anything."""
FAST_S, SLOW_S = 0.005, 0.6
ALERTS: Final = frozenset({"HeadraceLatencyP95", "HeadraceLatencyP99"})
WINDOW_S: Final = 6.0  # five minutes times `alert_window_ratio`
P95, P99 = (latency_quantile(q, WINDOW_S) for q in (0.95, 0.99))
COUNT: Final = request_count(WINDOW_S)
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
NOT_HERE: Final = re.compile(
    "nv_gpu|certificate_left|drift_score|rollout_|slo_error_budget|headrace.stream_|headrace.job_"
)
"""What this system has none of: no GPU, no TLS, no rollout, no promise of availability, no stream
and no job. That theirs are names of real metrics is shown where they are defined."""


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
            watch = Watch(system, server, callers)
            watch.until("a p95 in Prometheus", lambda: server.query(P95) != [])
            watch.until("no alert anywhere", lambda: not ALERTS & (watch.here() | watch.there()))

            callers.seconds = SLOW_S
            watch.until("alerts here", lambda: watch.here() >= ALERTS)
            watch.until("alerts in Prometheus", lambda: watch.there() >= ALERTS)
            for alert in sorted(ALERTS):
                web.wait_for(partial(tells_of, alert))
            asked = [*queries(), *recorded(out / RECORDING)]
            watch.until_all_answer([query for query in asked if not NOT_HERE.search(query)])

            callers.seconds = FAST_S
            watch.until("the end of alerts here", lambda: not ALERTS & watch.here())
            watch.until("the end of alerts in Prometheus", lambda: not ALERTS & watch.there())

    assert callers.failures == []


def tells_of(alert: str, body: Any) -> bool:
    return alert in str(body) and body["status"] == "firing"


def recorded(path: Path) -> Iterator[str]:
    """What all recording rules ask; those of long windows run too seldom to wait for."""
    for group in YAML(typ="safe").load(path.read_text())["groups"]:
        yield from (rule["expr"] for rule in group["rules"])


def queries() -> Iterator[str]:
    """Every query of every dashboard, as Grafana asks it of this system."""
    for dashboard in DASHBOARDS:
        for query in dashboard.queries():
            filled = query.replace("$__rate_interval", "6s").replace("$endpoint", "slow")
            yield (
                filled.replace("$replica", ".*")
                .replace("$namespace", "")
                .replace("$job", "headrace")
            )


@dataclass(slots=True)
class Callers:
    """Requests that take `seconds` each, from several callers; whoever fails goes on."""

    url: str
    seconds: float = FAST_S
    answers: list[float] = field(default_factory=list)
    """When each came, in monotonic seconds."""
    failures: list[str] = field(default_factory=list)
    _over: threading.Event = field(default_factory=threading.Event)
    _threads: list[threading.Thread] = field(default_factory=list)

    @contextlib.contextmanager
    def calling(self) -> Iterator["Callers"]:
        self._get_known()
        self._threads = [threading.Thread(target=self._call) for _ in range(CALLERS)]
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._over.set()
            for thread in self._threads:
                thread.join()

    @property
    def alive(self) -> int:
        return sum(thread.is_alive() for thread in self._threads)

    def _get_known(self) -> None:
        """Let the replica learn what a request takes.

        It warmed up with numbers of its own, which are much longer times: it would refuse most of
        many callers who came at once, as too late for their deadlines.
        """
        connection = self._connect()
        for _ in range(64):
            self._ask(connection)
        connection.close()

    def _call(self) -> None:
        connection = self._connect()
        while not self._over.wait(0.2):
            try:
                self._ask(connection)
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(repr(error))
                connection.close()  # the next request opens it again
        connection.close()

    def _ask(self, connection: http.client.HTTPConnection) -> None:
        tensor = {"name": "seconds", "shape": [1], "datatype": "FP32", "data": [self.seconds]}
        body = json.dumps({"inputs": [tensor]})
        connection.request("POST", "/v2/models/slow/infer", body)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status == http.client.OK:
            self.answers.append(time.monotonic())
        else:
            self.failures.append(f"{answer.status} {text.decode()}")

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=20)


@dataclass(frozen=True, slots=True)
class Watch:
    """Looks at both sets of alerts, and says how everything was when one did not come."""

    system: System
    server: PrometheusServer
    callers: Callers

    def until(self, what: str, is_so: Callable[[], bool]) -> None:
        wait_for(lambda: is_so() or None, partial(self.describe, what))

    def until_all_answer(self, queries: list[str]) -> None:
        """Ask each until it finds something: a scrape that took too long leaves a gap behind it."""
        empty = queries

        def all_answer() -> bool:
            nonlocal empty
            empty = [query for query in empty if not self.server.query(query)]
            return not empty

        def describe() -> str:
            return f"nothing is found by {empty}; {self.server.targets()}"

        wait_for(lambda: all_answer() or None, describe)

    def here(self) -> set[str]:
        found = self.system.get("/api/v1/alerts?endpoint=slow&state=firing")["alerts"]
        return {alert["name"] for alert in found}

    def there(self) -> set[str]:
        return {
            alert["labels"]["alertname"]
            for alert in self.server.alerts()
            if alert["state"] == "firing" and alert["labels"].get("endpoint") == "slow"
        }

    def describe(self, what: str) -> str:
        """What was waited for in vain, and all that bears upon it."""
        callers, now = self.callers, time.monotonic()
        alerts = self.system.get("/api/v1/alerts?endpoint=slow")["alerts"]
        here = {alert["name"]: (alert["state"], alert["value"]) for alert in alerts}
        there = {alert["labels"]["alertname"]: alert["state"] for alert in self.server.alerts()}
        seen = {name: [one.value for one in self.server.query(name)] for name in (P95, P99, COUNT)}
        answered = sum(at > now - WINDOW_S for at in callers.answers)
        failures = Counter(callers.failures).most_common(5)
        return (
            f"no {what}\n"
            f"here: {here}\n"
            f"in Prometheus: {there}; {seen}\n"
            f"{callers.alive} of {CALLERS} callers alive, asking for {callers.seconds} s each; "
            f"{answered} answers in the last {WINDOW_S:g} s of {len(callers.answers)}, "
            f"{len(callers.failures)} failures: {failures}\n"
            f"{self.system.log_text()[-2000:]}"
        )
