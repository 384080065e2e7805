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
    """One audit with its circumstances. `target`: the spec file, or where the system runs."""

    audit: Audit
    target: str
    at: datetime
    version: str
    fail_on: FindingSeverity | None = None

    @property
    def fails(self) -> bool:
        """Whether a finding is as bad as was asked for."""
        return self.fail_on is not None and self.audit.reaches(self.fail_on)


_WIDTH = 96


def text_report(report: AuditReport) -> str:
    """The audit as text; control characters in names are shown, not sent to the terminal."""
    audit = report.audit
    lines = [f"audit of {printable(report.target)}", ""]
    for found in _groups(audit):
        lines += _check(found)
    lines += _not_checked(audit)
    lines.append(summary_line(audit))
    return "\n".join(lines)


def summary_line(audit: Audit) -> str:
    """How many findings there are, in one line."""
    counts = [f"{count} {name}" for name, count in audit.counts().items() if count]
    found = f"{', '.join(counts)} finding{'' if len(audit.findings) == 1 else 's'}"
    others = f"{len(audit.passed)} checks passed, {len(audit.not_checked)} could not be made"
    return f"{found if counts else 'no findings'}; {others}"


def _groups(audit: Audit) -> list[list[AuditFinding]]:
    """The findings of each check and severity."""
    groups = groupby(audit.findings, key=lambda finding: (finding.id, finding.severity))
    return [list(found) for _, found in groups]


def _check(found: list[AuditFinding]) -> Iterator[str]:
    yield f"{found[0].severity.upper():<8} {found[0].id}  {found[0].title}"
    for finding in found:
        place = f"{finding.file}:{finding.line} " if finding.file else ""
        # Where no file is, the place alone says where to look.
        yield f"    at   {printable(place + finding.where)}"
        yield f"    seen {printable(finding.evidence)}"
    for number, line in enumerate(textwrap.wrap(printable(found[0].why), _WIDTH - 9)):
        yield f"    {'' if number else 'why':<4} {line}"
    for fix in dict.fromkeys(finding.fix for finding in found):
        for number, line in enumerate(fix.splitlines()):
            yield f"    {'' if number else 'fix':<4} {printable(line)}"
    yield ""


def _not_checked(audit: Audit) -> Iterator[str]:
    if not audit.not_checked:
        return
    yield "not checked:"
    by_reason: dict[str, list[str]] = {}
    for one in audit.not_checked:
        by_reason.setdefault(one.reason, []).append(one.id)
    for reason, checks in by_reason.items():
        yield from textwrap.wrap(
            f"{', '.join(checks)}: {printable(reason)}",
            _WIDTH,
            initial_indent="    ",
            subsequent_indent="      ",
        )
    yield ""


SCHEMA = 1
"""Grows when a field changes its meaning or goes; new fields may come without."""

Document = dict[str, object]


def json_report(report: AuditReport) -> Document:
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


def html_report(report: AuditReport) -> str:
    """The audit as an HTML document; everything that comes from the system is escaped."""
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
"""What GitHub sorts by; its names for the ranges are ours."""


def sarif_report(report: AuditReport, checks: Sequence[AuditCheck]) -> Json:
    """The audit as a SARIF log of one run."""
    places = {check.id: i for i, check in enumerate(checks)}
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
                        "endTimeUtc": report.at.strftime("%Y-%m-%dT%H:%M:%SZ"),
                        "toolExecutionNotifications": [
                            _not_checked_sarif(one, places[one.id]) for one in audit.not_checked
                        ],
                    }
                ],
                "results": [
                    _result(finding, places[finding.id], report.target)
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
    # The place and not the evidence: a finding stays the same one when a value changes.
    identity = f"{finding.id}\0{finding.file or target}\0{finding.where}"
    found: Json = {"logicalLocations": [{"fullyQualifiedName": finding.where}]}
    if finding.file:
        physical: Json = {"artifactLocation": {"uri": file_uri(finding.file)}}
        if finding.line is not None:
            physical["region"] = {"startLine": finding.line}
        found["physicalLocation"] = physical
    return {
        "ruleId": finding.id,
        "ruleIndex": index,
        "level": _LEVELS[finding.severity],
        "message": {"text": f"{finding.title}: {finding.evidence}\n\nFix: {finding.fix}"},
        "locations": [found],
        "partialFingerprints": {
            "headraceFinding/v1": hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()
        },
        "properties": {"severity": finding.severity.value, "evidence": finding.evidence},
    }


def file_uri(path: str) -> str:
    """A path as SARIF has it: relative where it was given so, else a URL."""
    quoted = quote(Path(path).as_posix(), errors="replace")
    # A colon in the first part would be taken for a scheme; it is quoted, too.
    return f"file://{quoted}" if Path(path).is_absolute() else quoted


def _not_checked_sarif(one: NotChecked, index: int) -> Json:
    return {
        "level": "note",
        "message": {"text": f"{one.id} was not checked: {one.reason}"},
        "associatedRule": {"id": one.id, "index": index},
    }
