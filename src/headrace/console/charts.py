"""Charts of the console: numbers over time, and the evidence of rollouts. Pure; SVG is a template.

Every chart is also available as a table, for screen readers.

An interval is very wide at first, so the chart is limited to the relevant range: the current
interval, zero difference, the tolerance, and as much of the past as fits beside them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from headrace.control.rollouts.status import (
    IntervalPoint,
    MetricStatus,
    RolloutEvidence,
    SequenceView,
)
from headrace.core.charts import (
    AxisScale,
    AxisTick,
    ages,
    elapsed,
    marks_between,
    marks_from_zero,
)
from headrace.core.text import bound_text, effect_text, number_text, percent_text, plain_text, span

WIDTH: Final = 480
HEIGHT: Final = 200
INTERVAL_HEIGHT: Final = 64
SEQUENCE_HEIGHT: Final = 190
_LEFT: Final = 64
_RIGHT: Final = 18
_TOP: Final = 26
_BOTTOM: Final = 30
_EDGE: Final = 16
"""Margin left and right of an interval's axis."""
_SEQUENCE_TOP: Final = 8
_ROWS: Final = 12
_ROOM: Final = 0.08
_MILLI: Final = 1e-3
_BEYOND: Final = 10
"""Clipping distance in heights of the chart, so that the slope of clipped lines stays correct."""
_THIN: Final = 1.5
"""Half the width of an isolated interval."""
HEADS: Final = ("Measured", "At least", "At most", "Tolerated")

