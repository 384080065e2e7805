"""Panes of time windows: pure functions from events, in order, to values.

Time is cut into panes, each as long as the greatest common divisor of a window's size and slide, so
that every window consists of whole panes ("No pane, no gain", Li et al., SIGMOD Record 34, 2005).
Windows of the same key, field and pane share them. Results depend only on the events and their
order, to the last bit: reading records again gives the same values.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Final, NamedTuple

import msgspec

from headrace.core import HeadraceError, InvalidArgumentError
from headrace.core.spec.stream_parts import Function, StreamWindowSpec, StreamWindowsSpec
from headrace.streaming.formats import Column, ValueReader
from headrace.streaming.records import MAX_TIME_S, Record, shown, unix_time


def microseconds(seconds: float) -> int:
    """Return the number of whole microseconds nearest to a duration or a Unix time."""
    return round(seconds * 1_000_000)


def pane_us(window: StreamWindowSpec) -> int:
    """Return the pane length of a window."""
    return math.gcd(microseconds(window.size_s), microseconds(window.slide_s or window.size_s))


Number = int | float
"""A window's value; counts are integers."""


class Pane(NamedTuple):
    """Aggregates of the values of one key in one pane."""

    values: int = 0
    total: float = 0.0
    least: float = math.inf
    greatest: float = -math.inf

    def with_value(self, value: float) -> "Pane":
        """Return the pane with one more value."""
        values, total, minimum, greatest = self
        return Pane(
            values + 1,
            total + value,
            value if value < minimum else minimum,  # noqa: FURB136  # min() takes three times as long
            value if value > greatest else greatest,  # noqa: FURB136  # as above
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """Panes that several windows share."""

    key: int
    """Index of the key in an event's keys."""
    field: int | None
    """Index of the field in an event's values; None to count records."""
    pane_us: int
    longest_us: int
    """Length of the longest window over it."""

    def first_needed(self, oldest_us: int) -> int:
        """Return the first pane that an event at `oldest_us` or later may still need."""
        return (oldest_us - self.longest_us) // self.pane_us


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowDefinition:
    """One window: a function over the panes of a series, referred to by its index."""

    name: str
    function: Function
    series: int
    size_us: int
    slide_us: int

    def value(
        self, panes: Mapping[int, Pane], order: Sequence[int], pane_us: int, at_us: int
    ) -> Number:
        """Return the value of the newest window that contains a moment.

        Args:
            panes: By number.
            order: Their numbers, ascending.
            pane_us: Length of a pane.
            at_us: The moment.
        """
        end = (at_us // self.slide_us + 1) * self.slide_us  # exclusive
        start = end - self.size_us
        first, last = bisect_left(order, start // pane_us), bisect_left(order, end // pane_us)
        return _aggregate(self.function, [panes[number] for number in order[first:last]])


class WindowPlan(NamedTuple):
    """Windows, their series, and the keys and fields that these use."""

    windows: tuple[WindowDefinition, ...]
    series: tuple[Series, ...]
    keys: tuple[str, ...]
    fields: tuple[str, ...]
    lateness_us: int

    @property
    def horizon_us(self) -> int:
        """Maximum time before a record at which the records of its windows were written.

        Valid if records are written within the lateness of their time, or all equally late.
        """
        longest = max(window.size_us + window.slide_us for window in self.windows)
        return longest + 2 * self.lateness_us

    def oldest_us(self, newest_us: int) -> int:
        """Return the oldest event time that still counts after an event at `newest_us`."""
        return newest_us - self.lateness_us

    def first_needed(self, newest_us: int | None) -> list[int]:
        """Return the first pane of each series that an event may still need; empty for all."""
        if newest_us is None:
            return []
        return [series.first_needed(self.oldest_us(newest_us)) for series in self.series]


def plan_windows(settings: StreamWindowsSpec) -> WindowPlan:
    """Return the plan for the settings."""
    keys = tuple(dict.fromkeys(window.key for window in settings.windows))
    fields = tuple(dict.fromkeys(window.field for window in settings.windows if window.field))

    def series_of(spec: StreamWindowSpec) -> tuple[int, int | None, int]:
        field = fields.index(spec.field) if spec.field else None
        return keys.index(spec.key), field, pane_us(spec)

    longest: dict[tuple[int, int | None, int], int] = {}
    for spec in settings.windows:
        size_us = microseconds(spec.size_s)
        longest[series_of(spec)] = max(longest.get(series_of(spec), 0), size_us)
    order = list(longest)
    return WindowPlan(
        windows=tuple(
            WindowDefinition(
                name=spec.name,
                function=spec.function,
                series=order.index(series_of(spec)),
                size_us=microseconds(spec.size_s),
                slide_us=microseconds(spec.slide_s or spec.size_s),
            )
            for spec in settings.windows
        ),
        series=tuple(
            Series(key=key, field=field, pane_us=length, longest_us=longest[key, field, length])
            for key, field, length in order
        ),
        keys=keys,
        fields=fields,
        lateness_us=microseconds(settings.lateness_s),
    )


def _aggregate(function: Function, panes: Sequence[Pane]) -> Number:
    """Return the aggregate of panes; NaN where there is no value for a minimum, maximum or mean."""
    count = sum([pane.values for pane in panes])
    if function is Function.COUNT:
        return count
    if not count and function is not Function.SUM:
        return math.nan
    if function is Function.MIN:
        return min([pane.least for pane in panes])
    if function is Function.MAX:
        return max([pane.greatest for pane in panes])
    # In order of time, and not by `sum`, which compensates for rounding in some versions of Python.
    total = reduce(add, [pane.total for pane in panes], 0.0)
    return total if function is Function.SUM else total / count


_MAX_KEY_BYTES: Final = 1024


class WindowEvent(NamedTuple):
    """The event time, keys and values of a record, in the plan's order; None for no value."""

    at_us: int
    keys: tuple[bytes, ...]
    values: tuple[float | None, ...]


class Events:
    """Converts records to events."""

    def __init__(
        self, settings: StreamWindowsSpec, plan: WindowPlan, reads: ValueReader | None
    ) -> None:
        self._time = settings.time
        self._ahead_s = settings.ahead_s
        self._plan = plan
        self._reads = reads
        """Reader of record fields; None if only the records' own keys and times are needed."""

    def from_records(
        self, records: Sequence[Record], *, now_s: float
    ) -> list[WindowEvent | HeadraceError | None]:
        """Return the event of each record, or its error; None for a tombstone.

        Args:
            now_s: Unix time; timestamps far beyond it are errors.
        """
        columns: Mapping[str, Column] = {}
        errors: Mapping[int, HeadraceError] = {}
        if self._reads is not None:
            fields = self._reads.decode(records)
            columns, errors = fields.columns, fields.errors
        events: list[WindowEvent | HeadraceError | None] = [
            None if record.value is None else errors.get(index)
            for index, record in enumerate(records)
        ]
        has_value = (index for index, record in enumerate(records) if record.value is not None)
        for row, index in enumerate(index for index in has_value if index not in errors):
            try:
                events[index] = self._event(records[index], columns, row, now_s)
            except InvalidArgumentError as error:
                events[index] = error
        return events

    def _event(
        self, record: Record, columns: Mapping[str, Column], row: int, now_s: float
    ) -> WindowEvent:
        plan = self._plan
        if self._time:
            at_s = unix_time(self._time, columns[self._time][row])
            written_s = record.timestamp_s or now_s
        else:
            at_s, written_s = record.timestamp_s, now_s
            if not 0 < at_s < MAX_TIME_S:
                msg = "the record has no timestamp for windows; name a field in `time`"
                raise InvalidArgumentError(msg)
        if at_s - written_s > self._ahead_s:
            description = f"'{self._time}'" if self._time else "the timestamp"
            msg = (
                f"{description} is {at_s - written_s:.0f} s in the future; windows accept up to "
                f"{self._ahead_s:g} s"
            )
            raise InvalidArgumentError(msg)
        keys = tuple(
            [_key(name, columns[name][row]) if name else _own_key(record) for name in plan.keys]
        )
        values = tuple([_value(name, columns[name][row]) for name in plan.fields])
        return WindowEvent(microseconds(at_s), keys, values)


def fields_of(settings: StreamWindowsSpec) -> tuple[str, ...]:
    """Return the record fields that windows use."""
    names = [settings.time]
    for window in settings.windows:
        names += [window.key, window.field]
    return tuple(dict.fromkeys(filter(None, names)))


def _own_key(record: Record) -> bytes:
    if record.key is None:
        raise InvalidArgumentError("the record has no key for windows")
    return _checked_key("the record's key", record.key)


def _key(name: str, value: object) -> bytes:
    """Return an encoded key; text and integers differ: '1' is not 1."""
    if isinstance(value, bool) or not isinstance(value, str | int | bytes):
        msg = f"'{name}' is a window key: it must be text or an integer, not {shown(value)}"
        raise InvalidArgumentError(msg)
    key = b"b" + value if isinstance(value, bytes) else msgspec.json.encode(value)
    return _checked_key(f"'{name}'", key)


def _checked_key(description: str, key: bytes) -> bytes:
    if len(key) > _MAX_KEY_BYTES:
        limit = f"a window key may have at most {_MAX_KEY_BYTES}"
        raise InvalidArgumentError(f"{description} has {len(key)} bytes; {limit}")
    return key


def _value(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    msg = f"'{name}' must be a finite number or null to be aggregated, not {shown(value)}"
    raise InvalidArgumentError(msg)
