"""Durations and shares as people write them: `5m`, `90s`, `1%`."""

import math
import re
from typing import Final

import typer

_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|min|h|)")
_SECONDS: Final = {"ms": 1e-3, "": 1.0, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def parse_duration(text: str) -> float:
    """Seconds out of `90`, `90s`, `1.5m`, `2h` or `250ms`.

    Raises:
        BadParameter: It is none, or not above zero.
    """
    found = _DURATION.fullmatch(text.strip().lower())
    seconds = float(found[1]) * _SECONDS[found[2]] if found else 0.0
    if not 0 < seconds < math.inf:
        msg = f"'{text}' is no duration; write 90s, 5m or 1h"
        raise typer.BadParameter(msg)
    return seconds


def parse_share(text: str) -> float:
    """A ratio out of `1%` or `0.01`.

    Raises:
        BadParameter: It is none between 0 and 1.
    """
    word = text.strip()
    try:
        ratio = float(word[:-1]) / 100 if word.endswith("%") else float(word)
    except ValueError:
        ratio = -1.0
    if not 0 <= ratio <= 1:
        msg = f"'{text}' is no share; write 1% or 0.01"
        raise typer.BadParameter(msg)
    return ratio
