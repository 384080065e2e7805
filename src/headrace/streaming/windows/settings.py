"""Which windows a stream keeps: what is counted or summed, by which key, over how long."""

import math
from collections.abc import Iterator
from typing import Final

from headrace.core.spec_stream_parts import Function, StreamWindowSpec, StreamWindowsSpec

MICROSECONDS: Final = 1_000_000
MOST_PANES: Final = 10_000
"""In one window, so that one value never means adding up more."""


def microseconds(seconds: float) -> int:
    """The whole number of microseconds nearest to a duration, or a Unix time."""
    return round(seconds * MICROSECONDS)


def pane_us(window: StreamWindowSpec) -> int:
    """How long the parts are of which all windows of these are made."""
    size = microseconds(window.size_s)
    return math.gcd(size, size if window.slide_s is None else microseconds(window.slide_s))


def window_mistakes(settings: StreamWindowsSpec) -> Iterator[str]:
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


def _mistakes(window: StreamWindowSpec) -> Iterator[str]:
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
