"""Report as one HTML page, with tables and intervals as bars."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.core.charts import Scale
from headrace.core.text import NOTHING, bytes_text, number_text
from headrace.optimize.report import text
from headrace.optimize.report.data import (
    CandidateReport,
    Interval,
    Kind,
    Numbered,
    OptimizeReport,
    numbered,
    points,
)
from headrace.optimize.report.plot import NARROW, WIDE, plot

_MARKS: Final = {
    Kind.BASELINE: "baseline",
    Kind.REFERENCE: "another baseline",
    Kind.CHOSEN: "chosen",
    Kind.PASSED: "",
    Kind.REJECTED: "",
}
_BAR_WIDTH: Final = 132
_BAR_HEIGHT: Final = 14
_BAR_ROOM: Final = 6.0
_LARGEST: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """A scale for a column. `neutral`: where nothing changed; `limit`: what is tolerated."""

    low: float
    high: float
    neutral: float | None = None
    limit: float | None = None

    def bar(self, value: float | None, bounds: Interval | None) -> str:
        """One row's picture; empty where nothing is known. The figures stand beside it."""
        if value is None or not math.isfinite(value):
            return ""
        return "".join(self._parts(value, bounds))

    def _parts(self, value: float, bounds: Interval | None) -> Iterator[str]:
        middle = _BAR_HEIGHT / 2
        look = f'class="interval" viewBox="0 0 {_BAR_WIDTH} {_BAR_HEIGHT}"'
        yield f'<svg {look} aria-hidden="true">'
        for kind, at in (("neutral", self.neutral), ("limit", self.limit)):
            if at is not None:
                yield f'<path class="{kind}" d="M{self._scale.place(at)} 0V{_BAR_HEIGHT}"/>'
        if bounds is not None and not any(map(math.isnan, bounds)):
            low, high = map(self._scale.place, bounds)
            yield f'<path class="reach" d="M{low} {middle}H{high}"/>'
        yield f'<circle cx="{self._scale.place(value)}" cy="{middle}" r="3.2"/></svg>'

    @property
    def _scale(self) -> Scale:
        high = self.high if self.high > self.low else self.low + 1.0
        return Scale(low=self.low, high=high, start=_BAR_ROOM, end=_BAR_WIDTH - _BAR_ROOM)


