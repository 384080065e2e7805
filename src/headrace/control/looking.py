"""Who looks again and again, and keeps what was seen? The more a look computes, the more rarely."""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Generic, Protocol, TypeVar

from headrace.control.faults import LOOP, Faults
from headrace.control.kept_file import KeptFile, Packable
from headrace.core import Clock

_LOG: Final = logging.getLogger("headrace.control")
_AT_MOST_S: Final = 30.0
_SKEW_S: Final = 60.0


class _History(Packable, Protocol):
    """What is looked for, by time."""

    @property
    def looked_at(self) -> float | None:
        """When something was added last; None before that."""

    def clear(self) -> None:
        """Begin anew."""


_HistoryT = TypeVar("_HistoryT", bound=_History)


@dataclass(slots=True, kw_only=True)
class Looking(ABC, Generic[_HistoryT]):
    """Keeps `history` up to date for as long as `run` is awaited.

    `path`: the history's file; None for none. It is written every `save_every_s`, as `KeptFile`
    says. `cpu_s`: the time that this thread has computed so far: looks take one part in `SHARE` of
    a core at most, and become rarer where one takes much of it.
    """

    WHAT: ClassVar[str]
    SHARE: ClassVar[float]

    history: _HistoryT
    clock: Clock
    path: Path | None = None
    save_every_s: float = 60.0
    cpu_s: Callable[[], float] = time.thread_time
    faults: Faults = field(default_factory=Faults)
    _file: KeptFile = field(init=False)

    def __post_init__(self) -> None:
        """Know where to keep it."""
        self._file = KeptFile(
            path=self.path, what=self.WHAT, clock=self.clock, every_s=self.save_every_s
        )

    @abstractmethod
    async def look(self) -> None:
        """Look once."""

    @property
    def every_s(self) -> float:
        """How long from one look to the next, if that leaves the core alone."""
        return 1.0

    def load(self) -> None:
        """Take up what an earlier control plane kept, blocking; before `run`."""
        kept = type(self.history)()
        if self._file.load(kept):
            self.history = kept
        self.check_clock(self.clock.now())

    def check_clock(self, now: float) -> None:
        """Begin anew if the clock was set back: what is of the future would hide what comes."""
        if (self.history.looked_at or 0.0) > now + _SKEW_S:
            _LOG.warning("the clock was set back: %s begins anew", self.WHAT)
            self.history.clear()

    async def run(self) -> None:
        """Look until cancelled, then keep what was seen."""
        self._file.begin()
        try:
            while True:
                began, began_cpu_s = self.clock.monotonic(), self.cpu_s()
                with self.faults.contain(LOOP, self.WHAT):
                    await self.look()
                    await self._file.save_if_due(self.history)
                pause_s = max(self.every_s, (self.cpu_s() - began_cpu_s) * self.SHARE)
                due = began + min(pause_s, _AT_MOST_S)
                await asyncio.sleep(max(due - self.clock.monotonic(), 0.0))
        finally:
            self._file.save(self.history)
