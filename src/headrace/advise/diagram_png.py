"""The system as a PNG, drawn by matplotlib of the extra `plot`."""

# ruff: noqa: PLC0415  # matplotlib is an extra, and slow to import

import io
from typing import TYPE_CHECKING, Final

from headrace.advise.diagram import Picture
from headrace.advise.diagram_layout import FONT, LINE_H, PADDING, Box, Line, layout
from headrace.core import FailedPreconditionError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_DPI: Final = 144
_INCH: Final = 96.0  # units to one, as CSS has it
_INK: Final = "#1c1e21"
_SOFT: Final = "#5c636b"
_LINE: Final = "#7a828b"
_PANEL: Final = "#f5f6f8"
_MARKS: Final = {
    "ok": "#1d6f42",
    "warning": "#8a6100",
    "failing": "#b3123b",
    "part": "#2f6690",
    "gateway": "#2f6690",
}
_POINTS: Final = FONT * 72 / _INCH
_MOST_PX: Final = 20_000.0


def png(picture: Picture) -> bytes:
    """A PNG of the picture, on white.

    Raises:
        FailedPreconditionError: matplotlib is not installed, or the picture is too high.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        msg = "--format png needs matplotlib; install it with: pip install 'headrace[plot]'"
        raise FailedPreconditionError(msg) from None
    drawing = layout(picture)
    if drawing.height > _MOST_PX:
        raise FailedPreconditionError("too many endpoints for a PNG; --format svg has room")
    figure = Figure(figsize=(drawing.width / _INCH, drawing.height / _INCH), dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set(xlim=(0, drawing.width), ylim=(drawing.height, 0))
    axes.axis("off")
    for line in drawing.lines:
        _draw_line(axes, line)
    for box in drawing.boxes:
        _draw_box(axes, box)
    for line in drawing.lines:
        _draw_label(axes, line)
    content = io.BytesIO()
    figure.savefig(content, format="png", facecolor="white")
    return content.getvalue()


def _draw_line(axes: "Axes", line: Line) -> None:
    from matplotlib.patches import FancyArrowPatch
    from matplotlib.path import Path

    bend = (line.x1 + line.x2) / 2
    path = Path(
        [(line.x1, line.y1), (bend, line.y1), (bend, line.y2), (line.x2, line.y2)],
        [Path.MOVETO, Path.CURVE4, Path.CURVE4, Path.CURVE4],
    )
    if line.is_vertical:
        path = Path([(line.x1, line.y1), (line.x2, line.y2)], [Path.MOVETO, Path.LINETO])
    axes.add_patch(
        FancyArrowPatch(
            path=path,
            arrowstyle="-|>",
            mutation_scale=9,
            color=_LINE,
            linewidth=line.stroke * 0.75,
            linestyle="--" if line.dashed else "-",
            fill=False,
        )
    )


def _draw_box(axes: "Axes", box: Box) -> None:
    from matplotlib.patches import FancyBboxPatch, Rectangle

    axes.add_patch(
        FancyBboxPatch(
            (box.x + 4, box.y + 4),
            box.width - 8,
            box.height - 8,
            boxstyle="round,pad=4,rounding_size=4",
            facecolor="white" if box.kind == "outside" else _PANEL,
            edgecolor=_LINE,
            linewidth=0.8,
        )
    )
    axes.add_patch(
        Rectangle((box.x, box.y), 5, box.height, color=_MARKS.get(box.kind, _LINE), linewidth=0)
    )
    for number, line in enumerate(box.lines):
        axes.text(
            box.x + PADDING + 5,
            box.y + PADDING + number * LINE_H + FONT - 2,
            box.fitted(line),
            fontsize=_POINTS * 0.94,
            color=_SOFT if number else _INK,
            fontweight="normal" if number else "bold",
            parse_math=False,
        )


def _draw_label(axes: "Axes", line: Line) -> None:
    if not line.label:
        return
    axes.text(
        *line.middle,
        line.label,
        fontsize=_POINTS * 0.9,
        color=_INK,
        ha="center",
        va="center",
        parse_math=False,
        bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )
