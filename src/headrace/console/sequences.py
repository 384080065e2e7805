"""Evidence over time as a picture: how each metric's interval narrowed to what it is now. Pure.

An interval begins wider than anything that matters, so the picture is cut to what does: the
present interval, no difference, what is tolerated, and as much of the past as fits beside them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from headrace.console import words
from headrace.console.axes import Scale, Tick, elapsed, marks_between
from headrace.console.documents import IntervalPoint, MetricStatus, RolloutEvidence, SequenceView
from headrace.console.rulers import Ruler
from headrace.core.text import bound_text, effect_text, span

WIDTH: Final = 480
HEIGHT: Final = 190
_LEFT: Final = 64
_RIGHT: Final = 18
_TOP: Final = 8
_BOTTOM: Final = 30
_ROWS: Final = 12
_ROOM: Final = 0.08
_BEYOND: Final = 10
"""What is cut off is drawn so many heights of the picture far, so that its slope stays right."""
_THIN: Final = 1.5
"""Half the width of an interval that stands alone."""
HEADS: Final = ("Measured", "At least", "At most", "Tolerated")

Place = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceChart:
    """All that a template needs; paths may be empty, and leave the frame, which cuts them off.

    `now`: the place of the newest measurement. `rows` have the time first, then a cell for each
    of `HEADS`.
    """

    id: str
    title: str
    summary: str
    unit: str
    outcome: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    band: str
    bounds: str
    effect: str
    now: Place | None
    neutral: float
    margin: str
    worse: str
    rows: tuple[tuple[float, tuple[str, ...]], ...]
    heads: tuple[str, ...] = HEADS
    width: int = WIDTH
    height: int = HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _TOP
    bottom: float = HEIGHT - _BOTTOM


def charts_of(metric: MetricStatus, evidence: RolloutEvidence) -> list[SequenceChart]:
    """A metric's pictures: one a unit that it was told in, the present one first."""
    times = [point.at for one in evidence.metrics for point in one.points]
    mine = [
        one
        for one in evidence.metrics
        if one.metric == metric.metric
        and any(point.low is not None or point.high is not None for point in one.points)
    ]
    ordered = sorted(mine, key=lambda one: one.unit != metric.unit)
    return [
        _chart(one, f"over-time-{metric.metric}-{i}", metric.outcome, min(times), max(times))
        for i, one in enumerate(ordered)
    ]


def _chart(
    sequence: SequenceView, id_: str, outcome: str, since: float, until: float
) -> SequenceChart:
    points, ruler = sequence.points, Ruler(unit=sequence.unit)
    margins = _held([ruler.tolerated(point.margin) for point in points])
    scale = _scale(points, margins, ruler.neutral)
    x = Scale(low=since, high=max(until, since + 1.0), start=_LEFT, end=WIDTH - _RIGHT).place
    y = _far(scale).place
    title = f"{words.plain(sequence.metric)} over time"
    newest = points[-1]

    def line(value: Callable[[IntervalPoint], float | None]) -> str:
        known = [(x(p.at), None if (v := value(p)) is None else y(v)) for p in points]
        return "".join(_path(run) for run in _runs(known))

    return SequenceChart(
        id=id_,
        title=title,
        summary=_summary(title, sequence, until - since),
        unit=ruler.name,
        outcome=outcome,
        x_ticks=tuple(Tick(x(since + age), label) for age, label in elapsed(until - since)),
        y_ticks=tuple(
            Tick(y(mark), ruler.mark(mark)) for mark in marks_between(scale.low, scale.high)
        ),
        band=_band(points, x, y),
        bounds=line(lambda point: point.low) + line(lambda point: point.high),
        effect=line(lambda point: point.effect),
        now=None if newest.effect is None else (x(newest.at), y(newest.effect)),
        neutral=y(ruler.neutral),
        margin=_path(_margin(points, margins, x, y)),
        worse=_worse(_margin(points, margins, x, y), is_below=ruler.is_less_worse),
        rows=_rows(sequence),
    )


def _scale(points: Sequence[IntervalPoint], margins: Sequence[float], neutral: float) -> Scale:
    """What is shown of the values: what matters now, and at most as much again on either side."""
    now = points[-1]
    matters = [v for v in (now.low, now.high, now.effect) if v is not None]
    matters += [neutral, *margins[-1:]]
    least, most = min(matters), max(matters)
    around = [v for p in points for v in (p.low, p.high, p.effect) if v is not None]
    reach = (most - least) or 1.0
    low = max(min([least, *around, *margins]), least - reach)
    high = min(max([most, *around, *margins]), most + reach)
    room = (high - low) * _ROOM or 1.0
    return Scale(low=low - room, high=high + room, start=HEIGHT - _BOTTOM, end=_TOP)


