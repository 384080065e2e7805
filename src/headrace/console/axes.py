"""Where do the marks of an axis stand? At round numbers that hold the data. Pure."""

import math
from dataclasses import dataclass
from typing import Final

_STEPS: Final = (1.0, 2.0, 2.5, 5.0, 10.0)
_SPANS_S: Final = (10, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600)
_NOTHING: Final = 1e-300  # a part of a number as small is 0
_MINUTE: Final = 60.0
_HOUR: Final = 3600.0
_DAY: Final = 86_400.0


@dataclass(frozen=True, slots=True)
class Tick:
    """A mark at a place of the picture, with its label."""

    at: float
    label: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """Maps values of `low` to `high` to places of `start` to `end`."""

    low: float
    high: float
    start: float
    end: float

    def place(self, value: float) -> float:
        """Where a value stands; one outside stands at the edge."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 1)


def round_step(most: float, marks: int) -> float:
    """The smallest round step with which `marks` of them reach `most`."""
    if most < _NOTHING:
        return 1.0 / marks
    rough = most / marks
    power = 10.0 ** math.floor(math.log10(rough))
    return next(step * power for step in _STEPS if step * power >= rough * (1 - 1e-9))


def marks_from_zero(most: float, marks: int = 4) -> list[float]:
    """Round values from 0 to at least `most`; to 1 where that is nothing."""
    if most <= 0:
        return [0.0, 1.0]
    step = round_step(most, marks)
    count = max(math.ceil(most / step - 1e-9), 1)
    return [step * i for i in range(count + 1)]


def marks_between(low: float, high: float, marks: int = 4) -> list[float]:
    """Round values between two."""
    step = round_step(high - low, marks)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [step * i for i in range(first, last + 1)]


def ages(span_s: float, marks: int = 4) -> list[tuple[float, str]]:
    """Round ages from 0 to `span_s`, with their labels: `-30 min`, `now`."""
    step = next((s for s in _SPANS_S if span_s / s <= marks), 21600)
    return [(i * step, _age(i * step)) for i in range(int(span_s / step + 1e-9) + 1)]


def elapsed(span_s: float, marks: int = 4) -> list[tuple[float, str]]:
    """Round times from 0 to `span_s`, with their labels: `start`, `30 min`, `2 d`."""
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
