"""What is exported is taken by the real programs, and asks for what is there."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from ruamel.yaml import YAML

from headrace.cli import main
from headrace.control.jobs.plan import new_run
from headrace.control.jobs.status import job_families
from headrace.control.model.job_runs import JobMark, JobsSnapshot
from headrace.control.streams.status import families
from headrace.core import ReplicaSettings
from headrace.core.spec.jobs import JobSpec
from headrace.monitor.alert_kinds import ALERTS
from headrace.monitor.dashboards import DASHBOARDS
from headrace.monitor.grafana import dashboard_json
from headrace.monitor.prometheus import ALERTING, ALERTMANAGER, RECORDING, SCRAPE
from headrace.observe import ModelStatistics
from headrace.serving.state import ReplicaState
from headrace.serving.telemetry.metrics import exposition
from headrace.streaming.metrics import Counters
from headrace.streaming.metrics import render_metrics as worker_exposition
from headrace.streaming.settings import StreamStatus
from tests.e2e.alerts.rule_tests import write_rule_tests
from tests.e2e.debian import NoToolError, find_tool, run_tool
from tests.unit.cli.test_stream_parts import VIEW

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

SPEC: Final = """
version: 1
alerts:
  group_wait_s: 0
  receivers:
    - name: pager
      severities: [page]
      webhook: {url: "https://pager.example/hook", token_file: token}
    - {name: chat, slack: {url: "${SLACK_URL}", channel: "#ops"}}
    - name: post
      severities: [ticket]
      email:
        {to: [a@b.example], sender: h@b.example, host: mail, username: h, password_file: pw}
endpoints:
  - {name: fraud, model: fraud, slo: {latency_s: 0.2, availability: 0.999}}
  - {name: spam, model: spam}
  - {name: quick, model: quick, slo: {latency_s: 0.1, availability: 0.9, alert_window_ratio: 0.01}}
streams:
  - name: silent
    endpoint: spam
    source: {broker: "log:demo", topics: [in]}
    sink: {topic: out}
    alerts: {lag_s: null, dead_letters: null}
  - name: pay
    endpoint: fraud
    source: {broker: "log:demo", topics: [in]}
    sink: {topic: scores}
    workers: {max: 4, target_lag_s: 12.5}
    alerts: {dead_letters: 3}
"""
OTHERS: Final = {
    "headrace_endpoint_requests_total",
    "headrace_endpoint_latency_seconds",
    "headrace_replicas",
    "headrace_rollout_phase",
    "headrace_rollout_weight",
    "headrace_process_cpu_seconds_total",
    "headrace_process_memory_bytes",
    "headrace_drift_score",
    "headrace_row_difference",
    "nv_gpu_utilization",
    "nv_gpu_memory_used_bytes",
    "headrace_control_gateway_ready",
    "headrace_control_replica_ready",
    "headrace_control_replica_restarts",
    "headrace_control_certificate_left_seconds",
    "headrace_alert_firing",
    "up",
    "ALERTS",
}
"""What the gateway, the control plane and Prometheus itself say."""
JOB: Final = {
    "name": "nightly",
    "model": "fraud",
    "input": "/in",
    "output": "/out/{run_id}",
    "schedule": {"cron": "0 6 * * *", "late_after_s": 60.0},
}
WORDS: Final = {
    "sum", "by", "rate", "increase", "changes", "histogram_quantile", "topk", "on", "and", "or",
    "unless", "vector", "min", "max", "count", "absent", "label_replace", "time",
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All files of a spec with three kinds of endpoints."""
    for tool in ("promtool", "amtool"):
        try:
            find_tool(tool)
        except NoToolError as error:
            pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("exported")
    (folder / "headrace.yaml").write_text(SPEC)
    assert (
        main(["export", "prometheus", "-o", str(folder), "-f", str(folder / "headrace.yaml")]) == 0
    )
    assert main(["export", "grafana", "-o", str(folder)]) == 0
    return folder


