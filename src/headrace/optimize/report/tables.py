"""All candidates with their figures, intervals as bars; what was rejected, with the reason."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.core.charts import Scale
from headrace.core.text import NOTHING, bytes_text, number_text
from headrace.optimize.report import words
from headrace.optimize.report.data import (
    CandidateReport,
    Interval,
    Kind,
    Numbered,
    OptimizeReport,
    numbered,
)

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
    heads = ["candidate", "median latency", "less time", words.quality_head(report.data)]
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
    quality, lost = words.quality_head(report.data), _loss_head(report)
    losses = [lost] if report.data.is_labelled else []
    yield from _head(["candidate", "median latency", "less time", quality, *losses, "why"])
    for one in rows:
        candidate = one.candidate
        yield f'<tr class="{one.kind}" role="row">{_name(one)}'
        yield _cell("median latency", _known(words.seconds(candidate.p50_s, candidate.p50_ci_s)))
        yield _cell("less time", _known(words.percent(candidate.cut_ratio, candidate.cut_ci_ratio)))
        yield _cell(quality, _known(words.quality(candidate, report.data)))
        if losses:
            yield _cell(lost, _known(words.loss(candidate, report.data)))
        reason = words.markup(candidate.reason or "no reason is known")
        yield f'<td class="reason" role="cell" data-label="why">{reason}</td></tr>'
    yield "</tbody></table>"


def _figures(one: Numbered, report: OptimizeReport, scales: _Scales) -> Iterator[str]:
    candidate, is_baseline = one.candidate, one.kind is Kind.BASELINE
    yield _barred(
        words.seconds(candidate.p50_s, candidate.p50_ci_s),
        scales.p50.bar(candidate.p50_s, candidate.p50_ci_s),
    )
    yield (
        "baseline"
        if is_baseline
        else _barred(
            words.percent(candidate.cut_ratio, candidate.cut_ci_ratio),
            scales.cut.bar(candidate.cut_ratio, candidate.cut_ci_ratio),
        )
    )
    yield _known(words.quality(candidate, report.data))
    if report.data.is_labelled:
        yield (
            ""
            if is_baseline
            else _barred(
                words.loss(candidate, report.data),
                scales.loss.bar(candidate.accuracy_loss, candidate.accuracy_loss_ci),
            )
            + _split(candidate)
        )
    yield _known(words.seconds(candidate.p99_s))
    yield _known(bytes_text(candidate.size_bytes))
    yield _known(bytes_text(candidate.memory_bytes))
    yield _known(number_text(candidate.cost_per_million))


def _split(candidate: CandidateReport) -> str:
    """Which answers changed for better or worse, by how little chance."""
    if candidate.lost is None or candidate.gained is None:
        return ""
    said = f"{candidate.lost:,} lost, {candidate.gained:,} gained"
    chance = words.p_value(candidate.p_value)
    return f'<span class="small soft">{said}{f" ({words.markup(chance)})" if chance else ""}</span>'


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
    cells = (f'<th scope="col" role="columnheader">{words.markup(head)}</th>' for head in heads)
    yield '<table class="rows" role="table"><thead role="rowgroup"><tr role="row">'
    yield from cells
    yield '</tr></thead><tbody role="rowgroup">'


def _name(one: Numbered) -> str:
    candidate, mark = one.candidate, _MARKS[one.kind]
    said = f'<span class="no">{one.number}</span>{words.markup(candidate.name)}'
    said += f' <span class="mark">{mark}</span>' if mark else ""
    if candidate.title and candidate.title != candidate.name:
        said += f"<small>{words.markup(candidate.title)}</small>"
    if candidate.recipe:
        steps = (
            f"<div>{words.markup(k)}: {words.markup(v)}</div>" for k, v in candidate.recipe.items()
        )
        said += f"<details><summary>recipe</summary>{''.join(steps)}</details>"
    return f'<th scope="row" role="rowheader">{said}</th>'


def _cell(head: str, cell: str) -> str:
    return f'<td role="cell" data-label="{words.markup(head)}">{cell}</td>'


def _barred(text: str, bar: str) -> str:
    return f"{_known(text)}{bar}"


def _known(text: str) -> str:
    """A figure and its interval; neither is broken over lines."""
    if text == NOTHING:
        return ""
    figure, bracket, interval = text.partition(" [")
    said = f'<span class="figure">{words.markup(figure)}</span>'
    return said + (
        f' <span class="figure soft">[{words.markup(interval)}</span>' if bracket else ""
    )


def _loss_head(report: OptimizeReport) -> str:
    return "loss, points" if words.in_percent(report.data) else "loss"


def _has_cost(rows: Sequence[Numbered]) -> bool:
    return any(one.candidate.cost_per_million is not None for one in rows)
