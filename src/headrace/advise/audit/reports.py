"""Reports of an audit as text, JSON, HTML and SARIF."""

import hashlib
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import groupby
from pathlib import Path
from typing import Final
from urllib.parse import quote

from headrace.advise.audit.check import Audit, AuditCheck, AuditFinding, NotChecked
from headrace.advise.audit.facts import FindingSeverity
from headrace.core.pages import report_page
from headrace.core.text import printable


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """One audit with its context."""

    audit: Audit

    target: str
    """The spec file, or the address of the system."""

    created_at: datetime

    version: str
    """Headrace's version."""

    fail_on: FindingSeverity | None = None
    """Severity from which the audit fails."""

    @property
    def fails(self) -> bool:
        """Whether a finding is at or above `fail_on`."""
        return self.fail_on is not None and self.audit.reaches(self.fail_on)


_WIDTH = 96


def text_report(report: AuditReport) -> str:
    """Return the audit as text; control characters in names are escaped."""
    audit = report.audit
    lines = [f"audit of {printable(report.target)}", ""]
    for findings in _groups(audit):
        lines += _check(findings)
    lines += _not_checked(audit)
    lines.append(summary_line(audit))
    return "\n".join(lines)


def summary_line(audit: Audit) -> str:
    """Return the number of findings, in one line."""
    counts = [f"{count} {name}" for name, count in audit.counts().items() if count]
    text = f"{', '.join(counts)} finding{'' if len(audit.findings) == 1 else 's'}"
    others = f"{len(audit.passed)} checks passed, {len(audit.not_checked)} could not run"
    return f"{text if counts else 'no findings'}; {others}"


def _groups(audit: Audit) -> list[list[AuditFinding]]:
    """Return the findings grouped by check and severity."""
    groups = groupby(audit.findings, key=lambda finding: (finding.id, finding.severity))
    return [list(group) for _, group in groups]


def _check(findings: list[AuditFinding]) -> Iterator[str]:
    yield f"{findings[0].severity.upper():<8} {findings[0].id}  {findings[0].title}"
    for finding in findings:
        location = f"{finding.file}:{finding.line} " if finding.file else ""
        # Without a file, the location alone identifies the finding.
        yield f"    at   {printable(location + finding.where)}"
        yield f"    seen {printable(finding.evidence)}"
    for number, line in enumerate(textwrap.wrap(printable(findings[0].why), _WIDTH - 9)):
        yield f"    {'' if number else 'why':<4} {line}"
    for fix in dict.fromkeys(finding.fix for finding in findings):
        for number, line in enumerate(fix.splitlines()):
            yield f"    {'' if number else 'fix':<4} {printable(line)}"
    yield ""


def _not_checked(audit: Audit) -> Iterator[str]:
    if not audit.not_checked:
        return
    yield "not checked:"
    by_reason: dict[str, list[str]] = {}
    for skipped in audit.not_checked:
        by_reason.setdefault(skipped.reason, []).append(skipped.id)
    for reason, checks in by_reason.items():
        yield from textwrap.wrap(
            f"{', '.join(checks)}: {printable(reason)}",
            _WIDTH,
            initial_indent="    ",
            subsequent_indent="      ",
        )
    yield ""


SCHEMA = 1
"""Incremented when a field changes its meaning or is removed; new fields do not change it."""

Document = dict[str, object]


def json_report(report: AuditReport) -> Document:
    """Return the audit as plain JSON data."""
    audit = report.audit
    return {
        "schema": SCHEMA,
        "headrace": report.version,
        "target": report.target,
        "at": report.created_at.isoformat(timespec="seconds"),
        "summary": audit.counts(),
        "fail_on": None if report.fail_on is None else report.fail_on.value,
        "fails": report.fails,
        "findings": [asdict(finding) for finding in audit.findings],
        "not_checked": [asdict(skipped) for skipped in audit.not_checked],
        "passed": list(audit.passed),
    }


def html_report(report: AuditReport) -> str:
    """Return the audit as an HTML document; values of the system are escaped."""
    return report_page(
        Path(__file__).with_name("report.html"),
        title=f"Audit of {report.target}",
        report=report,
        groups=_groups(report.audit),
    )


Json = dict[str, object]
_SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_LEVELS: Final = {
    FindingSeverity.LOW: "note",
    FindingSeverity.MEDIUM: "warning",
    FindingSeverity.HIGH: "error",
    FindingSeverity.CRITICAL: "error",
}
_SCORES: Final = {
    FindingSeverity.LOW: "3.0",
    FindingSeverity.MEDIUM: "5.5",
    FindingSeverity.HIGH: "8.0",
    FindingSeverity.CRITICAL: "9.5",
}
"""GitHub sorts by these scores; the ranges match our severities."""


def sarif_report(report: AuditReport, checks: Sequence[AuditCheck]) -> Json:
    """Return the audit as a SARIF log of one run."""
    indexes = {check.id: i for i, check in enumerate(checks)}
    audit = report.audit
    return {
        "$schema": _SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "headrace audit",
                        "semanticVersion": report.version,
                        "rules": [_rule(check) for check in checks],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "invocations": [
                    {
                        "executionSuccessful": True,
                        "endTimeUtc": report.created_at.strftime("%Y-%m-%dT%H:%M:%SZ"),
                        "toolExecutionNotifications": [
                            _not_checked_sarif(skipped, indexes[skipped.id])
                            for skipped in audit.not_checked
                        ],
                    }
                ],
                "results": [
                    _result(finding, indexes[finding.id], report.target)
                    for finding in audit.findings
                ],
            }
        ],
    }


def _rule(check: AuditCheck) -> Json:
    return {
        "id": check.id,
        "name": "".join(word.capitalize() for word in check.title.split() if word.isalnum()),
        "shortDescription": {"text": check.title},
        "fullDescription": {"text": check.why},
        "help": {"text": f"{check.why}\n\n{check.fix}"},
        "defaultConfiguration": {"level": _LEVELS[check.severity]},
        "properties": {
            "security-severity": _SCORES[check.severity],
            "severity": check.severity.value,
            "tags": ["security"],
        },
    }


def _result(finding: AuditFinding, index: int, target: str) -> Json:
    # The location, not the evidence: a finding keeps its identity when a value changes.
    identity = f"{finding.id}\0{finding.file or target}\0{finding.where}"
    location: Json = {"logicalLocations": [{"fullyQualifiedName": finding.where}]}
    if finding.file:
        physical: Json = {"artifactLocation": {"uri": file_uri(finding.file)}}
        if finding.line is not None:
            physical["region"] = {"startLine": finding.line}
        location["physicalLocation"] = physical
    return {
        "ruleId": finding.id,
        "ruleIndex": index,
        "level": _LEVELS[finding.severity],
        "message": {"text": f"{finding.title}: {finding.evidence}\n\nFix: {finding.fix}"},
        "locations": [location],
        "partialFingerprints": {
            "headraceFinding/v1": hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()
        },
        "properties": {"severity": finding.severity.value, "evidence": finding.evidence},
    }


def file_uri(path: str) -> str:
    """Return a path as SARIF URI: relative if it was given so, else a file URL."""
    quoted = quote(Path(path).as_posix(), errors="replace")
    # A colon in the first part would be parsed as a scheme, so it is quoted.
    return f"file://{quoted}" if Path(path).is_absolute() else quoted


def _not_checked_sarif(skipped: NotChecked, index: int) -> Json:
    return {
        "level": "note",
        "message": {"text": f"{skipped.id} was not checked: {skipped.reason}"},
        "associatedRule": {"id": skipped.id, "index": index},
    }
