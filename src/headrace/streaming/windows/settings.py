"""Which windows a stream keeps: what is counted or summed, by which key, over how long."""

import math
from collections.abc import Iterator
from enum import StrEnum
from typing import Final

import msgspec

MICROSECONDS: Final = 1_000_000
MOST_PANES: Final = 10_000
"""In one window, so that one value never means adding up more."""


class Function(StrEnum):
    """What a window tells of its records."""

    COUNT = "count"
    SUM = "sum"
    MIN = "min"
    MAX = "max"
    MEAN = "mean"


class WindowSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One value per key: `function` of `field` over the last `size_s`.

    `name`: of the field that a record gets. `key`: the field that holds the key; empty for the
    record's own. `field`: what is added up; `count` may leave it out, and counts all records then.
    Windows end at multiples of `slide_s` since 1970 and hold the record's time; without it they
    tumble: one begins where the last one ends.
    """

    name: str
    size_s: float
    slide_s: float | None = None
    function: Function = Function.COUNT
    field: str = ""
    key: str = ""


class WindowsSettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The windows of a stream, and the time they go by.

    `time`: the field that holds a record's time (Unix seconds, or ISO 8601 with a zone); empty for
    the record's timestamp. `lateness_s`: so much older than the newest record of its partition may
    one be; an older one is scored, and not counted. `ahead_s`: so much later than it was
    written may a record's time be, or none after it would be in time any more. `state`: the folder
    of the state; empty for one in the stream's home. `checkpoint_s`: how often it is written.
    """

    windows: list[WindowSettings]
    time: str = ""
    lateness_s: float = 60.0
    ahead_s: float = 300.0
    state: str = ""
    checkpoint_s: float = 0.2


def microseconds(seconds: float) -> int:
    """The whole number of microseconds nearest to a duration, or a Unix time."""
    return round(seconds * MICROSECONDS)


def pane_us(window: WindowSettings) -> int:
    """How long the parts are of which all windows of these are made."""
    size = microseconds(window.size_s)
    return math.gcd(size, size if window.slide_s is None else microseconds(window.slide_s))


def window_mistakes(settings: WindowsSettings) -> Iterator[str]:
    """All that cannot work, for people."""
    if not settings.windows:
        yield "windows names none; leave it out"
    names = [window.name for window in settings.windows]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"two windows are called '{name}'"
    for what, value in (
        ("lateness_s", settings.lateness_s),
        ("ahead_s", settings.ahead_s),
        ("checkpoint_s", settings.checkpoint_s),
    ):
        if not 0 <= value < math.inf:
            yield f"windows.{what} is a number that is not negative, not {value}"
    for at, window in enumerate(settings.windows):
        for mistake in _mistakes(window):
            yield f"windows.windows[{at}]: {mistake}"


def _mistakes(window: WindowSettings) -> Iterator[str]:
    if not window.name:
        yield "name is empty"
    if window.function is not Function.COUNT and not window.field:
        yield f"{window.function} needs the field whose values it is of"
    slide_s = window.size_s if window.slide_s is None else window.slide_s
    least = 1 / MICROSECONDS
    if not (least <= slide_s <= window.size_s < math.inf):
        yield (
            f"slide_s ({slide_s:g}) is at most size_s ({window.size_s:g}), and both are finite and "
            "at least a microsecond"
        )
    elif microseconds(window.size_s) // pane_us(window) > MOST_PANES:
        yield (
            f"size_s ({window.size_s:g}) and slide_s ({slide_s:g}) make windows of "
            f"{microseconds(window.size_s) // pane_us(window)} parts; at most {MOST_PANES} are "
            "kept: choose a slide_s that divides size_s and is not so small"
        )
