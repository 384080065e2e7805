"""A picture of two values for each peer, theirs and ours, as SVG without a library."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

LABELS: Final = 190
BARS: Final = 430
FIGURES: Final = 80
ROW: Final = 38
BAR: Final = 12
TOP: Final = 44
# Both read on white and on dark grey.
THEIRS: Final = "#8a8f98"
OURS: Final = "#1f8a70"
TEXT: Final = "#7a7f87"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """One peer: a value of its, and Headrace's in the same rounds."""

    label: str
    theirs: float
    ours: float


def svg(title: str, rows: Sequence[Bars], *, digits: int = 0) -> str:
    """Horizontal bars from 0 on one scale.

    Raises:
        ValueError: A value is below 0: bars begin at 0.
    """
    values = [value for row in rows for value in (row.theirs, row.ours)]
    if any(value < 0 for value in values):
        msg = f"bars begin at 0, and a value is {min(values):g}"
        raise ValueError(msg)
    scale = BARS / (max(values, default=0) or 1)
    width, height = LABELS + BARS + FIGURES, TOP + ROW * len(rows) + 8
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'font-family="sans-serif" font-size="12" fill="{TEXT}">'
    )
    parts = [
        head,
        f"<title>{escape(title)}</title>",
        f'<text x="0" y="16" font-size="14">{escape(title)}</text>',
        f'<rect x="{LABELS}" y="26" width="10" height="10" fill="{OURS}"/>',
        f'<text x="{LABELS + 15}" y="35">Headrace</text>',
        f'<rect x="{LABELS + 90}" y="26" width="10" height="10" fill="{THEIRS}"/>',
        f'<text x="{LABELS + 105}" y="35">the peer, in the same rounds</text>',
    ]
    for number, row in enumerate(rows):
        y = TOP + ROW * number
        parts.append(f'<text x="0" y="{y + 18}">{escape(row.label)}</text>')
        for at, value, colour in ((y + 3, row.ours, OURS), (y + 17, row.theirs, THEIRS)):
            long = value * scale
            parts.append(
                f'<rect x="{LABELS}" y="{at}" width="{long:.1f}" height="{BAR}" fill="{colour}"/>'
            )
            text = f"{value:,.{digits}f}"
            parts.append(f'<text x="{LABELS + long + 5:.1f}" y="{at + 10}">{text}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
