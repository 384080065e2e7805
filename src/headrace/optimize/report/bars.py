"""Intervals below each other on one scale, each a small picture in its row of a table."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from headrace.optimize.report.data import Interval

_WIDTH: Final = 132
_HEIGHT: Final = 14
_ROOM: Final = 6.0
_LARGEST: Final = 1e9


@dataclass(frozen=True, slots=True, kw_only=True)
class Bars:
    """A scale for a column. `neutral`: where nothing changed; `limit`: what is tolerated."""

    low: float
    high: float
    neutral: float | None = None
    limit: float | None = None

    def bar(self, value: float | None, bounds: Interval | None) -> str:
        """One row's picture; empty where nothing is known. The figures stand beside it."""
        if value is None or not math.isfinite(value):
            return ""
        return "".join(self._parts(value, bounds))

    def _parts(self, value: float, bounds: Interval | None) -> Iterator[str]:
        middle = _HEIGHT / 2
        look = f'class="interval" viewBox="0 0 {_WIDTH} {_HEIGHT}"'
        yield f'<svg {look} aria-hidden="true">'
        for kind, at in (("neutral", self.neutral), ("limit", self.limit)):
            if at is not None:
                yield f'<path class="{kind}" d="M{self._place(at)} 0V{_HEIGHT}"/>'
        if bounds is not None and not any(map(math.isnan, bounds)):
            low, high = map(self._place, bounds)
            yield f'<path class="reach" d="M{low} {middle}H{high}"/>'
        yield f'<circle cx="{self._place(value)}" cy="{middle}" r="3.2"/></svg>'

    def _place(self, value: float) -> float:
        share = (value - self.low) / ((self.high - self.low) or 1.0)
        return round(_ROOM + min(max(share, 0.0), 1.0) * (_WIDTH - 2 * _ROOM), 1)


def bars(
    values: Iterable[float | None],
    bounds: Iterable[Interval | None] = (),
    *,
    neutral: float | None = None,
    limit: float | None = None,
) -> Bars:
    """A scale that holds all values with their bounds."""
    known = [value for value in values if value is not None]
    known += [x for pair in bounds if pair is not None for x in pair]
    known += [x for x in (neutral, limit) if x is not None]
    known = [value for value in known if abs(value) <= _LARGEST]
    low, high = min(known, default=0.0), max(known, default=1.0)
    return Bars(low=low, high=high, neutral=neutral, limit=limit)
