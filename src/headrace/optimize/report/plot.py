"""Chart of latency against quality as standalone SVG."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Final

from headrace.core.charts import AxisScale, Dot, Label, Rectangle, place_labels, svg_text
from headrace.core.text import bytes_text, duration_unit, printable
from headrace.optimize.report import text
from headrace.optimize.report.data import CandidateKind, OptimizeReport, QualityPoint, front, points

_TICK_ROOM: Final = 54.0
_MIN_RADIUS: Final = 4.0
_THICK: Final = 2.0
_LETTER: Final = 6.7
_BOLD: Final = 7.5
_LINE: Final = 15.0
_MAX_CHARACTERS: Final = 30
_ORDER: Final = (
    CandidateKind.CHOSEN,
    CandidateKind.BASELINE,
    CandidateKind.PASSED,
    CandidateKind.REFERENCE,
    CandidateKind.REJECTED,
)
_LOGARITHMIC_FROM: Final = 5.0
_ROOM: Final = 0.06
_NEAR: Final = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureSize:
    """Size of the chart."""

    name: str
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    largest_radius: float
    is_named: bool
    """Whether points are labelled with names instead of numbers."""


WIDE: Final = PictureSize(
    name="wide",
    width=920,
    height=470,
    left=78,
    right=24,
    top=18,
    bottom=52,
    largest_radius=22.0,
    is_named=True,
)
NARROW: Final = PictureSize(
    name="narrow",
    width=360,
    height=380,
    left=56,
    right=12,
    top=14,
    bottom=48,
    largest_radius=15.0,
    is_named=False,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """Chart points with their scales."""

    report: OptimizeReport
    points: Sequence[QualityPoint]
    format: PictureSize
    x: AxisScale
    y: AxisScale

    @property
    def area(self) -> Rectangle:
        """Plot area."""
        form = self.format
        return Rectangle(
            left=form.left,
            top=form.top,
            right=form.width - form.right,
            bottom=form.height - form.bottom,
        )

    @property
    def limit(self) -> float | None:
        """Least tolerated quality."""
        return least_quality(self.report)

    def stairs(self) -> list[tuple[float, float]]:
        """Return the corners of the Pareto front."""
        centres = [self.centre(point) for point in front(self.points)]
        if not centres:
            return []
        ends = [*centres[1:], (self.area.right, 0.0)]
        corners = [(centres[0][0], self.area.bottom)]
        for (x, y), (next_x, _) in zip(centres, ends, strict=True):
            corners += [(x, y), (next_x, y)]
        return corners

    def lines(self) -> list[Rectangle]:
        """Return the rectangles that labels must avoid, besides circles."""
        corners = self.stairs()
        lines = [_line(a, b) for a, b in pairwise(corners)]
        for point in self.points:
            x, y = self.centre(point)
            if point.latency_ci_s is not None:
                low, high = map(self.x.place, point.latency_ci_s)
                lines.append(_line((low, y), (high, y)))
            if point.quality_ci is not None and self.y.holds(point.quality):
                low, high = map(self.y.place, point.quality_ci)
                lines.append(_line((x, low), (x, high)))
        if self.limit is not None:
            y, right = self.y.place(self.limit), self.area.right
            lines.append(_line((self.area.left, y), (right, y)))
            lines.append(Rectangle(left=right - 140, top=y, right=right, bottom=y + 18))
        return lines

    def centre(self, point: QualityPoint) -> tuple[float, float]:
        """Return a point's centre."""
        return self.x.place(point.latency_s), self.y.place(point.quality)

    def radius(self, point: QualityPoint) -> float:
        """Return a circle's radius; its area is proportional to the file size."""
        sizes = [other.size_bytes for other in self.points if other.size_bytes]
        share = (point.size_bytes or 0) / max(sizes, default=1)
        return round(max(self.format.largest_radius * sqrt(share), _MIN_RADIUS), 1)


def _line(a: tuple[float, float], b: tuple[float, float]) -> Rectangle:
    return Rectangle(
        left=min(a[0], b[0]) - _THICK,
        top=min(a[1], b[1]) - _THICK,
        right=max(a[0], b[0]) + _THICK,
        bottom=max(a[1], b[1]) + _THICK,
    )


