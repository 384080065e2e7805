"""Moments, terms and measures as pages show them."""

from datetime import UTC, datetime

from headrace.core.text import NOTHING, duration_text, number_text, percent_text


def moment(at: float | None) -> str:
    """A point in time: `2026-11-25 14:03:22 UTC`."""
    if at is None:
        return NOTHING
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
            return duration_text(value)
        case "ratio":
            return percent_text(value)
        case _:
            return f"{number_text(value)} {unit}".strip()
