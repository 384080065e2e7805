"""An audit for programs."""

from dataclasses import asdict

from headrace.advise.report import Report

SCHEMA = 1
"""Grows when a field changes its meaning or goes; new fields may come without."""

Document = dict[str, object]


def json_report(report: Report) -> Document:
    """The audit as plain JSON data."""
    audit = report.audit
    return {
        "schema": SCHEMA,
        "headrace": report.version,
        "target": report.target,
        "at": report.at.isoformat(timespec="seconds"),
        "summary": audit.counts(),
        "fail_on": None if report.fail_on is None else report.fail_on.value,
        "fails": report.fails,
        "findings": [asdict(finding) for finding in audit.findings],
        "not_checked": [asdict(one) for one in audit.not_checked],
        "passed": list(audit.passed),
    }
