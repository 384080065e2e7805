"""How long is that, for people?"""

from typing import Final

_MINUTE: Final = 60
_HOUR: Final = 3600
_DAY: Final = 86_400


def rough_span(seconds: float) -> str:
    """A time span in one unit and about two digits: `90 s`, `48 min`, `2.2 h`, `4 d`."""
    if seconds < 2 * _MINUTE:
        return f"{seconds:.0f} s"
    if seconds < _HOUR:
        return f"{seconds / _MINUTE:.0f} min"
    return f"{seconds / _HOUR:.2g} h" if seconds < 2 * _DAY else f"{seconds / _DAY:,.0f} d"


def span(seconds: float) -> str:
    """A time span in its two largest units: `4 min 10 s`."""
    whole = max(round(seconds), 0)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"
