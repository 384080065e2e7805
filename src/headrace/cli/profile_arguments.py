"""What people write for durations and lists of numbers."""

import math
from typing import Final

import typer

_MAX_LISTED: Final = 16
_LARGEST: Final = 1 << 20
_UNITS: Final = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
"""The longer ones first: `ms` ends with an `s`."""


def numbers(text: str, flag: str) -> tuple[int, ...]:
    """Whole numbers from 1 on, in the order they are written; none if `text` is empty."""
    if not text:
        return ()
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        msg = f"'{text}' is no list of whole numbers, such as 1,2,4"
        raise typer.BadParameter(msg, param_hint=flag) from None
    if not all(1 <= number <= _LARGEST for number in found) or len(found) > _MAX_LISTED:
        msg = f"'{text}': up to {_MAX_LISTED} numbers from 1 to {_LARGEST}"
        raise typer.BadParameter(msg, param_hint=flag)
    return tuple(dict.fromkeys(found))


def seconds(text: str, flag: str) -> float:
    """A duration: seconds, or a number with `us`, `ms`, `s`, `m`, `h` or `d` behind it."""
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    try:
        found = float(text.removesuffix(unit)) * _UNITS.get(unit, 1.0)
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and found > 0.0):
        msg = f"'{text}' is no duration, such as 50ms, 60s or 5m"
        raise typer.BadParameter(msg, param_hint=flag)
    return found
