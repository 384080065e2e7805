"""Where do the names of points stand so that they hide neither each other nor a point? Pure."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

_GAP: Final = 4.0
_STEPS: Final = (0.0, 12.0, 24.0, 38.0, 54.0, 72.0)
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """A rectangle from `left`, `top` to `right`, `bottom`; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: "Box") -> bool:
        """Whether they have an area in common."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def within(self, other: "Box") -> bool:
        """Whether no part is outside the other."""
        return (
            other.left <= self.left
            and self.right <= other.right
            and other.top <= self.top
            and self.bottom <= other.bottom
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Dot:
    """A point with its name: centre, radius, and the size of the written name."""

    x: float
    y: float
    radius: float
    width: float
    height: float

    @property
    def box(self) -> Box:
        """What the point covers."""
        r = self.radius
        return Box(left=self.x - r, top=self.y - r, right=self.x + r, bottom=self.y + r)


@dataclass(frozen=True, slots=True, kw_only=True)
class Label:
    """Where a name stands. `is_far`: so far from its point that a line has to lead there."""

    box: Box
    is_far: bool


def place_labels(
    dots: Sequence[Dot], area: Box, obstacles: Sequence[Box] = ()
) -> list[Label | None]:
    """A place for each name, the first ones first; None where there is no room for one.

    Args:
        obstacles: What else is not written over, if that can be.
    """
    taken = [dot.box for dot in dots]
    found: list[Label | None] = []
    for dot in dots:
        label = _free(dot, area, [*taken, *obstacles]) or _free(dot, area, taken)
        found.append(label)
        if label is not None:
            taken.append(label.box)
    return found


def _free(dot: Dot, area: Box, taken: Sequence[Box]) -> Label | None:
    for label in _places(dot):
        if label.box.within(area) and not any(label.box.meets(box) for box in taken):
            return label
    return None


def _places(dot: Dot) -> Iterator[Label]:
    """Around the point, and then around it further out."""
    for step in _STEPS:
        reach = dot.radius + _GAP + step
        for across, down in _DIRECTIONS:
            x, y = dot.x + across * reach, dot.y + down * reach
            left = x - dot.width * (1 - _sign(across)) / 2
            top = y - dot.height * (1 - _sign(down)) / 2
            box = Box(left=left, top=top, right=left + dot.width, bottom=top + dot.height)
            yield Label(box=box, is_far=step > 0)


def _sign(direction: float) -> float:
    return float((direction > 0) - (direction < 0))
