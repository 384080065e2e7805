"""What do windows come to? Pure: events go in, in order, values come out.

Time is cut into panes, each as long as the greatest common divisor of a window's size and slide, so
that every window is made of whole panes ("No pane, no gain", Li et al., SIGMOD Record 34, 2005).
Windows of the same key, field and pane share them. All is a function of the events in their order
and of nothing else, to the last bit: what is read again comes to the same.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from headrace.core.spec_stream_parts import Function, StreamWindowsSpec
from headrace.streaming.windows.settings import microseconds, pane_us

Number = int | float
"""A value of a window: counts are whole."""


class Pane(NamedTuple):
    """What is known of the values of one key in one pane: how many, their sum, least, greatest."""

    values: int = 0
    total: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf

    def with_value(self, value: float) -> "Pane":
        """With one value more."""
        values, total, least, greatest = self
        return Pane(
            values + 1,
            total + value,
            value if value < least else least,  # noqa: FURB136  # min() takes three times as long
            value if value > greatest else greatest,  # noqa: FURB136  # as above
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Panes that several windows are made of.

    `key` and `field` are indexes into an event's keys and values; `field` is None where records
    are counted, whatever they hold. `longest_us`: the longest window over it.
    """

    key: int
    field: int | None
    pane_us: int
    longest_us: int

    def first_kept(self, oldest_us: int) -> int:
        """The first pane that an event at `oldest_us` or later may still need."""
        return (oldest_us - self.longest_us) // self.pane_us


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """One value: `function` over the panes of a series, counted by its index."""

    name: str
    function: Function
    series: int
    size_us: int
    slide_us: int

    def bounds(self, at_us: int) -> tuple[int, int]:
        """From when until before when the window of a moment goes: the newest one that holds it."""
        end = (at_us // self.slide_us + 1) * self.slide_us
        return end - self.size_us, end

    def value(
        self, panes: Mapping[int, Pane], order: Sequence[int], pane_us: int, at_us: int
    ) -> Number:
        """What it comes to.

        Args:
            panes: By number.
            order: Their numbers, ascending.
            pane_us: How long each is.
            at_us: The moment.
        """
        start, end = self.bounds(at_us)
        first, last = bisect_left(order, start // pane_us), bisect_left(order, end // pane_us)
        return _of(self.function, [panes[number] for number in order[first:last]])


class Plan(NamedTuple):
    """Windows, the series under them, and the fields that these are of."""

    windows: tuple[Window, ...]
    series: tuple[Series, ...]
    keys: tuple[str, ...]
    fields: tuple[str, ...]
    lateness_us: int

    @property
    def horizon_us(self) -> int:
        """How long before a record others were written that windows after it may hold.

        True where records are written within the lateness of their time, or all as late as another.
        """
        longest = max(window.size_us + window.slide_us for window in self.windows)
        return longest + 2 * self.lateness_us

    def oldest_us(self, newest_us: int) -> int:
        """The oldest event that is still in time after one at `newest_us`."""
        return newest_us - self.lateness_us


def plan_windows(settings: StreamWindowsSpec) -> Plan:
    """What the settings ask for."""
    keys = tuple(dict.fromkeys(window.key for window in settings.windows))
    fields = tuple(dict.fromkeys(window.field for window in settings.windows if window.field))
    longest: dict[tuple[int, int | None, int], int] = {}
    found = []
    for one in settings.windows:
        field = fields.index(one.field) if one.field else None
        of = keys.index(one.key), field, pane_us(one)
        size_us = microseconds(one.size_s)
        slide_us = size_us if one.slide_s is None else microseconds(one.slide_s)
        longest[of] = max(longest.get(of, 0), size_us)
        found.append((one, of, size_us, slide_us))
    order = list(longest)
    return Plan(
        windows=tuple(
            Window(
                name=one.name,
                function=one.function,
                series=order.index(of),
                size_us=size_us,
                slide_us=slide_us,
            )
            for one, of, size_us, slide_us in found
        ),
        series=tuple(
            Series(key=key, field=field, pane_us=length, longest_us=longest[key, field, length])
            for key, field, length in order
        ),
        keys=keys,
        fields=fields,
        lateness_us=microseconds(settings.lateness_s),
    )


def _of(function: Function, panes: Sequence[Pane]) -> Number:
    """NaN where there is no value that could be the least, the greatest or the mean."""
    if function is Function.COUNT:
        return sum([pane.values for pane in panes])
    if function is Function.SUM:
        return _total(panes)
    count = sum([pane.values for pane in panes])
    if not count:
        return math.nan
    if function is Function.MEAN:
        return _total(panes) / count
    if function is Function.MIN:
        return min([pane.least for pane in panes])
    assert function is Function.MAX
    return max([pane.greatest for pane in panes])


def _total(panes: Sequence[Pane]) -> float:
    """In order of time, one after the other, so that it is the same whenever it is asked for."""
    total = 0.0
    for total_of_one in [pane.total for pane in panes]:
        total += total_of_one
    return total
