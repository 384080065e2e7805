"""Reports of an audit as text, JSON, HTML and SARIF."""

import hashlib
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from html import escape
from itertools import groupby
from pathlib import Path
from typing import Final
from urllib.parse import quote

from headrace.advise.check import Audit, Check, Finding, NotChecked
from headrace.advise.facts import Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """One audit with its circumstances. `target`: the spec file, or where the system runs."""

    audit: Audit
    target: str
    at: datetime
    version: str
    fail_on: Severity | None = None

    @property
    def fails(self) -> bool:
        """Whether a finding is as bad as was asked for."""
        return self.fail_on is not None and self.audit.reaches(self.fail_on)


_WIDTH = 96


def text_report(report: Report) -> str:
    """The audit as text; control characters in names are shown, not sent to the terminal."""
    audit = report.audit
    lines = [f"audit of {printable(report.target)}", ""]
    for (check, severity), found in groupby(audit.findings, key=lambda f: (f.id, f.severity)):
        lines += _check(check, severity, list(found))
    lines += _not_checked(audit)
    lines.append(summary_line(audit))
    return "\n".join(lines)


def summary_line(audit: Audit) -> str:
    """How many findings there are, in one line."""
    counts = [f"{count} {name}" for name, count in audit.counts().items() if count]
    found = f"{', '.join(counts)} finding{'' if len(audit.findings) == 1 else 's'}"
    others = f"{len(audit.passed)} checks passed, {len(audit.not_checked)} could not be made"
    return f"{found if counts else 'no findings'}; {others}"


def _check(check: str, severity: Severity, found: list[Finding]) -> Iterator[str]:
    yield f"{severity.upper():<8} {check}  {found[0].title}"
    for finding in found:
        place = f"{finding.file}:{finding.line} " if finding.file else ""
        # Where no file is, the place alone says where to look.
        yield f"    at   {printable(place + finding.where)}"
        yield f"    seen {printable(finding.evidence)}"
    yield from _wrapped("why", found[0].why)
    for fix in dict.fromkeys(finding.fix for finding in found):
        label = "fix"
        for line in fix.splitlines():
            yield f"    {label:<4} {printable(line)}"
            label = ""
    yield ""


def _wrapped(label: str, text: str) -> Iterator[str]:
    for line in textwrap.wrap(printable(text), _WIDTH - 9):
        yield f"    {label:<4} {line}"
        label = ""


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