def test_rules_and_configurations_are_taken_by_the_real_programs(folder: Path) -> None:
    rules = run_tool(
        "promtool", "check", "rules", "--lint-fatal", folder / RECORDING, folder / ALERTING
    )
    scrape = run_tool("promtool", "check", "config", folder / SCRAPE)
    routes = run_tool("amtool", "check-config", folder / ALERTMANAGER)

    assert rules[0] == 0, rules[1]
    assert scrape[0] == 0, scrape[1]
    assert routes[0] == 0, routes[1]


def test_every_alert_fires_and_ends(folder: Path) -> None:
    tests = write_rule_tests(folder, SPEC)

    done = run_tool("promtool", "test", "rules", *tests)

    alerts = [test["name"] for test in load(tests[0])["tests"]]
    assert alerts == [kind.name for kind in ALERTS]
    assert len(tests) == 2
    assert done[0] == 0, done[1]


@pytest.mark.parametrize(
    ("alert", "was", "becomes"),
    [
        ("HeadraceErrorBudgetFast", " > on (endpoint) (14.4", " > on (endpoint) (14400"),
        ("HeadraceLatencyP99", "} > on (endpoint) headrace:slo", "} < on (endpoint) headrace:slo"),
        ("HeadraceNoReplicaReady", " < 1 ", " < 0 "),
        ("HeadraceStreamLagging", "}) > on", "}) < on"),
        ("HeadraceStreamDown", " > 0)", " > 1)"),  # what is paused would be down
        ("HeadraceStreamDeadLetters", " > on (stream)", " < on (stream)"),
    ],
)
def test_a_rule_that_is_wrong_fails_its_test(
    folder: Path, tmp_path: Path, alert: str, was: str, becomes: str
) -> None:
    rules = load(folder / ALERTING)
    for group in rules["groups"]:
        for rule in group["rules"]:
            if rule["alert"] == alert and not rule["labels"].get("windows"):
                assert was in rule["expr"]
                rule["expr"] = rule["expr"].replace(was, becomes)
    (tmp_path / ALERTING).write_text(json.dumps(rules))
    (tmp_path / RECORDING).write_text((folder / RECORDING).read_text())
    tests = load(write_rule_tests(folder, SPEC)[0])
    tests["tests"] = [test for test in tests["tests"] if test["name"] == alert]
    (tmp_path / "one.test.yml").write_text(json.dumps(tests))

    status, _ = run_tool("promtool", "test", "rules", tmp_path / "one.test.yml")

    assert len(tests["tests"]) == 1
    assert status != 0


def test_a_stream_may_lag_as_far_as_its_spec_says(folder: Path) -> None:
    [promises] = [
        group
        for group in load(folder / RECORDING)["groups"]
        if group["name"] == "headrace-promises"
    ]
    limits = {
        (rule["record"], rule["labels"]["stream"]): rule["expr"]
        for rule in promises["rules"]
        if "stream" in rule["labels"]
    }

    assert limits == {
        ("headrace:stream_lag_limit:seconds", "pay"): "vector(12.5)",
        ("headrace:stream_dead_letters_limit:records", "pay"): "vector(3)",
    }


def test_routes_lead_by_severity(folder: Path) -> None:
    def receivers(severity: str) -> set[str]:
        config = f"--config.file={folder / ALERTMANAGER}"
        labels = (f"severity={severity}", "endpoint=fraud")
        status, said = run_tool("amtool", "config", "routes", "test", config, *labels)
        assert status == 0, said
        return set(said.partition("\n")[0].split(","))  # a warning follows

    assert receivers("page") == {"pager", "chat"}
    assert receivers("ticket") == {"chat", "post"}
    assert receivers("none") == {"nobody"}


def test_every_query_of_every_dashboard_is_promql(folder: Path, tmp_path: Path) -> None:
    rules = [
        {"record": f"dashboard:query:number{number}", "expr": query}
        for number, query in enumerate(queries())
    ]
    path = tmp_path / "dashboards.json"
    path.write_text(json.dumps({"groups": [{"name": "dashboards", "rules": rules}]}))

    status, said = run_tool("promtool", "check", "rules", "--lint=none", path)

    assert folder.exists()
    assert len(rules) > 40
    assert status == 0, said


