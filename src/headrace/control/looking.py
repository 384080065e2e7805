"""Pollers that keep a history in memory and in a file, and poll less often where a poll costs more.

A loss of the file costs the past and nothing else.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Final, Generic, Protocol, TypeVar

from headrace.control.faults import LOOP, Faults
from headrace.core import Clock
from headrace.core.files import write_atomic

_LOG: Final = logging.getLogger("headrace.control")
_AT_MOST_S: Final = 30.0
_SKEW_S: Final = 60.0
_FIRST_SAVE: Final = 1 / 6
"""Of `save_every_s`, after which the file is written for the first time."""
_BYTES_PER_S: Final = 200_000
"""A history of so many bytes is written a second later."""
_PARTS_AT_ONCE: Final = 20


class _History(Protocol):
    """Readings by time, which can be written down."""

    @property
    def size_bytes(self) -> int:
        """How much it is, about."""

    @property
    def looked_at(self) -> float | None:
        """When something was added last; None before that."""

    def clear(self) -> None:
        """Forget everything."""

    def pack(self) -> bytes:
        """Everything, to be written down."""

    def parts(self) -> Iterator[bytes]:
        """What `join` makes a whole of; something may be added between one part and the next."""

    def join(self, parts: Iterable[bytes]) -> bytes:
        """What `unpack` takes."""

    def unpack(self, data: bytes) -> None:
        """Take up what `pack` gave.

        Raises:
            ValueError: It is something else.
        """


_HistoryT = TypeVar("_HistoryT", bound=_History)


@dataclass(slots=True, kw_only=True)
class Looking(ABC, Generic[_HistoryT]):
    """Keeps `history` up to date for as long as `run` is awaited.

    `path`: the history's file; None for none. It is written every `save_every_s`, for the first
    time sooner, and more rarely while it is large. `cpu_s`: the time that this thread has computed
    so far: looks take one part in `SHARE` of a core at most, and become rarer where one takes much
    of it.
    """

    WHAT: ClassVar[str]
    SHARE: ClassVar[float]

    history: _HistoryT
    clock: Clock
    path: Path | None = None
    save_every_s: float = 60.0
    cpu_s: Callable[[], float] = time.thread_time
    faults: Faults = field(default_factory=Faults)
    _save_at: float = 0.0

    @abstractmethod
    async def look(self) -> None:
        """Look once."""

    @property
    def every_s(self) -> float:
        """How long from one look to the next, if that leaves the core alone."""
        return 1.0

    def load(self) -> None:
        """Take up what an earlier control plane kept, blocking; before `run`."""
        history = type(self.history)()
        try:
            if self.path is not None:
                history.unpack(self.path.read_bytes())
                self.history = history
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            _LOG.warning("cannot read %s", self.WHAT, extra={"error": str(error)})
        self.check_clock(self.clock.now())

    def check_clock(self, now: float) -> None:
        """Begin anew if the clock was set back: what is of the future would hide what comes."""
        if (self.history.looked_at or 0.0) > now + _SKEW_S:
            _LOG.warning("the clock was set back: %s begins anew", self.WHAT)
            self.history.clear()

    async def run(self) -> None:
        """Look until cancelled, then keep what was seen."""
        self._save_at = self.clock.monotonic() + self.save_every_s * _FIRST_SAVE
        try:
            while True:
                began, began_cpu_s = self.clock.monotonic(), self.cpu_s()
                with self.faults.contain(LOOP, self.WHAT):
                    await self.look()
                    await self.save_if_due()
                pause_s = max(self.every_s, (self.cpu_s() - began_cpu_s) * self.SHARE)
                due = began + min(pause_s, _AT_MOST_S)
                await asyncio.sleep(max(due - self.clock.monotonic(), 0.0))
        finally:
            self._write(self.history.pack())

    async def save_if_due(self) -> None:
        """Write the file if it was not written for long."""
        now = self.clock.monotonic()
        if self.path is None or now < self._save_at:
            return
        history = self.history
        self._save_at = now + self.save_every_s + history.size_bytes / _BYTES_PER_S
        parts: list[bytes] = []
        for part in history.parts():
            parts.append(part)
            if len(parts) % _PARTS_AT_ONCE == 0:
                await asyncio.sleep(0)  # other tasks do not wait for all of it
        await asyncio.to_thread(self._write, history.join(parts))

    def _write(self, data: bytes) -> None:
        """Replace the file; a disk that is full does not stop the poller."""
        if self.path is None:
            return
        try:
            write_atomic(self.path, data, durable=False)
        except OSError as error:
            _LOG.warning("cannot write %s", self.WHAT, extra={"error": str(error)})
