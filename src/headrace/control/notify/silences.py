"""Silences: alerts of which no receiver is told for a while."""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec

from headrace.control.access.trail import Change
from headrace.control.alert_records import Silence
from headrace.control.state.store import Store
from headrace.core import Clock, FailedPreconditionError, InvalidArgumentError, NotFoundError
from headrace.monitor.alert_state import Alert

LONGEST_S: Final = 90 * 86_400.0
"""A silence needs an end that its author will remember."""
_MOST: Final = 1000
_ID_BYTES: Final = 4


def silence_missing(id_: str) -> NotFoundError:
    """The error for a silence that does not exist, and for one that the caller may not see."""
    message = f"there is no silence '{id_[:100]}'; `headrace alerts silences` lists them"
    return NotFoundError(message)


@dataclass(slots=True, kw_only=True)
class Silences:
    """Reads and changes silences; `load` has to be called first."""

    store: Store
    clock: Clock
    _silences: dict[str, Silence] = field(default_factory=dict)

    def load(self, silences: Iterable[Silence]) -> None:
        """Go on with what was stored."""
        self._silences = {silence.id: silence for silence in silences}

    def active(self) -> list[Silence]:
        """Silences that have not ended, by their end."""
        now = self.clock.now()
        left = [silence for silence in self._silences.values() if now < silence.ends]
        return sorted(left, key=lambda silence: (silence.ends, silence.id))

    def until(self, alert: Alert) -> float | None:
        """When the last silence ends that matches the alert now; None without any."""
        now = self.clock.now()
        matching = [s for s in self._silences.values() if s.silences(alert, now=now)]
        return max((silence.ends for silence in matching), default=None)

    def find(self, id_: str) -> Silence:
        """The silence of this id that has not ended.

        Raises:
            NotFoundError: There is none.
        """
        for silence in self.active():
            if silence.id == id_:
                return silence
        raise silence_missing(id_)

    async def add(self, silence: Silence, *, actor: str) -> Silence:
        """Store a silence under a new id, beginning now; as stored.

        Raises:
            InvalidArgumentError: It ends in the past, or too late.
            FailedPreconditionError: There are too many.
        """
        now = self.clock.now()
        if not now < silence.ends <= now + LONGEST_S:
            days = LONGEST_S / 86_400.0
            message = f"a silence ends after now and within {days:g} days; it may be made again"
            raise InvalidArgumentError(message)
        if len(self.active()) >= _MOST:
            message = f"there are {_MOST} silences; remove some: `headrace alerts unsilence`"
            raise FailedPreconditionError(message)
        stored = msgspec.structs.replace(
            silence, id=secrets.token_hex(_ID_BYTES), begins=now, created_by=actor
        )
        change = Change(
            at=now,
            actor=actor,
            action="silence.create",
            object=stored.id,
            after=msgspec.to_builtins(stored),
        )
        await self.store.alerts.add_silence(stored, changes=[change])
        self._silences = {silence.id: silence for silence in (*self.active(), stored)}
        return stored

    async def remove(self, silence: Silence, *, actor: str) -> None:
        """End a silence now."""
        change = Change(
            at=self.clock.now(),
            actor=actor,
            action="silence.remove",
            object=silence.id,
            before=msgspec.to_builtins(silence),
        )
        await self.store.alerts.remove_silence(silence.id, changes=[change])
        self._silences.pop(silence.id, None)