def test_no_query_names_a_metric_that_nothing_exposes(folder: Path) -> None:
    recorded = {
        rule["record"] for group in load(folder / RECORDING)["groups"] for rule in group["rules"]
    }
    expressions = [
        *queries(),
        *(
            rule["expr"]
            for name in (RECORDING, ALERTING)
            for group in load(folder / name)["groups"]
            for rule in group["rules"]
        ),
    ]

    named = {name for expression in expressions for name in metrics_in(expression)}

    assert len(named) > 50
    assert named - replica_metrics() - stream_metrics() - job_metrics() - OTHERS - recorded == set()


def test_every_panel_has_a_unit_and_says_what_its_axis_shows(folder: Path) -> None:
    for dashboard in DASHBOARDS:
        document = json.loads((folder / f"headrace-{dashboard.name}.json").read_text())
        panels = [panel for panel in document["panels"] if panel["type"] != "row"]
        ids = [panel["id"] for panel in document["panels"]]
        assert document == dashboard_json(dashboard)
        assert len(ids) == len(set(ids))
        assert [
            p["title"] for p in panels if p["fieldConfig"]["defaults"]["unit"] in {"", "none"}
        ] == []
        for panel in panels:
            if panel["type"] == "timeseries":
                assert panel["fieldConfig"]["defaults"]["custom"]["axisLabel"], panel["title"]
            assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24


def test_no_panel_lies_on_another() -> None:
    for dashboard in DASHBOARDS:
        taken: set[tuple[int, int]] = set()
        for panel in dashboard_json(dashboard)["panels"]:
            place = panel["gridPos"]
            cells = {
                (x, y)
                for x in range(place["x"], place["x"] + place["w"])
                for y in range(place["y"], place["y"] + place["h"])
            }
            assert not cells & taken, panel["title"]
            taken |= cells


def load(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text())


def queries() -> Iterator[str]:
    """Every query as Grafana asks it, with what the reader picks filled in."""
    for dashboard in DASHBOARDS:
        for query in dashboard.queries():
            filled = query.replace("$__rate_interval", "1m").replace("$namespace", "")
            yield re.sub(r"\$(endpoint|replica|stream|job_name|job)", "one", filled)


def metrics_in(expression: str) -> set[str]:
    """The metrics that an expression names."""
    plain = re.sub(r'"[^"]*"|\[[^]]*\]|\{[^}]*\}', " ", expression)
    plain = re.sub(r"\b(by|on)\s*\([^)]*\)", " ", plain)
    names = set(re.findall(r"[a-zA-Z_:][a-zA-Z0-9_:]*", plain)) - WORDS
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}


def replica_metrics() -> set[str]:
    """What a replica says."""
    statistics = ModelStatistics(name="fraud", version="1")
    settings = ReplicaSettings(model_name="fraud", model_version="1", path="")
    return told_in(exposition(ReplicaState(settings=settings, statistics=statistics)).decode())


def stream_metrics() -> set[str]:
    """What a stream's worker says, and what the control plane says of streams."""
    status = StreamStatus(stream="pay", member="pay-0")
    worker = told_in(worker_exposition(Counters(), status).decode())
    return worker | {family.name for family in families([VIEW])}


def job_metrics() -> set[str]:
    """What the control plane says of jobs."""
    job = JobSpec.model_validate(JOB)
    mark = JobMark(job="nightly", schedule="", since=0.0, handled=0.0)
    run = new_run(job, 0.0, now=0.0)
    look = JobsSnapshot(
        generation=1,
        marks={"nightly": mark},
        open=(run,),
        succeeded={"nightly": run},
        ended={"nightly": run},
    )
    return {family.name for family in job_families({"nightly": job}, look, now=1.0)}


def told_in(text: str) -> set[str]:
    """The metrics of an exposition."""
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in names}
