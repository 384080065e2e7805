"""What people write for durations and lists of numbers."""

import math
from typing import Final

import typer

_MAX_LISTED: Final = 16
_LARGEST: Final = 1 << 20
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0}


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
    """A duration: seconds, or a number with `ms`, `s`, `m` or `h` behind it."""
    number, factor = text, 1.0
    if text.endswith("ms"):
        number, factor = text[:-2], 1e-3
    elif text[-1:] in _UNITS:
        number, factor = text[:-1], _UNITS[text[-1:]]
    try:
        found = float(number) * factor
    except ValueError:
        found = math.nan
    if not (math.isfinite(found) and found > 0.0):
        msg = f"'{text}' is no duration, such as 50ms, 60s or 5m"
        raise typer.BadParameter(msg, param_hint=flag)
    return found
