"""Which values does an axis show, where do they stand, and which of them are marked? Pure."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_LOGARITHMIC_FROM: Final = 5.0
_DECADE_MARKS: Final = ((1, 2, 5), (1, 2, 3, 5, 7))
_FEW_MARKS: Final = 4
_ROOM: Final = 0.06
_NEAR: Final = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps values of `low` to `high` to places of `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    is_logarithmic: bool = False

    def place(self, value: float) -> float:
        """Where a value stands; one outside stands at the edge."""
        share = (self._size(value) - self._size(self.low)) / (
            self._size(self.high) - self._size(self.low)
        )
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 1)

    def holds(self, value: float) -> bool:
        """Whether a value is not outside."""
        return self.low <= value <= self.high

    def marks(self) -> list[float]:
        """Round values on it."""
        if not self.is_logarithmic:
            return _even_marks(self.low, self.high)
        few, more = (self._decade_marks(per_decade) for per_decade in _DECADE_MARKS)
        return few if len(few) >= _FEW_MARKS else more

    def _decade_marks(self, per_decade: Sequence[int]) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        values = [part * 10.0**decade for decade in decades for part in per_decade]
        return [value for value in values if self.holds(value)]

    def _size(self, value: float) -> float:
        return math.log(max(value, 1e-300)) if self.is_logarithmic else value


def latency_scale(values: Sequence[float], *, start: float, end: float) -> Scale:
    """A scale of positive values: by their ratios where they are far apart."""
    low, high = min(values), max(values)
    if high / low >= _LOGARITHMIC_FROM:
        room = (high / low) ** _ROOM
        return Scale(low=low / room, high=high * room, start=start, end=end, is_logarithmic=True)
    room = (high - low or high) * _ROOM
    return Scale(low=max(low - room, 0.0), high=high + room, start=start, end=end)


def quality_scale(
    accepted: Sequence[float], rejected: Sequence[float], *, start: float, end: float
) -> Scale:
    """A scale of all accepted values, and of those rejected that are not far below.

    One that is broken altogether would press the others together; it stands at the edge.
    """
    shown = list(accepted) or list(rejected)
    span = max(max(shown) - min(shown), 0.002)
    near = [value for value in rejected if value >= min(shown) - _NEAR * span]
    low, high = min([*shown, *near]), max([*shown, *near])
    room = max(high - low, 0.002) * _ROOM * 1.5
    return Scale(low=low - room, high=high + room, start=start, end=end)


def _even_marks(low: float, high: float) -> list[float]:
    rough = (high - low) / _FEW_MARKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(step * power for step in _STEPS if step * power >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * i for i in range(first, last + 1)]