def printable(text: str) -> str:
    """`text` with everything escaped that a terminal might take for a command."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode()
        for letter in text.encode("utf-8", "replace").decode()
    )


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


_STYLE: Final = """\
:root { color-scheme: light dark; --paper: #fff; --ink: #1c1e21; --soft: #5c636b; --line: #d9dde2;
  --panel: #f5f6f8; --critical: #b3123b; --high: #c2410c; --medium: #8a6100; --low: #2f6690;
  --good: #1d6f42 }
@media (prefers-color-scheme: dark) { :root { --paper: #15171a; --ink: #e8eaed; --soft: #a2a9b1;
  --line: #33383e; --panel: #1e2125; --critical: #ff7a9a; --high: #ff9d66; --medium: #e5bd55;
  --low: #83bbe5; --good: #6fce99 } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif }
main { max-width: 60rem; margin: 0 auto; padding: 1.5rem 1rem 4rem }
h1 { font-size: 1.5rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere }
h2 { font-size: 1.05rem; margin: 0; overflow-wrap: anywhere }
p { margin: .25rem 0 }
.soft { color: var(--soft); font-size: .9rem }
.counts { display: flex; flex-wrap: wrap; gap: .5rem; list-style: none; margin: 1.25rem 0;
  padding: 0 }
.counts li { background: var(--panel); border: 1px solid var(--line); border-radius: .5rem;
  padding: .4rem .8rem; min-width: 6rem }
.counts b { display: block; font-size: 1.5rem; line-height: 1.2 }
article { border: 1px solid var(--line); border-left: .3rem solid; border-radius: .5rem;
  margin: 1rem 0; padding: .9rem 1rem }
article > * { color: var(--ink) }
.critical { border-left-color: var(--critical) } .high { border-left-color: var(--high) }
.medium { border-left-color: var(--medium) } .low { border-left-color: var(--low) }
.badge { font-size: .75rem; font-weight: 700; text-transform: uppercase; letter-spacing: .04em }
.critical .badge, b.critical { color: var(--critical) } .high .badge, b.high { color: var(--high) }
.medium .badge, b.medium { color: var(--medium) } .low .badge, b.low { color: var(--low) }
.good { color: var(--good) }
ul.seen { margin: .5rem 0; padding-left: 1.1rem }
code, pre { font: .875em/1.45 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
code { overflow-wrap: anywhere }
pre { background: var(--panel); border: 1px solid var(--line); border-radius: .4rem;
  margin: .5rem 0 0; overflow-x: auto; padding: .6rem .8rem }
table { border-collapse: collapse; width: 100%; font-size: .9rem }
td { border-top: 1px solid var(--line); padding: .35rem .5rem .35rem 0; vertical-align: top;
  overflow-wrap: anywhere }
details summary { cursor: pointer; margin-top: 1.5rem }
@media print { article { break-inside: avoid } details > * { display: block } }"""

_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"


def html_report(report: Report) -> str:
    """The audit as an HTML document; everything that comes from the system is escaped."""
    audit = report.audit
    target = escape(report.target)
    circumstances = (
        f"{report.at:%Y-%m-%d %H:%M} UTC, headrace {escape(report.version)}, "
        f"{len(audit.passed)} checks passed, {len(audit.not_checked)} could not be made"
    )
    body = [
        f"<h1>Audit of {target}</h1>",
        f'<p class="soft">{circumstances}</p>',
        *_counts(audit),
        *_findings(audit),
        *_not_checked_html(audit),
    ]
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # Nothing is loaded and nothing runs, whatever a name in it may hold.
            f'<meta http-equiv="content-security-policy" content="{_POLICY}">',
            f"<title>Audit of {target}</title>",
            f"<style>\n{_STYLE}\n</style>",
            "</head>",
            "<body>",
            "<main>",
            *body,
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _counts(audit: Audit) -> Iterator[str]:
    yield '<ul class="counts">'
    for name, count in audit.counts().items():
        mark = f' class="{name}"' if count else ""
        yield f"<li><b{mark}>{count}</b> {name}</li>"
    yield "</ul>"


def _findings(audit: Audit) -> Iterator[str]:
    if not audit.findings:
        yield '<p class="good"><b>No findings.</b></p>'
    for (check, severity), found in groupby(audit.findings, key=lambda f: (f.id, f.severity)):
        yield from _article(check, severity.value, list(found))


def _article(check: str, severity: str, found: list[Finding]) -> Iterator[str]:
    yield f'<article class="{severity}">'
    yield f'<span class="badge">{severity}</span> <span class="soft">{escape(check)}</span>'
    yield f"<h2>{escape(found[0].title)}</h2>"
    yield f"<p>{escape(found[0].why)}</p>"
    yield '<ul class="seen">'
    for finding in found:
        place = f"{finding.file}:{finding.line} " if finding.file else ""
        where = f"<code>{escape(place + finding.where)}</code>"
        yield f"<li>{where}<br>{escape(finding.evidence)}</li>"
    yield "</ul>"
    for fix in dict.fromkeys(finding.fix for finding in found):
        yield f"<pre>{escape(fix)}</pre>"
    yield "</article>"


def _not_checked_html(audit: Audit) -> Iterator[str]:
    if not audit.not_checked:
        return
    yield f"<details><summary>{len(audit.not_checked)} checks could not be made</summary>"
    yield "<table>"
    for one in audit.not_checked:
        cells = (one.id, one.title, one.reason)
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table></details>"


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