def frame_of(
    report: OptimizeReport, drawn_points: Sequence[QualityPoint], form: PictureSize
) -> Frame:
    """Return a frame whose scales fit the points with their intervals."""
    latencies = [
        x for point in drawn_points for x in (point.latency_s, *(point.latency_ci_s or ()))
    ]
    accepted = [
        y
        for point in drawn_points
        if point.is_accepted
        for y in (point.quality, *(point.quality_ci or ()))
    ]
    limit = least_quality(report)
    accepted += [] if limit is None else [limit]
    rejected = [point.quality for point in drawn_points if not point.is_accepted]
    padding = form.largest_radius * 0.6
    return Frame(
        report=report,
        points=drawn_points,
        format=form,
        x=latency_scale(
            latencies, start=form.left + padding, end=form.width - form.right - padding
        ),
        y=quality_scale(
            accepted, rejected, start=form.height - form.bottom - padding, end=form.top + padding
        ),
    )


def least_quality(report: OptimizeReport) -> float | None:
    """Return the least tolerated quality; None without labels."""
    if not report.data.is_labelled or report.baseline.accuracy is None:
        return None
    return report.baseline.accuracy - report.settings.max_loss


def latency_scale(values: Sequence[float], *, start: float, end: float) -> AxisScale:
    """Return a scale of positive values, logarithmic if they span a large ratio."""
    low, high = min(values), max(values)
    if high / low >= _LOGARITHMIC_FROM:
        padding = (high / low) ** _ROOM
        return AxisScale(
            low=low / padding, high=high * padding, start=start, end=end, is_logarithmic=True
        )
    padding = (high - low or high) * _ROOM
    return AxisScale(low=max(low - padding, 0.0), high=high + padding, start=start, end=end)


def quality_scale(
    accepted: Sequence[float], rejected: Sequence[float], *, start: float, end: float
) -> AxisScale:
    """Return a scale of accepted values and of nearby rejected ones.

    Values far below are drawn at the edge, so that they do not compress the others.
    """
    shown = list(accepted) or list(rejected)
    span = max(max(shown) - min(shown), 0.002)
    near = [value for value in rejected if value >= min(shown) - _NEAR * span]
    low, high = min([*shown, *near]), max([*shown, *near])
    padding = max(high - low, 0.002) * _ROOM * 1.5
    return AxisScale(low=low - padding, high=high + padding, start=start, end=end)


def plot(report: OptimizeReport, form: PictureSize) -> str:
    """Return the chart as an SVG element; empty with fewer than two points."""
    drawn_points = points(report)
    if len(drawn_points) < 2:  # noqa: PLR2004  # one point has no comparison
        return ""
    frame = frame_of(report, drawn_points, form)
    observation = f'class="plot {form.name}" viewBox="0 0 {form.width} {form.height}"'
    parts = [
        f'<svg {observation} role="img" aria-label="{text.markup(summary(report))}">',
        *_grid(frame),
        *_tolerance(frame),
        *_front(frame),
        *_marks(frame),
        "</svg>",
    ]
    return "\n".join(parts)


def summary(report: OptimizeReport) -> str:
    """Return the chart's description for screen readers."""
    data, drawn_points = report.data, points(report)

    def described(point: QualityPoint) -> str:
        candidate = point.numbered.candidate
        quality = quality_at(point.quality, report)
        return f"{candidate.name} at {text.seconds(candidate.p50_s)} and {quality}"

    descriptions = [
        f"{point.numbered.kind} {described(point)}"
        for point in drawn_points
        if point.numbered.kind in {CandidateKind.BASELINE, CandidateKind.CHOSEN}
    ]
    rejected = sum(not point.is_accepted for point in drawn_points)
    ends = ", ".join(point.numbered.candidate.name for point in front(drawn_points))
    return (
        f"Median latency against {text.quality_head(data)} of {len(drawn_points)} candidates: "
        f"{'; '.join(descriptions)}. Pareto front, where no accepted candidate is both faster and "
        f"better: {ends}. {rejected} were rejected. The tables below hold all figures."
    )


def _grid(frame: Frame) -> Iterator[str]:
    area = frame.area
    last = -_TICK_ROOM
    unit, size = duration_unit(frame.x.high)
    for mark in frame.x.marks():
        x = frame.x.place(mark)
        if x - last < _TICK_ROOM:
            continue
        last = x
        yield f'<path class="grid" d="M{x} {area.top}V{area.bottom}"/>'
        yield svg_text(x, area.bottom + 18, f"{mark / size:.4g} {unit}", "middle")
    for mark in frame.y.marks():
        y = frame.y.place(mark)
        yield f'<path class="grid" d="M{area.left} {y}H{area.right}"/>'
        yield svg_text(area.left - 8, y + 4, quality_at(mark, frame.report), "end")
    yield f'<path class="axis" d="M{area.left} {area.top}V{area.bottom}H{area.right}"/>'
    middle = (area.left + area.right) / 2
    scale = ", logarithmic" if frame.x.is_logarithmic else ""
    yield svg_text(middle, area.bottom + 40, f"median latency{scale}: less is better", "middle")
    head = text.markup(text.quality_head(frame.report.data))
    yield svg_text(area.left + 6, area.top + 10, f"↑ {head}", "start", "soft")


