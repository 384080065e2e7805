"""Moments, terms and measures as pages show them."""

from datetime import UTC, datetime

from headrace.core.text import NOTHING


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
