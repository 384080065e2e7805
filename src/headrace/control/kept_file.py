"""How does a history survive its process? In a file, written now and then, the larger the rarer.

A loss of the file costs the past and nothing else.
"""

import asyncio
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from headrace.core import Clock
from headrace.core.files import write_atomic

_LOG: Final = logging.getLogger("headrace.control")
_FIRST: Final = 1 / 6
_PER_S: Final = 200_000
_AT_ONCE: Final = 20


class Packable(Protocol):
    """What is kept."""

    @property
    def size_bytes(self) -> int:
        """How much it is, about."""

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


@dataclass(slots=True, kw_only=True)
class KeptFile:
    """The file at `path`, None for none; `what` is in it, for the log.

    It is written every `every_s`, for the first time sooner, and more rarely while it is large.
    """

    path: Path | None
    what: str
    clock: Clock
    every_s: float = 60.0
    _due_at: float = field(default=0.0)

    def load(self, kept: Packable) -> bool:
        """Whether `kept`, which is new, took up what the file has. Blocking."""
        if self.path is None:
            return False
        try:
            kept.unpack(self.path.read_bytes())
        except FileNotFoundError:
            return False
        except (OSError, ValueError) as error:
            _LOG.warning("cannot read %s", self.what, extra={"error": str(error)})
            return False
        return True

    def begin(self) -> None:
        """Something will be kept from now on."""
        self._due_at = self.clock.monotonic() + self.every_s * _FIRST

    async def save_if_due(self, kept: Packable) -> None:
        """Write the file if that was long ago."""
        now = self.clock.monotonic()
        if self.path is None or now < self._due_at:
            return
        self._due_at = now + self.every_s + kept.size_bytes / _PER_S
        parts: list[bytes] = []
        for part in kept.parts():
            parts.append(part)
            if len(parts) % _AT_ONCE == 0:
                await asyncio.sleep(0)  # whoever asks for something does not wait for all of it
        await asyncio.to_thread(self._write, kept.join(parts))

    def save(self, kept: Packable) -> None:
        """Write the file now. Blocking."""
        self._write(kept.pack())

    def _write(self, data: bytes) -> None:
        """Keep this; a full disk is no reason to stop looking."""
        if self.path is None:
            return
        try:
            write_atomic(self.path, data, durable=False)
        except OSError as error:
            _LOG.warning("cannot keep %s", self.what, extra={"error": str(error)})
