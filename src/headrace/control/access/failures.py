"""Which failed attempts to get in are worth an entry in the trail? Few: they cost a caller nothing.

Whoever tries from many addresses would otherwise fill the trail.
"""

from dataclasses import dataclass
from typing import Final

MAX_NOTED: Final = 60
WINDOW_S: Final = 3600.0


@dataclass(slots=True, kw_only=True)
class Noted:
    """Bounds how many are noted in a window of time (monotonic, in seconds)."""

    most: int = MAX_NOTED
    window_s: float = WINDOW_S
    _since: float = 0.0
    _count: int = 0

    def take(self, now: float) -> bool:
        """Whether one more is noted."""
        if not self._count or now - self._since >= self.window_s:
            self._since, self._count = now, 0
        self._count += 1
        return self._count <= self.most
