"""How large is the picture, and where do its points stand?"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt
from typing import Final

from headrace.optimize.report.data import OptimizeReport
from headrace.optimize.report.labels import Box
from headrace.optimize.report.points import Point, front
from headrace.optimize.report.scales import Scale, latency_scale, quality_scale

_LEAST_RADIUS: Final = 4.0
_THICK: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Format:
    """A size of the picture. `is_named`: points have names, else numbers, for lack of room."""

    name: str
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    largest_radius: float
    is_named: bool


WIDE: Final = Format(
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
NARROW: Final = Format(
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
    """The picture's points on its scales."""

    report: OptimizeReport
    points: Sequence[Point]
    format: Format
    x: Scale
    y: Scale

    @property
    def area(self) -> Box:
        """Where points may stand."""
        form = self.format
        return Box(
            left=form.left,
            top=form.top,
            right=form.width - form.right,
            bottom=form.height - form.bottom,
        )

    @property
    def limit(self) -> float | None:
        """The least quality that is tolerated."""
        return least_quality(self.report)

    def stairs(self) -> list[tuple[float, float]]:
        """Corners of the front: what quality can be had for so much time."""
        places = [self.at(one) for one in front(self.points)]
        if not places:
            return []
        ends = [*places[1:], (self.area.right, 0.0)]
        corners = [(places[0][0], self.area.bottom)]
        for (x, y), (next_x, _) in zip(places, ends, strict=True):
            corners += [(x, y), (next_x, y)]
        return corners

    def lines(self) -> list[Box]:
        """What names are not to be written over, besides circles."""
        corners = self.stairs()
        found = [_line(a, b) for a, b in pairwise(corners)]
        for one in self.points:
            x, y = self.at(one)
            if one.latency_ci_s is not None:
                low, high = map(self.x.place, one.latency_ci_s)
                found.append(_line((low, y), (high, y)))
            if one.quality_ci is not None and self.y.holds(one.quality):
                low, high = map(self.y.place, one.quality_ci)
                found.append(_line((x, low), (x, high)))
        if self.limit is not None:
            y, right = self.y.place(self.limit), self.area.right
            found.append(_line((self.area.left, y), (right, y)))
            found.append(Box(left=right - 140, top=y, right=right, bottom=y + 18))
        return found

    def at(self, point: Point) -> tuple[float, float]:
        """Where its centre stands."""
        return self.x.place(point.latency_s), self.y.place(point.quality)

    def radius(self, point: Point) -> float:
        """Of its circle, whose area is the size of its files."""
        sizes = [one.size_bytes for one in self.points if one.size_bytes]
        share = (point.size_bytes or 0) / max(sizes, default=1)
        return round(max(self.format.largest_radius * sqrt(share), _LEAST_RADIUS), 1)


def _line(a: tuple[float, float], b: tuple[float, float]) -> Box:
    return Box(
        left=min(a[0], b[0]) - _THICK,
        top=min(a[1], b[1]) - _THICK,
        right=max(a[0], b[0]) + _THICK,
        bottom=max(a[1], b[1]) + _THICK,
    )


def frame_of(report: OptimizeReport, those: Sequence[Point], form: Format) -> Frame:
    """Scales that hold the points with their intervals, and the points on them."""
    latencies = [x for one in those for x in (one.latency_s, *(one.latency_ci_s or ()))]
    accepted = [
        y for one in those if one.is_accepted for y in (one.quality, *(one.quality_ci or ()))
    ]
    limit = least_quality(report)
    accepted += [] if limit is None else [limit]
    rejected = [one.quality for one in those if not one.is_accepted]
    room = form.largest_radius * 0.6
    return Frame(
        report=report,
        points=those,
        format=form,
        x=latency_scale(latencies, start=form.left + room, end=form.width - form.right - room),
        y=quality_scale(
            accepted, rejected, start=form.height - form.bottom - room, end=form.top + room
        ),
    )


def least_quality(report: OptimizeReport) -> float | None:
    """By the largest loss that is tolerated; None without labels."""
    if not report.data.is_labelled or report.baseline.accuracy is None:
        return None
    return report.baseline.accuracy - report.settings.max_loss
