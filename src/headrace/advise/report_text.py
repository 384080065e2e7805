"""An audit for people at a terminal: what is wrong, why that is bad, what to do."""

import textwrap
from collections.abc import Iterator
from itertools import groupby

from headrace.advise.check import Audit, Finding
from headrace.advise.report import Report
from headrace.advise.severity import Severity

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
