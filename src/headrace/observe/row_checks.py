"""Counts of the live checks of row independence, and the difference that one found."""

from dataclasses import dataclass, field
from enum import StrEnum


class RowOutcome(StrEnum):
    """Result of one check."""

    SAME = "same"
    DIFFERENT = "different"
    """The row alone has another answer than in its batch, and both repeat."""
    UNREPEATABLE = "unrepeatable"
    """The row alone, or the batch, has another answer when it runs again: nothing can be said."""
    FAILED = "failed"
    """The row alone failed although it had an answer in its batch."""
    SKIPPED = "skipped"
    """Requests left no room for the check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowDifference:
    """A row whose answer in a batch was not its answer alone."""

    output: str
    ratio: float | None
    """Largest difference over the output's largest value; None if the shapes differ, or one of the
    two is not finite."""
    requests: int
    """Requests that shared the batch."""
    rows: int
    padded: bool
    """Whether the row was padded to a longer one's length."""
    at: float = 0.0
    """Seconds since 1970."""


@dataclass(slots=True)
class RowCheckCounts:
    """Outcomes of a model's checks since its process started, and the newest difference."""

    outcomes: dict[RowOutcome, int] = field(default_factory=lambda: dict.fromkeys(RowOutcome, 0))
    difference: RowDifference | None = None
