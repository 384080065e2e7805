"""Number, byte size, duration and time formats for people."""

import math
from datetime import UTC, datetime
from typing import Final

NOTHING: Final = "-"
"""Text for an unknown value."""
_MAX_DECIMALS: Final = 9
_HUGE: Final = 1e15
_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86_400
_DURATIONS: Final = (
    (2.0 * _DAY, "d", _DAY),
    (_HOUR, "h", _HOUR),
    (2.0 * _MINUTE, "min", _MINUTE),
    (1.0, "s", 1.0),
    (1e-3, "ms", 1e-3),
    (1e-6, "µs", 1e-6),
    (0.0, "ns", 1e-9),
)
"""Durations in seconds from which a unit is used, the unit, and its length in seconds."""
_SIZES: Final = ("B", "kB", "MB", "GB", "TB")
_THOUSAND: Final = 1000
_SIZE_UNITS: Final = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "k": 1 << 10,
    "m": 1 << 20,
    "g": 1 << 30,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
}
_DURATION_UNITS: Final = {
    "us": 1e-6,
    "ms": 1e-3,
    "s": 1.0,
    "m": 60.0,
    "h": 3600.0,
    "d": 86_400.0,
    "w": 604_800.0,
}
"""Longer suffixes first: `ms` ends with `s`."""


def number_text(value: float | None, *, digits: int = 3) -> str:
    """Return a number with `digits` or more significant digits: `1,234`, `0.0012`; `-` for None."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "unbounded"
    if abs(value) > _HUGE:
        return f"{value:.{digits}g}"
    whole = math.floor(math.log10(abs(value))) + 1 if value else 1
    text = f"{value:,.{min(max(digits - whole, 0), _MAX_DECIMALS)}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def percent_text(ratio: float | None) -> str:
    """Return a ratio as `1.25 %`; `-` for None."""
    return NOTHING if ratio is None else f"{number_text(100 * ratio)} %"


def bytes_text(size: float | None) -> str:
    """Return a number of bytes in decimal units: `22.9 MB`; `-` for None."""
    if size is None:
        return NOTHING
    power = 0
    while abs(float(f"{size:.3g}")) >= _THOUSAND and power < len(_SIZES) - 1:
        size, power = size / _THOUSAND, power + 1
    return f"{number_text(size)} {_SIZES[power]}"


def duration_text(seconds: float | None) -> str:
    """Return a duration in one unit: `850 µs`, `12.3 ms`, `1.5 s`, `48 min`, `2.2 h`, `4 d`."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    unit, size = duration_unit(seconds)
    return f"{number_text(seconds / size, digits=2 if size >= _MINUTE else 3)} {unit}"


def duration_unit(seconds: float) -> tuple[str, float]:
    """Return the unit that suits a duration, and its length in seconds."""
    rounded = abs(float(f"{seconds:.3g}"))
    if not rounded > 0.0:  # nan too
        return "s", 1.0
    return next((unit, size) for minimum, unit, size in _DURATIONS if rounded >= minimum)


def span(seconds: float) -> str:
    """Return a duration in its two largest units: `4 min 10 s`."""
    whole = max(round(seconds), 0)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def coarse_span(seconds: float) -> str:
    """Return a duration in whole units, which changes seldom: `4 min`."""
    whole = max(round(seconds), 0)
    for unit, size in (("d", _DAY), ("h", _HOUR), ("min", _MINUTE)):
        if whole >= size:
            return f"{whole // size} {unit}"
    return "less than a minute"


def printable(text: str) -> str:
    """Return `text` on one line, with terminal control characters escaped."""
    return "".join(
        character
        if character.isprintable()
        else " "
        if character.isspace()
        else character.encode("unicode_escape").decode()
        for character in text.encode("utf-8", "replace").decode()
    )


def moment_text(moment: float | None) -> str:
    """Return a point in time as `2026-11-25 14:03:22 UTC`; `-` for None."""
    if moment is None:
        return NOTHING
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def iso_text(moment: float) -> str:
    """Return a point in time in ISO 8601, to the second, in UTC."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def plain_text(word: str) -> str:
    """Return an identifier as words: `roll back`."""
    return word.replace("_", " ")


def measure_text(value: float | None, unit: str) -> str:
    """Return a value of an alert: `2.4 %`, `310 ms`, `12 d`; for other units, the number."""
    match unit:
        case "s":
            return duration_text(value)
        case "ratio":
            return percent_text(value)
        case _:
            return number_text(value)


def metric_text(value: float | None, unit: str) -> str:
    """Return one arm's number in a rollout's metric of this unit."""
    match unit:
        case "ratio difference" | "ratio":
            return percent_text(value)
        case "times":
            return duration_text(value)
        case _:
            return number_text(value)


def effect_text(value: float | None, unit: str) -> str:
    """Return an effect or a margin: percentage points, a factor, or a signed number."""
    if value is None:
        return NOTHING
    sign = "+" if value > 0 else ""
    match unit:
        case "ratio difference":
            return f"{sign}{number_text(100 * value)} points"
        case "ratio":
            return percent_text(value)
        case "times":
            return f"x{number_text(value)}"
        case _:
            return f"{sign}{number_text(value)}"


def bound_text(value: float | None, unit: str) -> str:
    """Return a bound of an effect's interval, which may be open."""
    return "any" if value is None else effect_text(value, unit)


def duration_s(text: str) -> float | None:
    """Return the seconds in `50ms`, `5m` or a number; None if it is not a duration above 0."""
    unit = next((unit for unit in _DURATION_UNITS if text.endswith(unit)), "")
    try:
        seconds = float(text.removesuffix(unit)) * _DURATION_UNITS.get(unit, 1.0)
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0.0 else None


def size_bytes(text: str) -> int | None:
    """Return the bytes in `512MiB`, `1GB` or a number; None if it is not a size above 0."""
    word = text.strip().lower()
    digits = word.rstrip("abcdefghijklmnopqrstuvwxyz ")
    unit = word[len(digits) :].strip()
    try:
        size = int(float(digits) * _SIZE_UNITS[unit])
    except (ValueError, KeyError, OverflowError):
        return None
    return size if size >= 1 else None
