"""HTML page of an optimization report, with interval bars."""

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.core.charts import AxisScale
from headrace.core.pages import report_page
from headrace.core.text import NOTHING, bytes_text, number_text
from headrace.optimize.report import text
from headrace.optimize.report.data import (
    CandidateKind,
    CandidateReport,
    Interval,
    NumberedCandidate,
    OptimizeReport,
    numbered,
    points,
)
from headrace.optimize.report.plot import NARROW, WIDE, plot

_BAR_WIDTH: Final = 132
_BAR_HEIGHT: Final = 14
_BAR_ROOM: Final = 6.0
_LARGEST: Final = 1e9
Cell = tuple[str, str, str]
"""Column head, figure, and the SVG of its bar or empty."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """Scale of a column's bars."""

    scale: AxisScale
    neutral: float | None
    """Value of no change."""
    limit: float | None
    """Tolerated limit."""

    def bar(self, value: float | None, bounds: Interval | None) -> str:
        """Return one row's bar as SVG; empty without a value."""
        if value is None or not math.isfinite(value):
            return ""
        position, middle = self.scale.place, _BAR_HEIGHT / 2
        marks = {"neutral": self.neutral, "limit": self.limit}
        parts = [
            f'<path class="{kind}" d="M{position(mark)} 0V{_BAR_HEIGHT}"/>'
            for kind, mark in marks.items()
            if mark is not None
        ]
        if bounds is not None and not any(map(math.isnan, bounds)):
            low, high = map(position, bounds)
            parts.append(f'<path class="reach" d="M{low} {middle}H{high}"/>')
        return (
            f'<svg class="interval" viewBox="0 0 {_BAR_WIDTH} {_BAR_HEIGHT}" aria-hidden="true">'
            f'{"".join(parts)}<circle cx="{position(value)}" cy="{middle}" r="3.2"/></svg>'
        )


def bars(
    values: Iterable[float | None],
    bounds: Iterable[Interval | None] = (),
    *,
    neutral: float | None = None,
    limit: float | None = None,
) -> Bars:
    """Return bars on a scale that fits all values with their bounds."""
    figures = [value for value in (*values, neutral, limit) if value is not None]
    figures += [x for pair in bounds if pair is not None for x in pair]
    figures = [value for value in figures if abs(value) <= _LARGEST]
    low, high = min(figures, default=0.0), max(figures, default=1.0)
    high = high if high > low else low + 1.0
    scale = AxisScale(low=low, high=high, start=_BAR_ROOM, end=_BAR_WIDTH - _BAR_ROOM)
    return Bars(scale=scale, neutral=neutral, limit=limit)


def html_report(report: OptimizeReport) -> str:
    """Render the report as HTML; text from the model is escaped."""
    accepted, rejected = _rows(report)
    drawn = {point.numbered.number for point in points(report)}
    return report_page(
        Path(__file__).with_name("report.html"),
        title=f"{report.model}: {text.headline(report)}",
        headline=text.headline(report),
        report=report,
        nothing=NOTHING,
        changes=text.changes(report) if report.is_changed else (),
        pictures=[plot(report, WIDE), plot(report, NARROW)] if len(drawn) > 1 else (),
        not_drawn=[entry.candidate.name for entry in numbered(report) if entry.number not in drawn],
        sureness=text.sureness(report.settings),
        chance=text.p_value,
        accepted=accepted,
        rejected=rejected,
        sentences=[
            _sentences(text.gain(report)),
            _sentences(text.price(report)),
        ],
        unproved=[_sentences([sentence]) for sentence in text.unproved(report)],
        facts=[(name, value) for name, value in _facts(report) if value],
    )


