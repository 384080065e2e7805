"""How are numbers written for people? With a unit, in as many digits as they are worth."""

import math
from datetime import UTC, datetime
from typing import Final

from headrace.core import span as span  # noqa: PLC0414  # pages say `words.span`

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86_400
_MILLI: Final = 1e-3
_KIB: Final = 1024
_NOTHING: Final = "-"


def number(value: float | None) -> str:
    """`1,234`, `12.3`, `0.0012`: three digits, thousands apart; a dash for None."""
    if value is None or not math.isfinite(value):
        return _NOTHING
    if value == 0:
        return "0"
    digits = max(2 - math.floor(math.log10(abs(value))), 0)
    text = f"{value:,.{digits}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def count(value: int | None) -> str:
    """A whole number with all its digits: `12,345,678`; a dash for None."""
    return _NOTHING if value is None else f"{value:,}"


def score(value: float | None) -> str:
    """A distance between 0 and about 1: `0.142`; a dash for None."""
    return _NOTHING if value is None else f"{value:.3f}"


def seconds(value: float | None) -> str:
    """A latency: `850 µs`, `12.3 ms`, `1.5 s`."""
    if value is None:
        return _NOTHING
    if value < _MILLI:
        return f"{number(1e6 * value)} µs"
    return f"{number(1e3 * value)} ms" if value < 1 else f"{number(value)} s"


def percent(ratio: float | None) -> str:
    """A ratio: `1.25 %`."""
    return _NOTHING if ratio is None else f"{number(100 * ratio)} %"


def size(value: float | None) -> str:
    """A number of bytes: `1.5 MiB`."""
    if value is None:
        return _NOTHING
    left = float(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if left < _KIB:
            return f"{number(left)} {unit}"
        left /= _KIB
    return f"{number(left)} TiB"


def about(value: float) -> str:
    """A time span in one unit, which does not change with every look: `4 min`."""
    whole = max(round(value), 0)
    for unit, length in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if whole >= length:
            return f"{whole // length} {unit}"
    return "less than a minute"


def moment(at: float | None) -> str:
    """A point in time: `2026-11-25 14:03:22 UTC`."""
    if at is None:
        return _NOTHING
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def machine_moment(at: float) -> str:
    """The same for programs."""
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def plain(word: str) -> str:
    """A word of a program's as people write it: `roll back`."""
    return word.replace("_", " ")


def measure(value: float | None, unit: str) -> str:
    """A value with its unit, where `s` and `ratio` get the form that is read best."""
    match unit:
        case "s":
            return seconds(value)
        case "ratio":
            return percent(value)
        case _:
            return f"{number(value)} {unit}".strip()


def own_value(value: float | None, unit: str) -> str:
    """One side's number in a metric of this unit."""
    match unit:
        case "ratio difference" | "ratio":
            return percent(value)
        case "times":
            return seconds(value)
        case _:
            return number(value)


def effect(value: float | None, unit: str) -> str:
    """An effect or a margin: percentage points, a factor, or a plain number with its sign."""
    if value is None:
        return _NOTHING
    sign = "+" if value > 0 else ""
    match unit:
        case "ratio difference":
            return f"{sign}{number(100 * value)} points"
        case "ratio":
            return percent(value)
        case "times":
            return f"{number(value)}-fold"
        case _:
            return f"{sign}{number(value)}"


def bound(value: float | None, unit: str) -> str:
    """A bound of an interval, which may be open."""
    return "any" if value is None else effect(value, unit)
