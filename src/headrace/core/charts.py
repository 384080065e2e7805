"""Axes, ticks and labels of SVG charts, and their positions. Pure functions."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_MARKS: Final = 4
"""Approximate number of ticks of an axis."""
_DECADE_MARKS: Final = ((1, 2, 5), (1, 2, 3, 5, 7))
_SPANS_S: Final = (10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600)
_NOTHING: Final = 1e-300
"""A component of a number below this counts as 0."""
_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 86_400.0
_GAP: Final = 4.0
_REACHES: Final = (0.0, 12.0, 24.0, 38.0, 54.0, 72.0)
_DIRECTIONS: Final = (
    (1.0, 0.0),
    (-1.0, 0.0),
    (0.0, -1.0),
    (0.0, 1.0),
    (0.4, -0.9),
    (0.4, 0.9),
    (0.75, -0.75),
    (0.75, 0.75),
    (-0.75, -0.75),
    (-0.75, 0.75),
)


@dataclass(frozen=True, slots=True)
class AxisTick:
    """Tick at a position of the chart, with its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AxisScale:
    """Mapping of values from `low` to `high` to positions from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    is_logarithmic: bool = False

    def place(self, value: float) -> float:
        """Return the position of a value; values outside the range are clamped."""
        share = (self._size(value) - self._size(self.low)) / (
            self._size(self.high) - self._size(self.low)
        )
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 1)

    def holds(self, value: float) -> bool:
        """Whether a value is inside the range."""
        return self.low <= value <= self.high

    def marks(self) -> list[float]:
        """Return round values inside the range."""
        if not self.is_logarithmic:
            return marks_between(self.low, self.high)
        few, more = (self._decade_marks(per_decade) for per_decade in _DECADE_MARKS)
        return few if len(few) >= _MARKS else more

    def _decade_marks(self, per_decade: Sequence[int]) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = [part * 10.0**decade for decade in decades for part in per_decade]
        return [value for value in values if self.holds(value)]

    def _size(self, value: float) -> float:
        return math.log(max(value, _NOTHING)) if self.is_logarithmic else value


def round_step(maximum: float, marks: int) -> float:
    """Return the smallest round step with which `marks` steps reach `most`."""
    if maximum < _NOTHING:
        return 1.0 / marks
    rough = maximum / marks
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in _STEPS if step * power >= rough * (1 - 1e-9))


def marks_from_zero(maximum: float, marks: int = _MARKS) -> list[float]:
    """Return round values from 0 to at least `most`; to 1 if `most` is 0."""
    if maximum <= 0:
        return [0.0, 1.0]
    step = round_step(maximum, marks)
    count = max(math.ceil(maximum / step - 1e-9), 1)
    return [step * i for i in range(count + 1)]


def marks_between(low: float, high: float, marks: int = _MARKS) -> list[float]:
    """Return round values between two bounds."""
    step = round_step(high - low, marks)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [step * i for i in range(first, last + 1)]


def ages(span_s: float, marks: int = _MARKS) -> list[tuple[float, str]]:
    """Return round ages from 0 to `span_s`, with their labels: `-30 min`, `now`."""
    step = next((s for s in _SPANS_S if span_s / s <= marks), 21600)
    return [(i * step, _age(i * step)) for i in range(int(span_s / step + 1e-9) + 1)]


def elapsed(span_s: float, marks: int = _MARKS) -> list[tuple[float, str]]:
    """Return round times from 0 to `span_s`, with labels: `start`, `30 min`, `2 d`."""
    days = round_step(span_s / _DAY, marks) * _DAY
    step = next((s for s in (*_SPANS_S, 43_200, 86_400) if span_s / s <= marks), days)
    return [(i * step, _time(i * step)) for i in range(int(span_s / step + 1e-9) + 1)]


def _time(time_s: float) -> str:
    if time_s == 0:
        return "start"
    for unit, length_s in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if time_s >= length_s:
            return f"{time_s / length_s:g} {unit}"
    return f"{time_s:g} s"


def _age(age_s: float) -> str:
    if age_s == 0:
        return "now"
    if age_s < _MINUTE:
        return f"-{age_s:g} s"
    return f"-{age_s / _MINUTE:g} min" if age_s < _HOUR else f"-{age_s / _HOUR:g} h"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rectangle:
    """A rectangle from `left`, `top` to `right`, `bottom`; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Rectangle") -> bool:
        """Whether both rectangles have an area in common."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def within(self, other: "Rectangle") -> bool:
        """Whether this rectangle is completely inside the other."""
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.top <= self.top
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """Point with a name: centre, radius, and the size of the rendered name."""

    x: float
    y: float
    radius: float
    width: float
    height: float

    @property
    def box(self) -> Rectangle:
        """Return the area that the point covers."""
        r = self.radius
        return Rectangle(left=self.x - r, top=self.y - r, right=self.x + r, bottom=self.y + r)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """Position of a name."""

    box: Rectangle
    is_far: bool
    """Whether the label is so far from its point that a line has to connect them."""


def place_labels(
    dots: Sequence[Dot], area: Rectangle, obstacles: Sequence[Rectangle] = ()
) -> list[Label | None]:
    """Return a position for each name, in order of priority; None where there is no room.

    Args:
        obstacles: Other areas that labels avoid if possible.
    """
    taken = [dot.box for dot in dots]
    labels: list[Label | None] = []
    for dot in dots:
        label = _free(dot, area, [*taken, *obstacles]) or _free(dot, area, taken)
        labels.append(label)
        if label is not None:
            taken.append(label.box)
    return labels


def _free(dot: Dot, area: Rectangle, taken: Sequence[Rectangle]) -> Label | None:
    for label in _places(dot):
        if label.box.within(area) and not any(label.box.meets(box) for box in taken):
            return label
    return None


def _places(dot: Dot) -> Iterator[Label]:
    """Yield positions around the point, at increasing distances."""
    for step in _REACHES:
        reach = dot.radius + _GAP + step
        for across, down in _DIRECTIONS:
            x, y = dot.x + across * reach, dot.y + down * reach
            left = x - dot.width * (1 - _sign(across)) / 2
            top = y - dot.height * (1 - _sign(down)) / 2
            box = Rectangle(left=left, top=top, right=left + dot.width, bottom=top + dot.height)
            yield Label(box=box, is_far=step > 0)


def _sign(direction: float) -> float:
    return float((direction > 0) - (direction < 0))


def svg_text(x: float, y: float, text: str, anchor: str, observation: str = "tick") -> str:
    """Return an SVG text element; the caller escapes `text`."""
    return f'<text class="{observation}" x="{x:g}" y="{y:g}" text-anchor="{anchor}">{text}</text>'
