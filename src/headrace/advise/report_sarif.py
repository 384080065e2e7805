"""An audit in SARIF 2.1.0, which code hosts show beside the lines of the spec."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Final
from urllib.parse import quote

from headrace.advise.check import Check, Finding, NotChecked
from headrace.advise.report import Report
from headrace.advise.severity import Severity

Json = dict[str, object]
_SCHEMA: Final = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_LEVELS: Final = {
    Severity.LOW: "note",
    Severity.MEDIUM: "warning",
    Severity.HIGH: "error",
    Severity.CRITICAL: "error",
}
_SCORES: Final = {
    Severity.LOW: "3.0",
    Severity.MEDIUM: "5.5",
    Severity.HIGH: "8.0",
    Severity.CRITICAL: "9.5",
}
"""What GitHub sorts by; its names for the ranges are ours."""


def sarif_report(report: Report, checks: Sequence[Check]) -> Json:
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
                            _not_checked(one, places[one.id]) for one in audit.not_checked
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


def _rule(check: Check) -> Json:
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


def _result(finding: Finding, index: int, target: str) -> Json:
    # The place and not the evidence: a finding stays the same one when a value changes.
    identity = f"{finding.id}\0{finding.file or target}\0{finding.where}"
    return {
        "ruleId": finding.id,
        "ruleIndex": index,
        "level": _LEVELS[finding.severity],
        "message": {"text": f"{finding.title}: {finding.evidence}\n\nFix: {finding.fix}"},
        "locations": [_location(finding)],
        "partialFingerprints": {
            "headraceFinding/v1": hashlib.sha256(identity.encode("utf-8", "replace")).hexdigest()
        },
        "properties": {"severity": finding.severity.value, "evidence": finding.evidence},
    }


def _location(finding: Finding) -> Json:
    found: Json = {"logicalLocations": [{"fullyQualifiedName": finding.where}]}
    if finding.file:
        physical: Json = {"artifactLocation": {"uri": file_uri(finding.file)}}
        if finding.line is not None:
            physical["region"] = {"startLine": finding.line}
        found["physicalLocation"] = physical
    return found


def file_uri(path: str) -> str:
    """A path as SARIF has it: relative where it was given so, else a URL."""
    quoted = quote(Path(path).as_posix(), errors="replace")
    # A colon in the first part would be taken for a scheme; it is quoted, too.
    return f"file://{quoted}" if Path(path).is_absolute() else quoted


def _not_checked(one: NotChecked, index: int) -> Json:
    return {
        "level": "note",
        "message": {"text": f"{one.id} was not checked: {one.reason}"},
        "associatedRule": {"id": one.id, "index": index},
    }
