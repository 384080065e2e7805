"""An interval as a picture in one line of text: where it lies, and what it is compared with."""

from dataclasses import dataclass
from typing import Final

WIDTH: Final = 25


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """What the picture is drawn with; in this order the later ones hide the earlier."""

    empty: str
    line: str
    neutral: str
    margin: str
    effect: str
    left: str
    right: str


UNICODE: Final = Marks(
    empty=" ", line="━", neutral="│", margin="┊", effect="●", left="◀", right="▶"
)
ASCII: Final = Marks(empty=" ", line="-", neutral="|", margin=":", effect="o", left="<", right=">")


def marks_for(encoding: str | None) -> Marks:
    """Those that a terminal of this encoding can show."""
    try:
        "".join(vars_of(UNICODE)).encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return ASCII
    return UNICODE


def vars_of(marks: Marks) -> tuple[str, ...]:
    """All marks."""
    return (
        marks.line,
        marks.neutral,
        marks.margin,
        marks.effect,
        marks.left,
        marks.right,
        marks.empty,
    )


def interval_bar(
    *,
    low: float | None,
    high: float | None,
    effect: float | None,
    neutral: float,
    margin: float | None,
    marks: Marks = UNICODE,
    width: int = WIDTH,
) -> str:
    """The interval `[low, high]` over a scale that holds `neutral` and `margin` too.

    Args:
        low: None for an interval without lower bound; then it is drawn to the left edge.
        neutral: Where there is no difference.
        margin: Up to where a difference is tolerated; None for no such bound.
    """
    if low is None and high is None:
        return ""
    points = [x for x in (low, high, effect, neutral, margin) if x is not None]
    scale = _Scale.over(points, width)
    cells = [marks.empty] * width
    first = 0 if low is None else scale.cell(low)
    last = width - 1 if high is None else scale.cell(high)
    for i in range(first, last + 1):
        cells[i] = marks.line
    cells[scale.cell(neutral)] = marks.neutral
    if margin is not None:
        cells[scale.cell(margin)] = marks.margin
    if effect is not None:
        cells[scale.cell(effect)] = marks.effect
    if low is None:
        cells[0] = marks.left
    if high is None:
        cells[-1] = marks.right
    return "".join(cells)


@dataclass(frozen=True, slots=True)
class _Scale:
    start: float
    per_cell: float
    width: int

    @classmethod
    def over(cls, points: list[float], width: int) -> "_Scale":
        """A scale that holds all points, with a little room at both ends."""
        least, most = min(points), max(points)
        room = (most - least) * 0.08 or 1.0
        return cls(least - room, (most - least + 2 * room) / width, width)

    def cell(self, value: float) -> int:
        return min(max(int((value - self.start) / self.per_cell), 0), self.width - 1)