def _rows(
    report: OptimizeReport,
) -> tuple[list[tuple[NumberedCandidate, list[Cell]]], list[tuple[NumberedCandidate, list[Cell]]]]:
    """Return the table cells of accepted candidates, and fewer cells of rejected ones."""
    data, everything = report.data, numbered(report)
    rows = [entry.candidate for entry in everything if entry.kind is not CandidateKind.REJECTED]
    p50_bars = bars(
        [0.0, *(row.p50_s for row in rows)],
        [row.p50_ci_s for row in rows],
        neutral=report.baseline.p50_s,
    )
    cuts = [row.cut_ratio for row in rows]
    cut_bars = bars(cuts, [row.cut_ci_ratio for row in rows], neutral=0.0)
    loss_bars = bars(
        [row.accuracy_loss for row in rows],
        [row.accuracy_loss_ci for row in rows],
        neutral=0.0,
        limit=report.settings.max_loss,
    )
    has_cost = any(row.cost_per_million is not None for row in rows)

    def cells(candidate: CandidateReport) -> Iterator[Cell]:
        is_baseline = candidate.name == report.baseline.name
        bar = p50_bars.bar(candidate.p50_s, candidate.p50_ci_s)
        yield "median latency", text.seconds(candidate.p50_s, candidate.p50_ci_s), bar
        cut = text.percent(candidate.cut_ratio, candidate.cut_ci_ratio)
        bar = "" if is_baseline else cut_bars.bar(candidate.cut_ratio, candidate.cut_ci_ratio)
        yield "less time", "baseline" if is_baseline else cut, bar
        yield text.quality_head(data), text.quality(candidate, data), ""
        if data.is_labelled:
            lost = NOTHING if is_baseline else text.loss(candidate, data)
            bar = (
                ""
                if is_baseline
                else loss_bars.bar(candidate.accuracy_loss, candidate.accuracy_loss_ci)
            )
            yield text.loss_head(data), lost, bar
        yield "p99", text.seconds(candidate.p99_s), ""
        yield "files", bytes_text(candidate.size_bytes), ""
        yield "memory", bytes_text(candidate.memory_bytes), ""
        if has_cost:
            yield "cost per million", number_text(candidate.cost_per_million), ""

    shown = 4 if data.is_labelled else 3
    accepted = [(entry, list(cells(entry.candidate))) for entry in everything]
    return (
        [row for row in accepted if row[0].kind is not CandidateKind.REJECTED],
        [
            (entry, [(head, figure, "") for head, figure, _ in row[:shown]])
            for entry, row in accepted
            if entry.kind is CandidateKind.REJECTED
        ],
    )


def _facts(report: OptimizeReport) -> Sequence[tuple[str, str]]:
    settings, data = report.settings, report.data
    hashed = f", sha256 {data.calibration_sha256}" if data.calibration_sha256 else ""
    is_cold = report.chosen.cold_p50_s is not None

    def described(candidate: CandidateReport) -> str:
        return (
            candidate.name
            if candidate.title in {"", candidate.name}
            else f"{candidate.name} ({candidate.title})"
        )

    return (
        ("model", report.model),
        ("digest", report.model_digest),
        ("processor", report.processor.name),
        ("its features", ", ".join(report.processor.features)),
        ("timed with", text.conditions(settings)),
        ("request", settings.shape),
        (
            "caches",
            "hot; evicted before each call where marked as cold"
            if is_cold
            else "hot; cold caches were not measured",
        ),
        ("intervals", text.sureness(settings)),
        ("target", settings.target),
        (
            "examples",
            f"{data.n:,} labelled, {data.source}".rstrip(", ")
            if data.is_labelled
            else "none with labels",
        ),
        ("metric", data.metric if data.is_labelled else ""),
        ("tolerated loss", text.points(settings.max_loss, report)),
        (
            "calibrated with",
            f"{data.calibration_n:,} examples{hashed}" if data.calibration_n else "",
        ),
        ("baseline", described(report.baseline)),
        ("other baselines", "; ".join(described(reference) for reference in report.references)),
        ("versions", ", ".join(f"{name} {version}" for name, version in report.versions.items())),
        ("took", "" if report.elapsed_s is None else f"{report.elapsed_s:.0f} s"),
        ("made at", report.created_at),
    )


def _sentences(sentences: Iterable[str]) -> str:
    """Return a paragraph's markup with non-breaking units."""
    return re.sub(r"(?<=\d) (?=%|ms|µs)", "\u00a0", text.markup(" ".join(sentences)))
