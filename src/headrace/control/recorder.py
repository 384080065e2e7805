"""Who fills the history? Looks every second at what the gateway counted, and keeps it in a file.

A control plane that starts again goes on with the file; what came meanwhile is in the gateway's
totals. A loss of the file costs the past and nothing else.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from headrace.control.counting import GatewayReading
from headrace.control.files import write_atomic
from headrace.core import Clock, HeadraceError
from headrace.monitor import History

_LOG: Final = logging.getLogger("headrace.control")
_EVERY_S: Final = 1.0
_BLIND_S: Final = 0.25
_AT_MOST_S: Final = 30.0
_SHARE: Final = 20.0  # looks take a twentieth of a core at most
_FIRST: Final = 1 / 6
_SAVED_PER_S: Final = 200_000
_AT_ONCE: Final = 20
_SKEW_S: Final = 60.0


class CountsSource(Protocol):
    """What counts requests by endpoint and version."""

    async def read_endpoints(self, endpoints: Collection[str]) -> GatewayReading:
        """Totals of all requests to these endpoints.

        Raises:
            HeadraceError: The gateway does not answer.
        """


@dataclass(slots=True, kw_only=True)
class Recorder:
    """Keeps `history` up to date for as long as `run` is awaited.

    `names`: the endpoints that there are. `path`: the history's file; None for none. It is written
    every `save_every_s`, for the first time sooner, and more rarely while it is large. `cpu_s`: the
    time that this thread has computed so far: where a look takes much of it, looks become rarer.
    """

    gateway: CountsSource
    names: Callable[[], Collection[str]]
    clock: Clock
    path: Path | None = None
    save_every_s: float = 60.0
    cpu_s: Callable[[], float] = time.thread_time
    history: History = field(default_factory=History)
    _is_blind: bool = True  # nobody is told of a gateway that has not come up yet
    _save_at: float = 0.0

    def load(self) -> None:
        """Take up what an earlier control plane kept, blocking; before `run`."""
        if self.path is None:
            return
        kept = History()
        try:
            kept.unpack(self.path.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            _LOG.warning("cannot read the history", extra={"error": str(error)})
            return
        self.history = kept
        self._check_clock(self.clock.now())

    async def run(self) -> None:
        """Look until cancelled, then keep what was seen."""
        self._save_at = self.clock.monotonic() + self.save_every_s * _FIRST
        try:
            while True:
                began, began_cpu_s = self.clock.monotonic(), self.cpu_s()
                await self.look()
                await self._save_if_due()
                every_s = _BLIND_S if self._is_blind else _EVERY_S
                every_s = max(every_s, (self.cpu_s() - began_cpu_s) * _SHARE)
                due = began + min(every_s, _AT_MOST_S)
                await asyncio.sleep(max(due - self.clock.monotonic(), 0.0))
        finally:
            self._write(self.history.pack())

    async def look(self) -> None:
        """Look once."""
        at = self.clock.now()
        try:
            reading = await self.gateway.read_endpoints(self.names())
        except HeadraceError as error:
            if not self._is_blind:
                _LOG.warning("cannot read the gateway's counts", extra={"error": str(error)})
            self._is_blind = True
            return
        self._is_blind = False
        self._check_clock(at)
        self.history.look(at)
        for number, ((endpoint, version), totals) in enumerate(reading.totals.items(), start=1):
            self.history.add(at, endpoint, version, totals, epoch=reading.epoch)
            if number % _AT_ONCE == 0:
                await asyncio.sleep(0)  # whoever asks for something does not wait for all of it

    def _check_clock(self, now: float) -> None:
        """Begin anew if the clock was set back: what is of the future would hide what comes."""
        if (self.history.looked_at or 0.0) > now + _SKEW_S:
            _LOG.warning("the clock was set back: the history begins anew")
            self.history.clear()

    async def _save_if_due(self) -> None:
        """Write the file now and then: the larger it is, the more rarely."""
        now = self.clock.monotonic()
        if self.path is None or now < self._save_at:
            return
        self._save_at = now + self.save_every_s + self.history.size_bytes / _SAVED_PER_S
        parts: list[bytes] = []
        for part in self.history.parts():
            parts.append(part)
            if len(parts) % _AT_ONCE == 0:
                await asyncio.sleep(0)
        await asyncio.to_thread(self._write, self.history.join(parts))

    def _write(self, data: bytes) -> None:
        """Keep this; a full disk is no reason to stop looking."""
        if self.path is None:
            return
        try:
            write_atomic(self.path, data, durable=False)
        except OSError as error:
            _LOG.warning("cannot keep the history", extra={"error": str(error)})
