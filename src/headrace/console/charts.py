"""Numbers over time as a picture: where each line, mark and label stands. Pure; SVG is a template.

Every picture has its numbers as a table too, for whoever does not see it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from headrace.console.axes import Scale, Tick, ages, marks_from_zero
from headrace.core.text import number_text

WIDTH: Final = 480
HEIGHT: Final = 200
_LEFT: Final = 64
_RIGHT: Final = 18
_TOP: Final = 26
_BOTTOM: Final = 30
_ROWS: Final = 12
_MILLI: Final = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One quantity over time; None where nothing is known.

    `look`: which stroke it gets, 1 to 3. `last`: its latest value for the legend, as people read
    it; empty for the number alone.
    """

    name: str
    values: Sequence[float | None]
    look: int
    last: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnLine:
    """A line as SVG paths, and the places of points that stand alone."""

    name: str
    look: int
    path: str
    dots: tuple[tuple[float, float], ...]
    last: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """All that a template needs; `rows` has the time first, then a cell a line."""

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
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[DrawnLine, ...]
    heads: tuple[str, ...]
    rows: tuple[tuple[float, tuple[str, ...]], ...]
    hint: str
    nothing: str


def seconds_unit(most: float) -> tuple[str, float]:
    """The unit in which times up to `most` are read best, and how many are in a second."""
    if most < _MILLI:
        return "µs", 1e6
    return ("ms", 1e3) if most < 1 else ("s", 1.0)


def line_chart(
    *,
    id_: str,
    title: str,
    unit: str,
    times: Sequence[float],
    lines: Sequence[Line],
    until: float,
    hint: str = "",
    nothing: str = "no requests in this time",
    marks: int = 4,
) -> Chart:
    """A chart of `lines` over `times` (seconds since 1970, ascending), which ends at `until`.

    Args:
        hint: What the quantity is, for who does not know the word.
        nothing: What is said where no value is known.
        marks: About how many the axis has above 0.
    """
    known = [value for line in lines for value in line.values if value is not None]
    places = marks_from_zero(max(known, default=0.0), marks)
    since = times[0] if times else until - 60.0
    x = Scale(low=since, high=max(until, since + 1.0), start=_LEFT, end=WIDTH - _RIGHT)
    y = Scale(low=0.0, high=places[-1], start=HEIGHT - _BOTTOM, end=_TOP)
    drawn = tuple(_drawn(line, times, x, y) for line in lines)
    return Chart(
        id=id_,
        title=title,
        summary=_summary(title, unit, lines, until - since),
        unit=unit,
        width=WIDTH,
        height=HEIGHT,
        left=_LEFT,
        right=WIDTH - _RIGHT,
        top=_TOP,
        bottom=HEIGHT - _BOTTOM,
        x_ticks=tuple(Tick(x.place(until - age), label) for age, label in ages(until - since)),
        y_ticks=tuple(Tick(y.place(mark), number_text(mark)) for mark in places),
        lines=drawn,
        heads=tuple(line.name for line in lines),
        rows=_rows(times, lines),
        hint=hint,
        nothing="" if known else nothing,
    )


def _drawn(line: Line, times: Sequence[float], x: Scale, y: Scale) -> DrawnLine:
    parts, dots = [], []
    pairs = list(zip(times, line.values, strict=True))
    for is_known, run in groupby(pairs, key=lambda pair: pair[1] is not None):
        places = [(x.place(at), y.place(value)) for at, value in run if value is not None]
        if not is_known:
            continue
        if len(places) == 1:
            dots.append(places[0])
        parts.append("M" + "L".join(f"{px:g} {py:g}" for px, py in places))
    latest = next((value for value in reversed(line.values) if value is not None), None)
    return DrawnLine(
        name=line.name,
        look=line.look,
        path="".join(parts),
        dots=tuple(dots),
        last=line.last or number_text(latest),
    )


def _summary(title: str, unit: str, lines: Sequence[Line], span_s: float) -> str:
    """The picture in a sentence."""
    said = []
    for line in lines:
        known = [value for value in line.values if value is not None]
        if known:
            low, high, last = (
                number_text(min(known)),
                number_text(max(known)),
                number_text(known[-1]),
            )
            said.append(f"{line.name} from {low} to {high}, last {last}")
    minutes = round(span_s / 60)
    return f"{title} in {unit} over {minutes} minutes: {'; '.join(said) or 'nothing'}."


def _rows(
    times: Sequence[float], lines: Sequence[Line]
) -> tuple[tuple[float, tuple[str, ...]], ...]:
    """At most a dozen rows of the data, the newest first."""
    stride = max(len(times) // _ROWS, 1)
    picked = list(range(len(times) - 1, -1, -stride))[:_ROWS]
    return tuple((times[i], tuple(number_text(line.values[i]) for line in lines)) for i in picked)