Place = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChartLine:
    """One quantity over time."""

    name: str
    """Name in the legend."""
    values: Sequence[float | None]
    """Values by time; None where unknown."""
    look: int
    """Stroke style, 1 to 3."""
    last: str = ""
    """Latest value as text for the legend; empty for the number alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnLine:
    """Line as SVG paths, and the positions of isolated points."""

    name: str
    look: int
    path: str
    dots: tuple[tuple[float, float], ...]
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """Template values of a chart; `rows` has the time first, then a cell per line."""

    id: str
    title: str
    summary: str
    unit: str
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[AxisTick, ...]
    y_ticks: tuple[AxisTick, ...]
    lines: tuple[DrawnLine, ...]
    heads: tuple[str, ...]
    rows: tuple[tuple[float, tuple[str, ...]], ...]
    hint: str
    nothing: str


def seconds_unit(maximum: float) -> tuple[str, float]:
    """Return the most readable unit for times up to `most`, and its number per second."""
    if maximum < _MILLI:
        return "µs", 1e6
    return ("ms", 1e3) if maximum < 1 else ("s", 1.0)


def line_chart(
    *,
    id_: str,
    title: str,
    unit: str,
    times: Sequence[float],
    lines: Sequence[ChartLine],
    until: float,
    hint: str = "",
    nothing: str = "no requests in this period",
    marks: int = 4,
) -> Chart:
    """Return a chart of `lines` over `times` (seconds since 1970, ascending) up to `until`.

    Args:
        hint: Explanation of the quantity.
        nothing: Text if no value is known.
        marks: About how many the axis has above 0.
    """
    numbers = [value for line in lines for value in line.values if value is not None]
    positions = marks_from_zero(max(numbers, default=0.0), marks)
    since = times[0] if times else until - 60.0
    x = AxisScale(low=since, high=max(until, since + 1.0), start=_LEFT, end=WIDTH - _RIGHT)
    y = AxisScale(low=0.0, high=positions[-1], start=HEIGHT - _BOTTOM, end=_TOP)
    drawn = tuple(_draw_line(line, times, x, y) for line in lines)
    return Chart(
        id=id_,
        title=title,
        summary=_line_summary(title, unit, lines, until - since),
        unit=unit,
        width=WIDTH,
        height=HEIGHT,
        left=_LEFT,
        right=WIDTH - _RIGHT,
        top=_TOP,
        bottom=HEIGHT - _BOTTOM,
        x_ticks=tuple(AxisTick(x.place(until - age), label) for age, label in ages(until - since)),
        y_ticks=tuple(AxisTick(y.place(mark), number_text(mark)) for mark in positions),
        lines=drawn,
        heads=tuple(line.name for line in lines),
        rows=_line_rows(times, lines),
        hint=hint,
        nothing="" if numbers else nothing,
    )


def _draw_line(line: ChartLine, times: Sequence[float], x: AxisScale, y: AxisScale) -> DrawnLine:
    parts, dots = [], []
    pairs = list(zip(times, line.values, strict=True))
    for is_known, run in groupby(pairs, key=lambda pair: pair[1] is not None):
        positions = [(x.place(time), y.place(value)) for time, value in run if value is not None]
        if not is_known:
            continue
        if len(positions) == 1:
            dots.append(positions[0])
        parts.append("M" + "L".join(f"{px:g} {py:g}" for px, py in positions))
    latest = next((value for value in reversed(line.values) if value is not None), None)
    return DrawnLine(
        name=line.name,
        look=line.look,
        path="".join(parts),
        dots=tuple(dots),
        last=line.last or number_text(latest),
    )


def _line_summary(title: str, unit: str, lines: Sequence[ChartLine], span_s: float) -> str:
    """Return a sentence that describes the chart."""
    sentences = []
    for line in lines:
        numbers = [value for value in line.values if value is not None]
        if numbers:
            low, high, last = (
                number_text(min(numbers)),
                number_text(max(numbers)),
                number_text(numbers[-1]),
            )
            sentences.append(f"{line.name} from {low} to {high}, last {last}")
    minutes = round(span_s / 60)
    return f"{title} in {unit} over {minutes} minutes: {'; '.join(sentences) or 'nothing'}."


def _line_rows(
    times: Sequence[float], lines: Sequence[ChartLine]
) -> tuple[tuple[float, tuple[str, ...]], ...]:
    """Return at most a dozen rows of the data, newest first."""
    stride = max(len(times) // _ROWS, 1)
    picked = list(range(len(times) - 1, -1, -stride))[:_ROWS]
    return tuple((times[i], tuple(number_text(line.values[i]) for line in lines)) for i in picked)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ruler:
    """Axis of metrics of one unit; `name` is its label."""

    unit: str

    @property
    def neutral(self) -> float:
        """Return the value without difference between the versions."""
        return 1.0 if self.unit == "times" else 0.0

    @property
    def is_less_worse(self) -> bool:
        """Whether lower is worse: true for rewards only."""
        return self.unit == "reward"

    @property
    def name(self) -> str:
        """Return the label of the axis, with its unit."""
        match self.unit:
            case "ratio difference":
                return "difference in percentage points"
            case "ratio":
                return "share in %"
            case "times":
                return "ratio to the old version"
            case _:
                return f"difference in {self.unit}" if self.unit else "difference"

    def tolerated(self, margin: float | None) -> float | None:
        """Return the position on the axis of a margin's end."""
        return -margin if self.is_less_worse and margin is not None else margin

    def mark(self, value: float) -> str:
        """Return the label of a mark."""
        scaled = 100 * value if self.unit.startswith("ratio") else value
        text = number_text(scaled)
        return f"{text}\u00d7" if self.unit == "times" else text


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalMark:
    """Template values of one metric's chart; positions are of a chart `WIDTH` wide, or None."""

    metric: MetricStatus
    title: str
    summary: str
    unit: str
    low: float
    high: float
    is_open_low: bool
    is_open_high: bool
    effect: float | None
    neutral: float
    margin: float | None
    worse: tuple[float, float] | None
    ticks: tuple[AxisTick, ...]
    width: int = WIDTH
    height: int = INTERVAL_HEIGHT


def interval_of(metric: MetricStatus) -> IntervalMark | None:
    """Return the chart of a metric; None while it has no values."""
    if metric.low is None and metric.high is None:
        return None
    ruler = Ruler(unit=metric.unit)
    margin = ruler.tolerated(metric.margin)
    values = (metric.low, metric.high, metric.effect, ruler.neutral, margin)
    numbers = [value for value in values if value is not None]
    padding = (max(numbers) - min(numbers)) * _ROOM or 1.0
    scale = AxisScale(
        low=min(numbers) - padding, high=max(numbers) + padding, start=_EDGE, end=WIDTH - _EDGE
    )
    position = scale.place
    worse = None
    if margin is not None:
        edge = position(margin)
        worse = (scale.start, edge) if ruler.is_less_worse else (edge, scale.end)
    return IntervalMark(
        metric=metric,
        title=f"{plain_text(metric.metric)}: difference of the new version",
        summary=_interval_summary(metric),
        unit=ruler.name,
        low=scale.start if metric.low is None else position(metric.low),
        high=scale.end if metric.high is None else position(metric.high),
        is_open_low=metric.low is None,
        is_open_high=metric.high is None,
        effect=None if metric.effect is None else position(metric.effect),
        neutral=position(ruler.neutral),
        margin=None if margin is None else position(margin),
        worse=worse,
        ticks=tuple(
            AxisTick(position(mark), ruler.mark(mark))
            for mark in marks_between(scale.low, scale.high)
        ),
    )


