"""How bad is a finding?"""

from enum import StrEnum


class Severity(StrEnum):
    """From what is worth knowing to what has to be mended today."""

    LOW = "low"
    """Worth knowing; a deliberate choice for many."""
    MEDIUM = "medium"
    """Mend it before other people depend on the system."""
    HIGH = "high"
    """One more mistake, or one who tries, and it does harm."""
    CRITICAL = "critical"
    """It does harm as it is."""

    @property
    def rank(self) -> int:
        """A larger number is worse."""
        return tuple(Severity).index(self)
