"""An audit as one page that needs nothing else: to read, to print, to send."""

from collections.abc import Iterator
from html import escape
from itertools import groupby
from typing import Final

from headrace.advise.check import Audit, Finding
from headrace.advise.report import Report

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
        *_not_checked(audit),
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


def _not_checked(audit: Audit) -> Iterator[str]:
    if not audit.not_checked:
        return
    yield f"<details><summary>{len(audit.not_checked)} checks could not be made</summary>"
    yield "<table>"
    for one in audit.not_checked:
        cells = (one.id, one.title, one.reason)
        yield "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    yield "</table></details>"