def _interval_summary(metric: MetricStatus) -> str:
    low, high = bound_text(metric.low, metric.unit), bound_text(metric.high, metric.unit)
    tolerated = effect_text(metric.margin, metric.unit)
    confidence = percent_text(1 - metric.alpha)
    return (
        f"Between {low} and {high} with {confidence} confidence at all times simultaneously; "
        f"{tolerated} tolerated; verdict: {plain_text(metric.outcome)}."
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceChart:
    """Template values of one metric's intervals over time; paths may be empty."""

    id: str
    title: str
    summary: str
    unit: str
    outcome: str
    x_ticks: tuple[AxisTick, ...]
    y_ticks: tuple[AxisTick, ...]
    band: str
    bounds: str
    effect: str
    now: Place | None
    """Position of the newest measurement."""
    neutral: float
    margin: str
    worse: str
    rows: tuple[tuple[float, tuple[str, ...]], ...]
    """Time, then one cell for each of `HEADS`."""
    heads: tuple[str, ...] = HEADS
    width: int = WIDTH
    height: int = SEQUENCE_HEIGHT
    left: float = _LEFT
    right: float = WIDTH - _RIGHT
    top: float = _SEQUENCE_TOP
    bottom: float = SEQUENCE_HEIGHT - _BOTTOM


def charts_of(metric: MetricStatus, evidence: RolloutEvidence) -> list[SequenceChart]:
    """Return the charts of a metric: one per unit, the current unit first."""
    times = [point.at for series in evidence.metrics for point in series.points]
    matching = [
        series
        for series in evidence.metrics
        if series.metric == metric.metric
        and any(point.low is not None or point.high is not None for point in series.points)
    ]
    ordered = sorted(matching, key=lambda series: series.unit != metric.unit)
    return [
        _chart(series, f"over-time-{metric.metric}-{i}", metric.outcome, min(times), max(times))
        for i, series in enumerate(ordered)
    ]


def _chart(
    sequence: SequenceView, id_: str, outcome: str, since: float, until: float
) -> SequenceChart:
    points, ruler = sequence.points, Ruler(unit=sequence.unit)
    margins = _forward_filled([ruler.tolerated(point.margin) for point in points])
    scale = _sequence_scale(points, margins, ruler.neutral)
    x = AxisScale(low=since, high=max(until, since + 1.0), start=_LEFT, end=WIDTH - _RIGHT).place
    y = _far(scale).place
    title = f"{plain_text(sequence.metric)} over time"
    newest = points[-1]
    margin = _margin(points, margins, x, y)
    worst = SEQUENCE_HEIGHT - _BOTTOM if ruler.is_less_worse else _SEQUENCE_TOP

    def line(value: Callable[[IntervalPoint], float | None]) -> str:
        coordinates = [(x(p.at), None if (v := value(p)) is None else y(v)) for p in points]
        return "".join(_path(run) for run in _runs(coordinates))

    return SequenceChart(
        id=id_,
        title=title,
        summary=_sequence_summary(title, sequence, until - since),
        unit=ruler.name,
        outcome=outcome,
        x_ticks=tuple(AxisTick(x(since + age), label) for age, label in elapsed(until - since)),
        y_ticks=tuple(
            AxisTick(y(mark), ruler.mark(mark)) for mark in marks_between(scale.low, scale.high)
        ),
        band=_band(points, x, y),
        bounds=line(lambda point: point.low) + line(lambda point: point.high),
        effect=line(lambda point: point.effect),
        now=None if newest.effect is None else (x(newest.at), y(newest.effect)),
        neutral=y(ruler.neutral),
        margin=_path(margin),
        worse=f"{_path(margin)}V{worst}H{_LEFT}Z" if margin else "",
        rows=_sequence_rows(sequence),
    )


def _sequence_scale(
    points: Sequence[IntervalPoint], margins: Sequence[float], neutral: float
) -> AxisScale:
    """Return the range of values: the relevant one, and at most as much again on either side."""
    now = points[-1]
    matters = [v for v in (now.low, now.high, now.effect) if v is not None]
    matters += [neutral, *margins[-1:]]
    minimum, maximum = min(matters), max(matters)
    around = [v for p in points for v in (p.low, p.high, p.effect) if v is not None]
    reach = (maximum - minimum) or 1.0
    low = max(min([minimum, *around, *margins]), minimum - reach)
    high = min(max([maximum, *around, *margins]), maximum + reach)
    padding = (high - low) * _ROOM or 1.0
    return AxisScale(
        low=low - padding, high=high + padding, start=SEQUENCE_HEIGHT - _BOTTOM, end=_SEQUENCE_TOP
    )


def _far(scale: AxisScale) -> AxisScale:
    """Return the same scale with positions far outside of the chart."""
    values, positions = (scale.high - scale.low) * _BEYOND, (scale.end - scale.start) * _BEYOND
    return AxisScale(
        low=scale.low - values,
        high=scale.high + values,
        start=scale.start - positions,
        end=scale.end + positions,
    )


def _forward_filled(values: Sequence[float | None]) -> list[float]:
    """Return values with gaps filled from the left, and the first one also before it."""
    numbers = [value for value in values if value is not None]
    held, last = [], numbers[0] if numbers else 0.0
    for value in values:
        last = last if value is None else value
        held.append(last)
    return held if numbers else []


def _band(
    points: Sequence[IntervalPoint], x: Callable[[float], float], y: Callable[[float], float]
) -> str:
    """Return the intervals as an area: open to the edge without a bound, a gap without both."""
    parts = []
    for is_known, run in groupby(points, lambda p: p.low is not None or p.high is not None):
        if not is_known:
            continue
        bounded = list(run)
        far = SEQUENCE_HEIGHT * _BEYOND
        upper = [(x(p.at), -far if p.high is None else y(p.high)) for p in bounded]
        lower = [(x(p.at), far if p.low is None else y(p.low)) for p in bounded]
        if len(bounded) == 1:
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
    """Return the tolerance from edge to edge: it does not depend on the counts."""
    if not margins:
        return []
    positions = [(x(point.at), y(margin)) for point, margin in zip(points, margins, strict=True)]
    return [(_LEFT, positions[0][1]), *positions, (WIDTH - _RIGHT, positions[-1][1])]


def _runs(positions: Sequence[tuple[float, float | None]]) -> list[list[Place]]:
    """Return runs of known neighbours; isolated ones are left out."""
    runs = groupby(positions, lambda point: point[1] is not None)
    neighbours = [
        [(px, py) for px, py in run if py is not None] for is_known, run in runs if is_known
    ]
    return [run for run in neighbours if len(run) > 1]


def _path(positions: Sequence[Place]) -> str:
    if not positions:
        return ""
    return "M" + "L".join(f"{px:g} {py:g}" for px, py in _corners(positions))


def _corners(positions: Sequence[Place]) -> list[Place]:
    """Return the positions without the middle of level stretches: most charts end in one."""
    inner = range(1, len(positions) - 1)
    level = {i for i in inner if positions[i - 1][1] == positions[i][1] == positions[i + 1][1]}
    return [point for i, point in enumerate(positions) if i not in level]


def _sequence_summary(title: str, sequence: SequenceView, span_s: float) -> str:
    """Return a sentence that describes the chart."""
    unit = sequence.unit
    bounded = [p for p in sequence.points if p.low is not None or p.high is not None]
    first, last = bounded[0], bounded[-1]
    started = f"{bound_text(first.low, unit)} and {bound_text(first.high, unit)}"
    ended = f"{bound_text(last.low, unit)} and {bound_text(last.high, unit)}"
    return (
        f"{title}, {span(span_s)}: at first between {started}, at last between {ended}; "
        f"{effect_text(last.margin, unit)} tolerated."
    )


def _sequence_rows(sequence: SequenceView) -> tuple[tuple[float, tuple[str, ...]], ...]:
    """Return at most a dozen rows of the data, newest first."""
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
