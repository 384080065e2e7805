"""The documentation tells every alert as it is."""

import re
from pathlib import Path

from headrace.monitor.alert_kinds import ALERTS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "alerts.md"


def test_every_alert_is_told_with_its_severity_and_what_to_do() -> None:
    row = re.compile(r"^\| `(Headrace\w+)` \| (\w+) \| (.+) \| (.+) \|$", re.MULTILINE)

    rows = row.findall(PAGE.read_text())

    assert [(name, severity) for name, severity, _, _ in rows] == [
        (kind.name, kind.severity.value) for kind in ALERTS
    ]
    told = {name: when for name, _, when, _ in rows}
    only = {kind.name for kind in ALERTS if kind.local is None}
    assert {name for name, when in told.items() if "Prometheus only" in when} == only
    assert all(len(kind.action) > 20 for kind in ALERTS)
