"""Windows as a slow obvious version, and events for them."""

import math
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from headrace.core import HeadraceError
from headrace.core.spec.stream_parts import Function, StreamWindowSpec, StreamWindowsSpec
from headrace.streaming.windows.panes import Number, WindowEvent, WindowPlan
from headrace.streaming.windows.state_file import CountedEvents, PartitionState, WindowStateFile


def in_memory() -> WindowStateFile:
    """A state in which nothing is counted yet."""
    file = WindowStateFile(Path(":memory:"), definition="d")
    file.begin(0)
    return file


def counted(
    plan: WindowPlan, events: Sequence[WindowEvent | HeadraceError | None]
) -> CountedEvents:
    """What a state that has counted nothing before says of events."""
    with closing(in_memory()) as file:
        return PartitionState(plan, file, newest_us=None).count(events, offset=len(events))


def settings(*windows: StreamWindowSpec, lateness_s: float = 5.0) -> StreamWindowsSpec:
    return StreamWindowsSpec(windows=list(windows), lateness_s=lateness_s, time="t")


class Reference:
    """Remembers every event for ever, and looks at all of them each time."""

    def __init__(self, told: StreamWindowsSpec, plan: WindowPlan) -> None:
        self._told, self._plan = told, plan
        self._counted: list[WindowEvent] = []

    def is_late(self, event: WindowEvent) -> bool:
        """Whether `value` would not count it."""
        return event.at_us < self._oldest_us(event)

    def value(self, event: WindowEvent) -> list[Number]:
        """The windows' values for it, itself counted unless it is too late."""
        at_us = max(event.at_us, self._oldest_us(event))
        if not self.is_late(event):
            self._counted.append(event)
        return [self._of(window, event, at_us) for window in self._told.windows]

    def _oldest_us(self, event: WindowEvent) -> int:
        newest = max((one.at_us for one in self._counted), default=event.at_us)
        return newest - round(self._told.lateness_s * 1e6)

    def _of(self, window: StreamWindowSpec, event: WindowEvent, at_us: int) -> Number:
        size = round(window.size_s * 1e6)
        slide = size if window.slide_s is None else round(window.slide_s * 1e6)
        end = math.floor(at_us / slide) * slide + slide
        key = self._plan.keys.index(window.key)
        inside = [
            one
            for one in self._counted
            if end - size <= one.at_us < end and one.keys[key] == event.keys[key]
        ]
        if not window.field:
            return len(inside)
        at = self._plan.fields.index(window.field)
        values = [value for one in inside if (value := one.values[at]) is not None]
        match window.function:
            case Function.COUNT:
                return len(values)
            case Function.SUM:
                return math.fsum(values)
            case Function.MIN:
                return min(values, default=math.nan)
            case Function.MAX:
                return max(values, default=math.nan)
            case Function.MEAN:
                return math.fsum(values) / len(values) if values else math.nan


def values_of(counted: CountedEvents) -> list[list[Number] | None]:
    return [None if isinstance(row, HeadraceError) else row for row in counted.rows]


def same(found: Sequence[Number], expected: Sequence[Number]) -> bool:
    """Equal but for the order in which floats were added up; NaN is NaN."""
    return len(found) == len(expected) and all(
        math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9) or (math.isnan(a) and math.isnan(b))
        for a, b in zip(found, expected, strict=True)
    )