def _far(scale: Scale) -> Scale:
    """The same scale, but with places far outside of the picture."""
    values, places = (scale.high - scale.low) * _BEYOND, (scale.end - scale.start) * _BEYOND
    return Scale(
        low=scale.low - values,
        high=scale.high + values,
        start=scale.start - places,
        end=scale.end + places,
    )


def _held(values: Sequence[float | None]) -> list[float]:
    """Each value until the next that is known, the first also before; nothing if none is."""
    known = [value for value in values if value is not None]
    held, last = [], known[0] if known else 0.0
    for value in values:
        last = last if value is None else value
        held.append(last)
    return held if known else []


def _band(
    points: Sequence[IntervalPoint], x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    """The intervals as an area: open to the edge where there is no bound, a gap without both."""
    parts = []
    for is_known, run in groupby(points, lambda p: p.low is not None or p.high is not None):
        if not is_known:
            continue
        found = list(run)
        far = HEIGHT * _BEYOND
        upper = [(x(p.at), -far if p.high is None else y(p.high)) for p in found]
        lower = [(x(p.at), far if p.low is None else y(p.low)) for p in found]
        if len(found) == 1:
            upper = [(upper[0][0] + side, upper[0][1]) for side in (-_THIN, _THIN)]
            lower = [(lower[0][0] + side, lower[0][1]) for side in (-_THIN, _THIN)]
        parts.append(_path([*_corners(upper), *_corners(lower)[::-1]]) + "Z")
    return "".join(parts)


def _margin(
    points: Sequence[IntervalPoint],
    margins: Sequence[float],
    x: Callable[[float], float],
    y: Callable[[float], float],
) -> list[Place]:
    """What is tolerated, from edge to edge: it does not depend on what was counted when."""
    if not margins:
        return []
    places = [(x(point.at), y(margin)) for point, margin in zip(points, margins, strict=True)]
    return [(_LEFT, places[0][1]), *places, (WIDTH - _RIGHT, places[-1][1])]


def _worse(margin: Sequence[Place], *, is_below: bool) -> str:
    edge = HEIGHT - _BOTTOM if is_below else _TOP
    return f"{_path(margin)}V{edge}H{_LEFT}Z" if margin else ""


def _runs(places: Sequence[tuple[float, float | None]]) -> list[list[Place]]:
    """Neighbours that are all known; one that stands alone is left out."""
    runs = groupby(places, lambda place: place[1] is not None)
    found = [[(px, py) for px, py in run if py is not None] for is_known, run in runs if is_known]
    return [run for run in found if len(run) > 1]


def _path(places: Sequence[Place]) -> str:
    if not places:
        return ""
    return "M" + "L".join(f"{px:g} {py:g}" for px, py in _corners(places))


def _corners(places: Sequence[Place]) -> list[Place]:
    """The places without those in the middle of a level stretch: most pictures end in one."""
    inner = range(1, len(places) - 1)
    level = {i for i in inner if places[i - 1][1] == places[i][1] == places[i + 1][1]}
    return [place for i, place in enumerate(places) if i not in level]


def _summary(title: str, sequence: SequenceView, span_s: float) -> str:
    """The picture in a sentence."""
    unit = sequence.unit
    known = [p for p in sequence.points if p.low is not None or p.high is not None]
    first, last = known[0], known[-1]
    began = f"{bound_text(first.low, unit)} and {bound_text(first.high, unit)}"
    ended = f"{bound_text(last.low, unit)} and {bound_text(last.high, unit)}"
    return (
        f"{title}, {span(span_s)}: at first between {began}, at last between {ended}; "
        f"{effect_text(last.margin, unit)} tolerated."
    )


def _rows(sequence: SequenceView) -> tuple[tuple[float, tuple[str, ...]], ...]:
    """At most a dozen rows of the data, the newest first."""
    points, unit = sequence.points, sequence.unit
    stride = max(-(-len(points) // _ROWS), 1)
    return tuple(
        (
            point.at,
            (
                effect_text(point.effect, unit),
                bound_text(point.low, unit),
                bound_text(point.high, unit),
                effect_text(point.margin, unit),
            ),
        )
        for point in points[::-1][::stride]
    )
