"""The result as one page that needs nothing else: to read, to print, to send to a sceptic."""

import re
from collections.abc import Iterable, Iterator
from typing import Final

from headrace.core.text import NOTHING, bytes_text, number_text
from headrace.optimize.report import sentences, words
from headrace.optimize.report.data import CandidateReport, OptimizeReport
from headrace.optimize.report.plot import NARROW, WIDE, plot
from headrace.optimize.report.points import numbered, points
from headrace.optimize.report.style import STYLE
from headrace.optimize.report.tables import candidates_table, rejected_table

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
    title = f"{report.model}: {sentences.headline(report)}"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            # Nothing is loaded and nothing runs, whatever a name in it may hold.
            f'<meta http-equiv="content-security-policy" content="{_POLICY}">',
            f"<title>{words.markup(title)}</title>",
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
    yield f"<h1>{words.markup(sentences.headline(report))}</h1>"
    yield (
        f'<p class="soft">{words.markup(report.model)} '
        f"({words.markup(report.model_class)}), on "
        f"{words.markup(report.processor.name or 'an unknown processor')}</p>"
    )
    yield from _tiles(report)
    yield _paragraph(sentences.gain(report))
    yield _paragraph(sentences.price(report))
    yield from _picture(report)
    yield '<h2 id="candidates">What passed</h2>'
    yield from candidates_table(report)
    if report.rejected:
        yield "<h2>What was rejected, and why</h2>"
        yield from rejected_table(report)
    yield "<h2>What is not proved</h2>"
    yield from (_paragraph([said]) for said in sentences.unproved(report))
    yield "<h2>Circumstances</h2>"
    yield from _facts(report)


def _tiles(report: OptimizeReport) -> Iterator[str]:
    """What changed, largest first."""
    before, after, data = report.baseline, report.chosen, report.data
    if not report.is_changed:
        return
    quality = words.quality_head(data)
    pairs = [
        ("median latency", words.seconds(before.p50_s), words.seconds(after.p50_s)),
        ("p99", words.seconds(before.p99_s), words.seconds(after.p99_s)),
        ("with cold caches", words.seconds(before.cold_p50_s), words.seconds(after.cold_p50_s)),
        (quality, words.quality(before, data), words.quality(after, data)),
        (
            sentences.callers(report.settings),
            words.rate(before.throughput_per_s),
            words.rate(after.throughput_per_s),
        ),
        ("files", bytes_text(before.size_bytes), bytes_text(after.size_bytes)),
        ("memory", bytes_text(before.memory_bytes), bytes_text(after.memory_bytes)),
        ("time to load", words.seconds(before.load_s), words.seconds(after.load_s)),
        (
            "cost per million",
            number_text(before.cost_per_million),
            number_text(after.cost_per_million),
        ),
    ]
    yield '<dl class="tiles">'
    for name, was, now in pairs:
        if now != NOTHING:
            was_text = "" if was == NOTHING else f"<small>was {words.markup(was)}</small>"
            yield f"<div><dt>{words.markup(name)}</dt><dd>{words.markup(now)}{was_text}</dd></div>"
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
    yield from (f"<li>{look}{words.markup(said)}</li>" for look, said in legend)
    yield "</ul>"
    sureness = words.markup(sentences.sureness(report.settings))
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
    return f" Not drawn, for want of figures: {words.markup(', '.join(names))}." if names else ""


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
        ("timed with", sentences.conditions(settings)),
        ("request", settings.shape),
        ("caches", _caches(report)),
        ("intervals", sentences.sureness(settings)),
        ("target", settings.target),
        ("examples", examples.rstrip(", ")),
        ("metric", data.metric if data.is_labelled else ""),
        ("tolerated loss", sentences.points(settings.max_loss, report)),
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
            yield f"<dt>{name}</dt><dd>{words.markup(said)}</dd>"
    yield "</dl>"


def _caches(report: OptimizeReport) -> str:
    if report.chosen.cold_p50_s is None:
        return "hot; what cold ones cost was not measured"
    return "hot, and where so named, emptied before each call"


def _described(one: CandidateReport) -> str:
    return one.name if not one.title or one.title == one.name else f"{one.name} ({one.title})"


def _paragraph(said: Iterable[str]) -> str:
    text = " ".join(said)
    # A figure and its unit stay on one line.
    whole = re.sub(r"(?<=\d) (?=%|ms|µs)", "\u00a0", words.markup(text))
    return f"<p>{whole}</p>" if text else ""
