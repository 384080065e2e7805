"""Who fills the history? Looks every second at what the gateway counted, and keeps it in a file.

A control plane that starts again goes on with the file; what came meanwhile is in the gateway's
totals.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from headrace.control.counting import GatewayReading
from headrace.control.kept_file import KeptFile
from headrace.control.looking import keep_looking
from headrace.core import Clock, HeadraceError
from headrace.monitor import History

_LOG: Final = logging.getLogger("headrace.control")
_EVERY_S: Final = 1.0
_BLIND_S: Final = 0.25
_SHARE: Final = 20.0  # looks take a twentieth of a core at most
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
    every `save_every_s`, as `KeptFile` says. `cpu_s`: the time that this thread has computed so
    far: where a look takes much of it, looks become rarer.
    """

    gateway: CountsSource
    names: Callable[[], Collection[str]]
    clock: Clock
    path: Path | None = None
    save_every_s: float = 60.0
    cpu_s: Callable[[], float] = time.thread_time
    history: History = field(default_factory=History)
    _is_blind: bool = True  # nobody is told of a gateway that has not come up yet
    _file: KeptFile = field(init=False)

    def __post_init__(self) -> None:
        """Know where to keep it."""
        self._file = KeptFile(
            path=self.path, what="the history", clock=self.clock, every_s=self.save_every_s
        )

    def load(self) -> None:
        """Take up what an earlier control plane kept, blocking; before `run`."""
        kept = History()
        if self._file.load(kept):
            self.history = kept
        self._check_clock(self.clock.now())

    async def run(self) -> None:
        """Look until cancelled, then keep what was seen."""
        await keep_looking(
            self.look,
            history=self.history,
            file=self._file,
            cpu_s=self.cpu_s,
            share=_SHARE,
            every_s=lambda: _BLIND_S if self._is_blind else _EVERY_S,
        )

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
