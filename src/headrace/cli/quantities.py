"""Durations, moments, shares and numbers as options of commands have them."""

from datetime import UTC, datetime
from typing import Final

import typer

from headrace.core import InvalidArgumentError
from headrace.core.text import duration_s

_MAX_NUMBERS: Final = 16
_SHOWN: Final = 60
_MAX_NUMBER: Final = 1 << 20


def numbers(text: str, flag: str) -> tuple[int, ...]:
    """Whole numbers from 1 on, in the order they are written; none if `text` is empty.

    Raises:
        BadParameter: It is no such list.
    """
    if not text:
        return ()
    try:
        result = tuple(int(part) for part in text.split(","))
    except ValueError:
        msg = f"'{text}' is no list of whole numbers, such as 1,2,4"
        raise typer.BadParameter(msg, param_hint=flag) from None
    if not all(1 <= number <= _MAX_NUMBER for number in result) or len(result) > _MAX_NUMBERS:
        msg = f"'{text}': up to {_MAX_NUMBERS} numbers from 1 to {_MAX_NUMBER}"
        raise typer.BadParameter(msg, param_hint=flag)
    return tuple(dict.fromkeys(result))


def seconds(text: str, flag: str) -> float:
    """A duration: seconds, or a number with `us`, `ms`, `s`, `m`, `h`, `d` or `w` behind it.

    Raises:
        BadParameter: It is none, or not above 0.
    """
    result = duration_s(text)
    if result is None:
        msg = f"'{text}' is no duration, such as 50ms, 60s, 5m, 12h or 30d"
        raise typer.BadParameter(msg, param_hint=flag)
    return result


def parse_share(text: str, flag: str) -> float:
    """A ratio out of `1%` or `0.01`, which `flag` gave.

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
        raise typer.BadParameter(msg, param_hint=flag)
    return ratio


def span_s(text: str, flag: str) -> float | None:
    """How many seconds `30d` is, with a unit; None for `never`.

    Raises:
        BadParameter: It is something else.
    """
    if text == "never":
        return None
    result = None if text[-1:].isdigit() else duration_s(text)
    if result is None:
        msg = f"'{text}' is no span of time; write it as 90s, 15m, 12h, 30d or 8w, or never"
        raise typer.BadParameter(msg, param_hint=flag)
    return result


def moment(text: str, *, now: float) -> float:
    """The Unix time of `text`; one without a zone is UTC.

    Raises:
        InvalidArgumentError: It is no time, or not yet over.
    """
    ago_s = duration_s(text.strip()[1:]) if text.strip().startswith("-") else None
    if ago_s is not None:
        return now - ago_s
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        message = (
            f"{text[:_SHOWN]!r} is no time: write it as 2026-11-27T06:00Z, or as -2h "
            "(s, m, h, d or w ago)"
        )
        raise InvalidArgumentError(message) from None
    at = (found if found.tzinfo is not None else found.replace(tzinfo=UTC)).timestamp()
    if at > now:
        raise InvalidArgumentError(f"{text[:_SHOWN]!r} is yet to come")
    return at