def _tolerance(frame: Frame) -> Iterator[str]:
    limit = frame.limit
    if limit is None:
        return
    y = frame.y.place(limit)
    yield f'<path class="limit" d="M{frame.area.left} {y}H{frame.area.right}"/>'
    caption = "largest loss tolerated"
    yield svg_text(frame.area.right - 4, y + 14, caption, "end", "soft")


def _front(frame: Frame) -> Iterator[str]:
    corners = [f"{x} {y}" for x, y in frame.stairs()]
    if corners:
        yield f'<path class="front" d="M{"L".join(corners)}"/>'


def _marks(frame: Frame) -> Iterator[str]:
    """Yield circles before labels, so that no label is hidden."""
    drawn_points = sorted(frame.points, key=lambda point: _ORDER.index(point.numbered.kind))
    dots = [_dot(frame, point) for point in drawn_points]
    for drawn, dot in reversed(list(zip(drawn_points, dots, strict=True))):
        yield from _point(frame, drawn, dot)
    for drawn, dot, label in zip(
        drawn_points, dots, place_labels(dots, frame.area, frame.lines()), strict=True
    ):
        if label is not None:
            yield from _label(frame, drawn, dot, label)


def _point(frame: Frame, point: QualityPoint, dot: Dot) -> Iterator[str]:
    kind, (x, y) = point.numbered.kind, (dot.x, dot.y)
    is_below = not frame.y.holds(point.quality)
    yield f'<g class="{kind}"><title>{text.markup(_hint(frame, point))}</title>'
    yield f'<circle class="size" cx="{x}" cy="{y}" r="{dot.radius}"/>'
    if point.latency_ci_s is not None:
        low, high = map(frame.x.place, point.latency_ci_s)
        yield f'<path class="bar" d="M{low} {y}H{high}M{low} {y - 3}v6M{high} {y - 3}v6"/>'
    if point.quality_ci is not None and not is_below:
        low, high = map(frame.y.place, point.quality_ci)
        yield f'<path class="bar" d="M{x} {low}V{high}M{x - 3} {low}h6M{x - 3} {high}h6"/>'
    if is_below:
        yield f'<path class="core" d="M{x - 5} {y - 2}h10l-5 8z"/>'
    else:
        radius = 4.5 if kind is CandidateKind.CHOSEN else 3.5
        yield f'<circle class="core" cx="{x}" cy="{y}" r="{radius}"/>'
    yield "</g>"


def _dot(frame: Frame, point: QualityPoint) -> Dot:
    x, y = frame.centre(point)
    label = _label_text(frame, point)
    character_width = (
        _BOLD if point.numbered.kind in {CandidateKind.CHOSEN, CandidateKind.BASELINE} else _LETTER
    )
    return Dot(
        x=x, y=y, radius=frame.radius(point), width=character_width * len(label) + 2, height=_LINE
    )


def _label(frame: Frame, point: QualityPoint, dot: Dot, label: Label) -> Iterator[str]:
    box = label.box
    if label.is_far:
        x = min(max(dot.x, box.left), box.right)
        y = min(max(dot.y, box.top), box.bottom)
        yield f'<path class="lead" d="M{dot.x} {dot.y}L{x:.1f} {y:.1f}"/>'
    kind = point.numbered.kind
    yield svg_text(
        box.left + 1,
        box.bottom - 4,
        text.markup(_label_text(frame, point)),
        "start",
        f"name {kind}",
    )


def _label_text(frame: Frame, point: QualityPoint) -> str:
    if not frame.format.is_named:
        return str(point.numbered.number)
    name = printable(point.numbered.candidate.name)
    name = name if len(name) <= _MAX_CHARACTERS else f"{name[: _MAX_CHARACTERS - 1]}…"
    if frame.y.holds(point.quality):
        return name
    return f"{name}, {quality_at(point.quality, frame.report)}"


def _hint(frame: Frame, point: QualityPoint) -> str:
    candidate, data = point.numbered.candidate, frame.report.data
    parts = [
        text.seconds(candidate.p50_s, candidate.p50_ci_s),
        f"{text.quality_head(data)} {quality_at(point.quality, frame.report)}",
    ]
    parts += [bytes_text(candidate.size_bytes)] if candidate.size_bytes is not None else []
    return f"{candidate.name}: {', '.join(parts)}"


def quality_at(value: float, report: OptimizeReport) -> str:
    """Return a quality value as text."""
    if report.data.is_labelled and not text.in_percent(report.data):
        return f"{value:.4g}"
    return f"{100 * value:.4g} %"
