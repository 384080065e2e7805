"""Latency against quality as a picture: SVG that needs nothing else."""

from collections.abc import Iterator
from typing import Final

from headrace.core.text import duration_unit
from headrace.optimize.report import words
from headrace.optimize.report.data import OptimizeReport
from headrace.optimize.report.plot_frame import NARROW, WIDE, Format, Frame, frame_of
from headrace.optimize.report.plot_marks import marks, quality_at, svg_text
from headrace.optimize.report.points import Kind, Point, front, points

__all__ = ["NARROW", "WIDE", "plot", "summary"]

_TICK_ROOM: Final = 54.0


def plot(report: OptimizeReport, form: Format) -> str:
    """The picture as an SVG element; empty where fewer than two points are known."""
    those = points(report)
    if len(those) < 2:  # noqa: PLR2004  # one point compares with nothing
        return ""
    frame = frame_of(report, those, form)
    look = f'class="plot {form.name}" viewBox="0 0 {form.width} {form.height}"'
    parts = [
        f'<svg {look} role="img" aria-label="{words.markup(summary(report))}">',
        *_grid(frame),
        *_tolerance(frame),
        *_front(frame),
        *marks(frame),
        "</svg>",
    ]
    return "\n".join(parts)


def summary(report: OptimizeReport) -> str:
    """The picture in words, for whoever does not see it."""
    data, those = report.data, points(report)

    def place(point: Point) -> str:
        candidate = point.numbered.candidate
        quality = quality_at(point.quality, report)
        return f"{candidate.name} at {words.seconds(candidate.p50_s)} and {quality}"

    told = [
        f"{one.numbered.kind} {place(one)}"
        for one in those
        if one.numbered.kind in {Kind.BASELINE, Kind.CHOSEN}
    ]
    rejected = sum(not one.is_accepted for one in those)
    ends = ", ".join(one.numbered.candidate.name for one in front(those))
    return (
        f"Median latency against {words.quality_head(data)} of {len(those)} candidates: "
        f"{'; '.join(told)}. None that passed is both faster and better than these: {ends}. "
        f"{rejected} were rejected. All figures are in the tables below."
    )


def _grid(frame: Frame) -> Iterator[str]:
    area = frame.area
    last = -_TICK_ROOM
    for mark in frame.x.marks():
        x = frame.x.place(mark)
        if x - last < _TICK_ROOM:
            continue
        last = x
        yield f'<path class="grid" d="M{x} {area.top}V{area.bottom}"/>'
        yield svg_text(x, area.bottom + 18, _time(mark, frame.x.high), "middle")
    for mark in frame.y.marks():
        y = frame.y.place(mark)
        yield f'<path class="grid" d="M{area.left} {y}H{area.right}"/>'
        yield svg_text(area.left - 8, y + 4, quality_at(mark, frame.report), "end")
    yield f'<path class="axis" d="M{area.left} {area.top}V{area.bottom}H{area.right}"/>'
    middle = (area.left + area.right) / 2
    scale = ", logarithmic" if frame.x.is_logarithmic else ""
    yield svg_text(middle, area.bottom + 40, f"median latency{scale}: less is better", "middle")
    head = words.markup(words.quality_head(frame.report.data))
    yield svg_text(area.left + 6, area.top + 10, f"↑ {head}", "start", "soft")


def _time(mark: float, largest: float) -> str:
    """A mark in the unit of the whole axis."""
    unit, size = duration_unit(largest)
    return f"{mark / size:.4g} {unit}"


def _tolerance(frame: Frame) -> Iterator[str]:
    limit = frame.limit
    if limit is None:
        return
    y = frame.y.place(limit)
    yield f'<path class="limit" d="M{frame.area.left} {y}H{frame.area.right}"/>'
    said = "largest loss tolerated"
    yield svg_text(frame.area.right - 4, y + 14, said, "end", "soft")


def _front(frame: Frame) -> Iterator[str]:
    corners = [f"{x} {y}" for x, y in frame.stairs()]
    if corners:
        yield f'<path class="front" d="M{"L".join(corners)}"/>'