def bars(
    values: Iterable[float | None],
    bounds: Iterable[Interval | None] = (),
    *,
    neutral: float | None = None,
    limit: float | None = None,
) -> Bars:
    """A scale that holds all values with their bounds."""
    known = [value for value in values if value is not None]
    known += [x for pair in bounds if pair is not None for x in pair]
    known += [x for x in (neutral, limit) if x is not None]
    known = [value for value in known if abs(value) <= _LARGEST]
    low, high = min(known, default=0.0), max(known, default=1.0)
    return Bars(low=low, high=high, neutral=neutral, limit=limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scales:
    p50: Bars
    cut: Bars
    loss: Bars


def candidates_table(report: OptimizeReport) -> Iterator[str]:
    """Those that may be served, with all that is known of them."""
    rows = [one for one in numbered(report) if one.kind is not Kind.REJECTED]
    scales = _scales([one.candidate for one in rows], report)
    heads = ["candidate", "median latency", "less time", text.quality_head(report.data)]
    heads += [_loss_head(report)] if report.data.is_labelled else []
    heads += ["p99", "files", "memory"]
    heads += ["cost per million"] if _has_cost(rows) else []
    yield from _head(heads)
    for one in rows:
        yield f'<tr class="{one.kind}" role="row">{_name(one)}'
        cells = _figures(one, report, scales)
        yield from (_cell(head, cell) for head, cell in zip(heads[1:], cells, strict=False))
        yield "</tr>"
    yield "</tbody></table>"


def rejected_table(report: OptimizeReport) -> Iterator[str]:
    """Those that may not be served, and why."""
    rows = [one for one in numbered(report) if one.kind is Kind.REJECTED]
    quality, lost = text.quality_head(report.data), _loss_head(report)
    losses = [lost] if report.data.is_labelled else []
    yield from _head(["candidate", "median latency", "less time", quality, *losses, "why"])
    for one in rows:
        candidate = one.candidate
        yield f'<tr class="{one.kind}" role="row">{_name(one)}'
        yield _cell("median latency", _known(text.seconds(candidate.p50_s, candidate.p50_ci_s)))
        yield _cell("less time", _known(text.percent(candidate.cut_ratio, candidate.cut_ci_ratio)))
        yield _cell(quality, _known(text.quality(candidate, report.data)))
        if losses:
            yield _cell(lost, _known(text.loss(candidate, report.data)))
        reason = text.markup(candidate.reason or "no reason is known")
        yield f'<td class="reason" role="cell" data-label="why">{reason}</td></tr>'
    yield "</tbody></table>"


def _figures(one: Numbered, report: OptimizeReport, scales: _Scales) -> Iterator[str]:
    candidate, is_baseline = one.candidate, one.kind is Kind.BASELINE
    yield _barred(
        text.seconds(candidate.p50_s, candidate.p50_ci_s),
        scales.p50.bar(candidate.p50_s, candidate.p50_ci_s),
    )
    yield (
        "baseline"
        if is_baseline
        else _barred(
            text.percent(candidate.cut_ratio, candidate.cut_ci_ratio),
            scales.cut.bar(candidate.cut_ratio, candidate.cut_ci_ratio),
        )
    )
    yield _known(text.quality(candidate, report.data))
    if report.data.is_labelled:
        yield (
            ""
            if is_baseline
            else _barred(
                text.loss(candidate, report.data),
                scales.loss.bar(candidate.accuracy_loss, candidate.accuracy_loss_ci),
            )
            + _split(candidate)
        )
    yield _known(text.seconds(candidate.p99_s))
    yield _known(bytes_text(candidate.size_bytes))
    yield _known(bytes_text(candidate.memory_bytes))
    yield _known(number_text(candidate.cost_per_million))


def _split(candidate: CandidateReport) -> str:
    """Which answers changed for better or worse, by how little chance."""
    if candidate.lost is None or candidate.gained is None:
        return ""
    said = f"{candidate.lost:,} lost, {candidate.gained:,} gained"
    chance = text.p_value(candidate.p_value)
    return f'<span class="small soft">{said}{f" ({text.markup(chance)})" if chance else ""}</span>'


def _scales(rows: Sequence[CandidateReport], report: OptimizeReport) -> _Scales:
    return _Scales(
        p50=bars(
            [0.0, *(one.p50_s for one in rows)],
            [one.p50_ci_s for one in rows],
            neutral=report.baseline.p50_s,
        ),
        cut=bars([one.cut_ratio for one in rows], [one.cut_ci_ratio for one in rows], neutral=0.0),
        loss=bars(
            [one.accuracy_loss for one in rows],
            [one.accuracy_loss_ci for one in rows],
            neutral=0.0,
            limit=report.settings.max_loss,
        ),
    )


def _head(heads: Sequence[str]) -> Iterator[str]:
    # Roles are said, for a phone's layout of these elements would make them forgotten.
    cells = (f'<th scope="col" role="columnheader">{text.markup(head)}</th>' for head in heads)
    yield '<table class="rows" role="table"><thead role="rowgroup"><tr role="row">'
    yield from cells
    yield '</tr></thead><tbody role="rowgroup">'


def _name(one: Numbered) -> str:
    candidate, mark = one.candidate, _MARKS[one.kind]
    said = f'<span class="no">{one.number}</span>{text.markup(candidate.name)}'
    said += f' <span class="mark">{mark}</span>' if mark else ""
    if candidate.title and candidate.title != candidate.name:
        said += f"<small>{text.markup(candidate.title)}</small>"
    if candidate.recipe:
        steps = (
            f"<div>{text.markup(k)}: {text.markup(v)}</div>" for k, v in candidate.recipe.items()
        )
        said += f"<details><summary>recipe</summary>{''.join(steps)}</details>"
    return f'<th scope="row" role="rowheader">{said}</th>'


def _cell(head: str, cell: str) -> str:
    return f'<td role="cell" data-label="{text.markup(head)}">{cell}</td>'


def _barred(figure_text: str, bar: str) -> str:
    return f"{_known(figure_text)}{bar}"


def _known(figure_text: str) -> str:
    """A figure and its interval; neither is broken over lines."""
    if figure_text == NOTHING:
        return ""
    figure, bracket, interval = figure_text.partition(" [")
    said = f'<span class="figure">{text.markup(figure)}</span>'
    return said + (f' <span class="figure soft">[{text.markup(interval)}</span>' if bracket else "")


def _loss_head(report: OptimizeReport) -> str:
    return "loss, points" if text.in_percent(report.data) else "loss"


def _has_cost(rows: Sequence[Numbered]) -> bool:
    return any(one.candidate.cost_per_million is not None for one in rows)


STYLE: Final = """\
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1e23; --soft: #5b636d; --line: #dce0e5;
  --panel: #f5f7f9; --chosen: #0b7a4b; --passed: #2563a8; --base: #3b4048; --rejected: #b4342d;
  --front: #0b7a4b }
@media (prefers-color-scheme: dark) { :root { --paper: #14171a; --ink: #e7eaee; --soft: #a3abb5;
  --line: #323840; --panel: #1c2024; --chosen: #4cc38a; --passed: #79b0f0; --base: #c9d0d8;
  --rejected: #ff8f80; --front: #4cc38a } }
@media print { :root { color-scheme: light; --paper: #fff; --ink: #000; --soft: #444;
  --line: #bbb; --panel: #fff; --chosen: #0b7a4b; --passed: #2563a8; --base: #3b4048;
  --rejected: #b4342d; --front: #0b7a4b } }
* { box-sizing: border-box }
body { margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", sans-serif; -webkit-text-size-adjust: 100% }
main { max-width: 70rem; margin: 0 auto; padding: 2rem 1.25rem 4rem }
h1 { font-size: 1.65rem; line-height: 1.2; margin: 0 0 .25rem; overflow-wrap: anywhere;
  text-wrap: balance }
h2 { font-size: 1.1rem; margin: 2.5rem 0 .5rem }
p { margin: .4rem 0; max-width: 48rem; overflow-wrap: anywhere }
.soft { color: var(--soft) } small, .small { font-size: .82rem }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(8rem, 1fr)); gap: .6rem;
  margin: 1.25rem 0 }
.tiles div { background: var(--panel); border: 1px solid var(--line); border-radius: .6rem;
  padding: .6rem .8rem; min-width: 0 }
.tiles dt { color: var(--soft); font-size: .82rem }
.tiles dd { margin: 0; font-size: 1.3rem; font-weight: 650; line-height: 1.3;
  font-variant-numeric: tabular-nums; overflow-wrap: anywhere }
.tiles dd small { display: block; color: var(--soft); font-weight: 400 }
figure { margin: 1rem 0 }
svg.plot { display: block; width: 100%; height: auto }
svg.narrow { display: none }
svg text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: var(--ink) }
svg .tick, svg .soft { fill: var(--soft) }
svg path { fill: none; stroke-width: 1.4 }
.grid { stroke: var(--line); stroke-width: 1 } .axis { stroke: var(--soft) }
.limit { stroke: var(--rejected); stroke-dasharray: 5 4; stroke-width: 1.2 }
.front { stroke: var(--front); stroke-width: 1.6; opacity: .55 }
.lead { stroke: var(--soft); stroke-width: .8 }
.size { fill-opacity: .16; stroke-opacity: .5 }
.chosen { --look: var(--chosen) } .passed { --look: var(--passed) }
.baseline, .reference { --look: var(--base) } .rejected { --look: var(--rejected) }
g .size { fill: var(--look); stroke: var(--look) } g .bar { stroke: var(--look) }
g .core { fill: var(--look); stroke: var(--look) }
g.rejected .size { fill: none; stroke-dasharray: 3 3; stroke-opacity: .8 }
g.rejected .core { fill: var(--paper); stroke: var(--look); stroke-width: 1.4 }
svg .name { fill: var(--look) } svg .name.chosen, svg .name.baseline { font-weight: 650 }
.legend { display: flex; flex-wrap: wrap; gap: .3rem 1.1rem; list-style: none; margin: .5rem 0;
  padding: 0; font-size: .85rem; color: var(--soft) }
.legend svg { width: 1.5rem; height: 1rem; vertical-align: -.15rem; margin-right: .25rem }
table { border-collapse: collapse; width: 100%; font-size: .875rem;
  font-variant-numeric: tabular-nums }
th { text-align: left; font-weight: 600 }
thead th { color: var(--soft); font-weight: 500; border-bottom: 1px solid var(--soft);
  vertical-align: bottom }
th, td { padding: .45rem .75rem .45rem 0; vertical-align: top }
tbody th, tbody td { border-bottom: 1px solid var(--line) }
tbody th { overflow-wrap: anywhere; min-width: 9rem } td { min-width: 4rem }
tbody th small { display: block; color: var(--soft); font-weight: 400 }
.no { color: var(--soft); font-weight: 400; margin-right: .35rem }
.mark { color: var(--look); font-weight: 650 }
tr.chosen { background: var(--panel) } tr.chosen th { box-shadow: inset 3px 0 var(--chosen) }
tr.chosen th, tr.baseline th, .rows tbody th { padding-left: .6rem }
.figure { white-space: nowrap }
.reason { min-width: 14rem; overflow-wrap: anywhere }
svg.interval { display: block; width: 8.25rem; height: .875rem; margin-top: .15rem }
.interval circle { fill: var(--look, var(--passed)) }
.interval .reach { stroke: var(--look, var(--passed)); stroke-width: 3; opacity: .6 }
.interval .neutral { stroke: var(--soft); stroke-width: 1 }
details summary { cursor: pointer; color: var(--soft); font-weight: 400; font-size: .82rem }
details div { font-weight: 400; font-size: .82rem; overflow-wrap: anywhere }
.facts { display: grid; grid-template-columns: minmax(9rem, max-content) 1fr; gap: .25rem 1.25rem;
  font-size: .9rem }
.facts dt { color: var(--soft) } .facts dd { margin: 0; overflow-wrap: anywhere; min-width: 0 }
code { font: .9em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace }
:focus-visible { outline: 2px solid var(--passed); outline-offset: 2px }
@media (max-width: 44rem) {
  main { padding: 1.25rem 1rem 3rem } h1 { font-size: 1.35rem }
  svg.wide { display: none } svg.narrow { display: block }
  .tiles { grid-template-columns: 1fr 1fr }
  .facts { grid-template-columns: 1fr; gap: 0 } .facts dd { margin-bottom: .5rem }
  table, tbody { display: block } thead { position: absolute; width: 1px; height: 1px;
    overflow: hidden; clip-path: inset(50%) }
  tbody tr { display: grid; grid-template-columns: 1fr 1fr; gap: .45rem 1rem; padding: .7rem .6rem;
    border-bottom: 1px solid var(--line) }
  tbody th, tbody td { border: 0; padding: 0; min-width: 0 }
  tbody th, td.reason { grid-column: 1 / -1 } .rows tbody th { padding-left: 0 }
  tr.chosen { box-shadow: inset 3px 0 var(--chosen) } tr.chosen th { box-shadow: none }
  td::before { content: attr(data-label); display: block; color: var(--soft); font-size: .78rem }
  td:empty { display: none } svg.interval { width: 100%; max-width: 8.25rem }
}
@media print { main { max-width: none; padding: 0 } tr, figure, .tiles div { break-inside: avoid }
  h2 { break-after: avoid } details > * { display: block } }"""
_POLICY: Final = "default-src 'none'; style-src 'unsafe-inline'"
_CIRCLE: Final = (
    '<svg viewBox="0 0 24 16" aria-hidden="true"><g class="{kind}">'
    '<circle class="size" cx="12" cy="8" r="7"/>'
    '<circle class="core" cx="12" cy="8" r="3"/></g></svg>'
)
_STROKE: Final = (
    '<svg viewBox="0 0 24 16" aria-hidden="true"><path class="{kind}" d="M1 8H23"/></svg>'
)


def html_report(report: OptimizeReport) -> str:
    """The result as an HTML document; all that comes from the model or its makers is escaped."""
    title = f"{report.model}: {text.headline(report)}"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # Nothing is loaded and nothing runs, whatever a name in it may hold.
            f'<meta http-equiv="content-security-policy" content="{_POLICY}">',
            f"<title>{text.markup(title)}</title>",
            f"<style>\n{STYLE}\n</style>",
            "</head>",
            "<body>",
            "<main>",
            *_body(report),
            "</main>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _body(report: OptimizeReport) -> Iterator[str]:
    yield f"<h1>{text.markup(text.headline(report))}</h1>"
    yield (
        f'<p class="soft">{text.markup(report.model)} '
        f"({text.markup(report.model_class)}), on "
        f"{text.markup(report.processor.name or 'an unknown processor')}</p>"
    )
    yield from _tiles(report)
    yield _paragraph(text.gain(report))
    yield _paragraph(text.price(report))
    yield from _picture(report)
    yield '<h2 id="candidates">What passed</h2>'
    yield from candidates_table(report)
    if report.rejected:
        yield "<h2>What was rejected, and why</h2>"
        yield from rejected_table(report)
    yield "<h2>What is not proved</h2>"
    yield from (_paragraph([said]) for said in text.unproved(report))
    yield "<h2>Circumstances</h2>"
    yield from _facts(report)


def _tiles(report: OptimizeReport) -> Iterator[str]:
    """What changed, largest first."""
    before, after, data = report.baseline, report.chosen, report.data
    if not report.is_changed:
        return
    quality = text.quality_head(data)
    pairs = [
        ("median latency", text.seconds(before.p50_s), text.seconds(after.p50_s)),
        ("p99", text.seconds(before.p99_s), text.seconds(after.p99_s)),
        ("with cold caches", text.seconds(before.cold_p50_s), text.seconds(after.cold_p50_s)),
        (quality, text.quality(before, data), text.quality(after, data)),
        (
            text.callers(report.settings),
            text.rate(before.throughput_per_s),
            text.rate(after.throughput_per_s),
        ),
        ("files", bytes_text(before.size_bytes), bytes_text(after.size_bytes)),
        ("memory", bytes_text(before.memory_bytes), bytes_text(after.memory_bytes)),
        ("time to load", text.seconds(before.load_s), text.seconds(after.load_s)),
        (
            "cost per million",
            number_text(before.cost_per_million),
            number_text(after.cost_per_million),
        ),
    ]
    yield '<dl class="tiles">'
    for name, was, now in pairs:
        if now != NOTHING:
            was_text = "" if was == NOTHING else f"<small>was {text.markup(was)}</small>"
            yield f"<div><dt>{text.markup(name)}</dt><dd>{text.markup(now)}{was_text}</dd></div>"
    yield "</dl>"


def _picture(report: OptimizeReport) -> Iterator[str]:
    wide, narrow = plot(report, WIDE), plot(report, NARROW)
    if not wide:
        return
    yield "<h2>Latency against quality</h2>"
    yield f"<figure>{wide}{narrow}"
    legend = [
        (_CIRCLE.format(kind="chosen"), "chosen"),
        (_CIRCLE.format(kind="baseline"), "baseline"),
        (_CIRCLE.format(kind="passed"), "passed"),
        (_CIRCLE.format(kind="rejected"), "rejected"),
        (_STROKE.format(kind="front"), "the best for so much time"),
    ]
    if report.data.is_labelled:
        legend.append((_STROKE.format(kind="limit"), "largest loss tolerated"))
    yield '<ul class="legend">'
    yield from (f"<li>{look}{text.markup(said)}</li>" for look, said in legend)
    yield "</ul>"
    sureness = text.markup(text.sureness(report.settings))
    loss = (
        " upright ones of the loss against the baseline on the same examples."
        if report.data.is_labelled
        else " agreement has none."
    )
    yield (
        f'<figcaption class="small soft">The area of a circle is the size of its files. Bars are '
        f"{sureness}: level ones of the median latency,{loss} "
        f"A triangle stands for what is far below.{_not_drawn(report)}</figcaption></figure>"
    )


def _not_drawn(report: OptimizeReport) -> str:
    drawn = {one.numbered.number for one in points(report)}
    names = [one.candidate.name for one in numbered(report) if one.number not in drawn]
    return f" Not drawn, for want of figures: {text.markup(', '.join(names))}." if names else ""


def _facts(report: OptimizeReport) -> Iterator[str]:
    settings, data = report.settings, report.data
    examples = f"{data.n:,} labelled, {data.source}" if data.is_labelled else "none with labels"
    hashed = f", sha256 {data.calibration_sha256}" if data.calibration_sha256 else ""
    calibrated = f"{data.calibration_n:,} examples{hashed}" if data.calibration_n else ""
    facts = [
        ("model", report.model),
        ("digest", report.model_digest),
        ("processor", report.processor.name),
        ("its features", ", ".join(report.processor.features)),
        ("timed with", text.conditions(settings)),
        ("request", settings.shape),
        ("caches", _caches(report)),
        ("intervals", text.sureness(settings)),
        ("target", settings.target),
        ("examples", examples.rstrip(", ")),
        ("metric", data.metric if data.is_labelled else ""),
        ("tolerated loss", text.points(settings.max_loss, report)),
        ("calibrated with", calibrated),
        ("baseline", _described(report.baseline)),
        ("other baselines", "; ".join(_described(one) for one in report.references)),
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
        ("took", "" if report.elapsed_s is None else f"{report.elapsed_s:.0f} s"),
        ("made at", report.at),
    ]
    yield '<dl class="facts">'
    for name, said in facts:
        if said:
            yield f"<dt>{name}</dt><dd>{text.markup(said)}</dd>"
    yield "</dl>"


def _caches(report: OptimizeReport) -> str:
    if report.chosen.cold_p50_s is None:
        return "hot; what cold ones cost was not measured"
    return "hot, and where so named, emptied before each call"


def _described(one: CandidateReport) -> str:
    return one.name if not one.title or one.title == one.name else f"{one.name} ({one.title})"


def _paragraph(said: Iterable[str]) -> str:
    sentences = " ".join(said)
    # A figure and its unit stay on one line.
    whole = re.sub(r"(?<=\d) (?=%|ms|µs)", "\u00a0", text.markup(sentences))
    return f"<p>{whole}</p>" if sentences else ""
