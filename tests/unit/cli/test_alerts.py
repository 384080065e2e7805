"""What `headrace alerts` prints, and what is exported of a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from headrace.cli import alerts
from tests.unit.cli.conftest import Command

ALERT: dict[str, Any] = {
    "name": "HeadraceLatencyP99",
    "endpoint": "fraud",
    "severity": "ticket",
    "state": "firing",
    "since": 1764000184.0,
    "value": 0.31,
    "threshold": 0.2,
    "unit": "s",
    "summary": "p99 of fraud is 310 ms",
    "action": "Add replicas.",
}


def test_a_row_says_what_was_read_and_what_the_limit_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    alerts.show_alerts([ALERT, {**ALERT, "endpoint": "", "state": "resolved"}], "")

    shown = capsys.readouterr()
    assert "310 ms (limit 200 ms)" in shown.out
    assert shown.err == "HeadraceLatencyP99: Add replicas.\n"


def test_a_row_says_that_it_is_about_a_stream(capsys: pytest.CaptureFixture[str]) -> None:
    alerts.show_alerts([{**ALERT, "endpoint": "", "stream": "pay"}], "")

    assert "stream pay" in capsys.readouterr().out


@pytest.mark.parametrize(("endpoint", "said"), [("", "no alerts\n"), ("a", "no alerts with 'a'\n")])
def test_no_alert_is_good_news(
    endpoint: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    alerts.show_alerts([], endpoint)

    assert capsys.readouterr().err == said


def test_without_a_system_there_is_nothing_to_say(headrace: Command) -> None:
    assert headrace("alerts").status == 3


def test_a_spec_file_is_exported_without_a_system(headrace: Command, tmp_path: Path) -> None:
    spec = tmp_path / "headrace.yaml"
    spec.write_text("endpoints: [{name: fraud, model: fraud, slo: {availability: 0.99}}]\n")

    done = headrace("export", "prometheus", "-f", spec, "-o", tmp_path / "out")
    boards = headrace("export", "grafana", "-o", tmp_path / "boards")

    assert done.status == boards.status == 0
    assert "fraud" in (tmp_path / "out" / "headrace-recording.yml").read_text()
    assert "127.0.0.1:8002" in (tmp_path / "out" / "prometheus.yml").read_text()
    fleet = json.loads((tmp_path / "boards" / "headrace-fleet.json").read_text())
    assert fleet["title"] == "Headrace: fleet"


def test_a_silenced_alert_says_until_when(capsys: pytest.CaptureFixture[str]) -> None:
    alerts.show_alerts([{**ALERT, "silenced_until": 1764003600.0}], "")

    assert "firing, silenced until " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "needs an end"),
        (("--for", "2h", "--until", "2030-01-01"), "needs an end"),
        (("--for", "never"), "needs a finite duration"),
        (("--for", "soon"), "is not a duration"),
        (("--until", "tomorrow"), "is not a time"),
    ],
)
def test_a_silence_needs_one_end(headrace: Command, options: tuple[str, ...], said: str) -> None:
    done = headrace("alerts", "silence", "fraud", *options)

    assert done.status == 2
    assert said in done.err


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "alerts of the whole system"),
        ({"endpoint": "fraud", "severity": "page"}, "page alerts of fraud"),
        ({"stream": "pay", "alert": "HeadraceStreamDown"}, "HeadraceStreamDown of stream pay"),
    ],
)
def test_a_silence_is_named_by_what_it_matches(options: dict[str, str], text: str) -> None:
    empty = dict.fromkeys(("alert", "endpoint", "stream", "severity"), "")

    assert alerts._about({**empty, **options}) == text
