"""Points of the picture with their intervals and names, as SVG."""

from collections.abc import Iterator
from typing import Final

from headrace.core.text import bytes_text
from headrace.optimize.report import words
from headrace.optimize.report.data import OptimizeReport
from headrace.optimize.report.labels import Dot, Label, place_labels
from headrace.optimize.report.plot_frame import Frame
from headrace.optimize.report.points import Kind, Point

_LETTER: Final = 6.7
_BOLD: Final = 7.5
_LINE: Final = 15.0
_MOST_LETTERS: Final = 30
_ORDER: Final = (Kind.CHOSEN, Kind.BASELINE, Kind.PASSED, Kind.REFERENCE, Kind.REJECTED)


def marks(frame: Frame) -> Iterator[str]:
    """Circles first, so that no name is hidden."""
    those = sorted(frame.points, key=lambda one: _ORDER.index(one.numbered.kind))
    dots = [_dot(frame, one) for one in those]
    for one, dot in reversed(list(zip(those, dots, strict=True))):
        yield from _mark(frame, one, dot)
    for one, dot, label in zip(
        those, dots, place_labels(dots, frame.area, frame.lines()), strict=True
    ):
        if label is not None:
            yield from _label(frame, one, dot, label)


def _mark(frame: Frame, point: Point, dot: Dot) -> Iterator[str]:
    kind, (x, y) = point.numbered.kind, (dot.x, dot.y)
    is_below = not frame.y.holds(point.quality)
    yield f'<g class="{kind}"><title>{words.markup(_hint(frame, point))}</title>'
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
        radius = 4.5 if kind is Kind.CHOSEN else 3.5
        yield f'<circle class="core" cx="{x}" cy="{y}" r="{radius}"/>'
    yield "</g>"


def _dot(frame: Frame, point: Point) -> Dot:
    x, y = frame.at(point)
    text = _label_text(frame, point)
    letter = _BOLD if point.numbered.kind in {Kind.CHOSEN, Kind.BASELINE} else _LETTER
    return Dot(x=x, y=y, radius=frame.radius(point), width=letter * len(text) + 2, height=_LINE)


def _label(frame: Frame, point: Point, dot: Dot, label: Label) -> Iterator[str]:
    box = label.box
    if label.is_far:
        x = min(max(dot.x, box.left), box.right)
        y = min(max(dot.y, box.top), box.bottom)
        yield f'<path class="lead" d="M{dot.x} {dot.y}L{x:.1f} {y:.1f}"/>'
    kind = point.numbered.kind
    yield svg_text(
        box.left + 1,
        box.bottom - 4,
        words.markup(_label_text(frame, point)),
        "start",
        f"name {kind}",
    )


def _label_text(frame: Frame, point: Point) -> str:
    if not frame.format.is_named:
        return str(point.numbered.number)
    name = words.printable(point.numbered.candidate.name)
    name = name if len(name) <= _MOST_LETTERS else f"{name[: _MOST_LETTERS - 1]}…"
    if frame.y.holds(point.quality):
        return name
    return f"{name}, {quality_at(point.quality, frame.report)}"


def _hint(frame: Frame, point: Point) -> str:
    candidate, data = point.numbered.candidate, frame.report.data
    said = [
        words.seconds(candidate.p50_s, candidate.p50_ci_s),
        f"{words.quality_head(data)} {quality_at(point.quality, frame.report)}",
    ]
    said += [bytes_text(candidate.size_bytes)] if candidate.size_bytes is not None else []
    return f"{candidate.name}: {', '.join(said)}"


def quality_at(value: float, report: OptimizeReport) -> str:
    """A place on the axis of quality, in words."""
    if report.data.is_labelled and not words.in_percent(report.data):
        return f"{value:.4g}"
    return f"{100 * value:.4g} %"


def svg_text(x: float, y: float, text: str, anchor: str, look: str = "tick") -> str:
    """Text at a place; `text` is escaped by the caller."""
    return f'<text class="{look}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{text}</text>'
