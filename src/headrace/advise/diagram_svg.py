"""The system as an SVG that stands alone: in light and in dark, with a description in words."""

from collections.abc import Iterator
from html import escape
from typing import Final

from headrace.advise.diagram import Picture, described
from headrace.advise.diagram_layout import FONT, LINE_H, PADDING, Box, Line, layout

_STYLE: Final = """\
svg { color-scheme: light dark; --paper: #fff; --ink: #1c1e21; --soft: #5c636b; --line: #7a828b;
  --panel: #f5f6f8; --ok: #1d6f42; --warning: #8a6100; --failing: #b3123b; --part: #2f6690 }
@media (prefers-color-scheme: dark) { svg { --paper: #15171a; --ink: #e8eaed; --soft: #a2a9b1;
  --line: #8b939c; --panel: #1e2125; --ok: #6fce99; --warning: #e5bd55; --failing: #ff7a9a;
  --part: #83bbe5 } }
.paper { fill: var(--paper) }
text { font: 14px system-ui, -apple-system, "Segoe UI", sans-serif; fill: var(--ink) }
.name { font-weight: 600 } .soft { fill: var(--soft) }
.label { font-size: 13px; fill: var(--ink); stroke: var(--paper); stroke-width: 5px;
  paint-order: stroke; text-anchor: middle }
rect.box { fill: var(--panel); stroke: var(--line) }
.mark { fill: var(--part) } .outside .mark, .idle .mark, .version .mark { fill: var(--line) }
.ok .mark { fill: var(--ok) } .warning .mark { fill: var(--warning) }
.failing .mark { fill: var(--failing) }
.outside rect.box { fill: none; stroke-dasharray: 4 3 }
path.line { fill: none; stroke: var(--line) } path.dashed { stroke-dasharray: 6 4 }
marker path { fill: var(--line) }"""


def svg(picture: Picture, *, id_prefix: str = "system") -> str:
    """An SVG document of the picture.

    Args:
        id_prefix: What its ids begin with, where it becomes part of a page.
    """
    return "".join(f"{line}\n" for line in _lines(picture, id_prefix))


def _lines(picture: Picture, prefix: str) -> Iterator[str]:
    drawing = layout(picture)
    size = f"{drawing.width:.0f} {drawing.height:.0f}"
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" '
        f'width="{drawing.width:.0f}" height="{drawing.height:.0f}" role="img" '
        f'aria-labelledby="{prefix}-title {prefix}-desc">'
    )
    yield f'<title id="{prefix}-title">The inference system as it is now</title>'
    yield f'<desc id="{prefix}-desc">{escape(" ".join(described(picture)))}</desc>'
    yield f"<style>{_STYLE}</style>"
    yield (
        f'<defs><marker id="{prefix}-arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" '
        'markerHeight="8" markerUnits="userSpaceOnUse" orient="auto"><path d="M0 0L8 4L0 8z"/>'
        "</marker></defs>"
    )
    yield '<rect class="paper" width="100%" height="100%"/>'
    for line in drawing.lines:
        yield _path(line, prefix)
    for box in drawing.boxes:
        yield from _box(box)
    for line in drawing.lines:
        if line.label:
            yield _label(line)
    yield "</svg>"


def _path(line: Line, prefix: str) -> str:
    style = "line dashed" if line.dashed else "line"
    return (
        f'<path class="{style}" d="{_course(line)}" stroke-width="{line.stroke:.2f}" '
        f'marker-end="url(#{prefix}-arrow)"/>'
    )


def _course(line: Line) -> str:
    begin, end = f"M{line.x1:.1f} {line.y1:.1f}", f"{line.x2:.1f} {line.y2:.1f}"
    if line.is_vertical or line.y1 == line.y2:
        return f"{begin}L{end}"
    bend = (line.x1 + line.x2) / 2
    return f"{begin}C{bend:.1f} {line.y1:.1f} {bend:.1f} {line.y2:.1f} {end}"


def _label(line: Line) -> str:
    x, y = line.middle
    return f'<text class="label" x="{x:.1f}" y="{y + 4:.1f}">{escape(line.label)}</text>'


def _box(box: Box) -> Iterator[str]:
    yield f'<g class="{box.kind}">'
    whole = [line for line in box.lines if box.fitted(line) != line]
    if whole:
        yield f"<title>{escape(', '.join(whole))}</title>"
    place = f'x="{box.x:.1f}" y="{box.y:.1f}"'
    yield (
        f'<rect class="box" {place} width="{box.width:.1f}" height="{box.height:.1f}" rx="6"/>'
        f'<rect class="mark" {place} width="5" height="{box.height:.1f}" rx="2.5"/>'
    )
    for number, line in enumerate(box.lines):
        style = "soft" if number else "name"
        x, y = box.x + PADDING + 5, box.y + PADDING + number * LINE_H + FONT - 2
        yield f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(box.fitted(line))}</text>'
    yield "</g>"
