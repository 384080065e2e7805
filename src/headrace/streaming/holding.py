"""When is a broker told to hand out nothing, and when again something? The caller brings the time.

A full queue alone is no reason: it is full for a moment all the time, and to be paused may cost a
broker what it has fetched already.
"""

from collections.abc import Collection
from typing import Final

from headrace.streaming.records import Place

HOLD_AFTER_S: Final = 1.0
"""So long nothing has to have been taken. Kafka's client throws away what it has fetched when it is
paused: with less, a model of some tenths of a second has it fetch the same again all the time.
"""


class Holding:
    """Which places are held."""

    def __init__(self) -> None:
        self._held: set[Place] = set()
        self._fresh: set[Place] = set()
        """Places that came; brokers differ on whether one that was paused comes back so."""
        self._full_since: float | None = None

    def gained(self, places: Collection[Place]) -> None:
        """These came."""
        self._fresh.update(places)

    def gone(self, places: Collection[Place]) -> None:
        """These went."""
        self._held.difference_update(places)
        self._fresh.difference_update(places)

    def due_at(self) -> float | None:
        """When there may be something to pause; None if nothing will be for want of room."""
        return None if self._full_since is None else self._full_since + HOLD_AFTER_S

    def change(
        self, places: Collection[Place], *, has_room: bool, is_paused: bool, now: float
    ) -> tuple[list[Place], list[Place]]:
        """What is to be paused, and what to be resumed, which the caller does.

        Args:
            places: All that this member has.
            has_room: Whether anything would be taken.
            is_paused: Whether that is because somebody wants it so.
        """
        if has_room:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = now
        due_at = self.due_at()
        is_held = due_at is not None and (is_paused or now >= due_at)
        wanted = set(places) if is_held else set()
        if wanted == self._held and not self._fresh:
            return [], []
        known = self._held - self._fresh
        pause, resume = wanted - known, (self._held | self._fresh) - wanted
        self._held = wanted
        self._fresh.clear()
        return sorted(pause), sorted(resume)
