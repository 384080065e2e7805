"""Why is the count what it is? One word for programs, one line for people."""

from enum import StrEnum

import msgspec


class Reason(StrEnum):
    """What decided."""

    STEADY = "Steady"
    LOAD = "Load"
    """The stable window shows that more are needed."""
    BURST = "Burst"
    """The panic window does."""
    PRESSURE = "Pressure"
    """Queue wait or p99 have been above their bound for a panic window."""
    SCHEDULE = "Schedule"
    MINIMUM = "Minimum"
    MAXIMUM = "Maximum"
    """More are needed than `max_replicas` allows."""
    LESS_LOAD = "LessLoad"
    """Fewer have been enough for the scale-down delay."""
    SETTLING = "Settling"
    """Fewer would do, and it is too early to be sure."""
    MISSING = "MissingMetrics"
    STARTING = "Starting"
    """More are wanted, and copies are on their way already."""
    IDLE = "Idle"
    """Nobody asked for `idle_s`."""
    WOKEN = "Woken"
    """The first request after that."""
    BUDGET = "Budget"
    """The machine has no room for more."""


class Wish(msgspec.Struct, frozen=True, kw_only=True):
    """A count, and what asks for it."""

    count: int
    reason: Reason
    message: str = ""
