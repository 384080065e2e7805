"""How people write how long: `90s`, `12h`, `30d`, `8w`, `never`."""

from typing import Final

import typer

_DAY_S: Final = 86_400.0
_UNITS: Final = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": _DAY_S, "w": 7 * _DAY_S}


def span_s(text: str, *, flag: str) -> float | None:
    """How many seconds `30d` is; None for `never`.

    Raises:
        BadParameter: It is something else.
    """
    if text == "never":
        return None
    unit = _UNITS.get(text[-1:])
    if unit is None or not text[:-1].isdecimal() or not int(text[:-1]):
        msg = f"'{text}' is no span of time; write it as 90s, 15m, 12h, 30d or 8w, or never"
        raise typer.BadParameter(msg, param_hint=flag)
    return int(text[:-1]) * unit
