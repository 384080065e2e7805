"""Checkpoint of the audit log's end, in a file of the home and in the log, to detect cuts.

An attacker who can write to the database, the home and the log can rewrite all of them. Only a
checkpoint elsewhere detects that (`headrace trail verify` prints one).
"""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from headrace.control.model.audit_log import Broken, Head, missed
from headrace.control.state.store import Store
from headrace.core import HeadraceError
from headrace.core.state_file import StateFile

_LOG: Final = logging.getLogger("headrace.control")
EVERY_S: Final = 5.0


def read_checkpoint(path: Path) -> Head:
    """Return the last checkpoint; an empty one if there is none or it cannot be read."""
    return _file(path).load() or Head()


def _file(path: Path) -> StateFile[Head]:
    return StateFile(path, Head, "the checkpoint of the audit trail", durable=True)


@dataclass(slots=True, kw_only=True)
class Checkpoints:
    """Records the audit log's end while `run` is awaited, and reports a cut log."""

    store: Store
    path: Path
    every_s: float = EVERY_S
    _noted_head: Head | None = None

    async def run(self) -> None:
        """Record checkpoints until cancelled."""
        while True:
            try:
                await self.note()
            except (HeadraceError, OSError) as error:
                _LOG.warning("cannot note the trail's end", extra={"error": str(error)})
            await asyncio.sleep(self.every_s)

    async def note(self) -> None:
        """Record the audit log's end if the log still contains the previous checkpoint."""
        head = await self.store.trail_head()
        before = read_checkpoint(self.path)
        if head == before:
            return
        broken = await self.broken(before)
        if broken is not None:
            if self._noted_head != before:
                extra = {"entry": broken.id, "reason": broken.reason}
                _LOG.error("the audit trail was changed", extra=extra)
                self._noted_head = before
            return  # the old checkpoint is the evidence
        _file(self.path).save(head)
        _LOG.info("audit trail", extra={"entries": head.count, "head": head.hash})

    async def broken(self, checkpoint: Head) -> Broken | None:
        """Return how the audit log contradicts a checkpoint; None if it does not."""
        if checkpoint.count == 0:
            return None
        entries = await self.store.trail(after=checkpoint.count - 1, limit=1)
        there = entries[0].hash if entries and entries[0].id == checkpoint.count else None
        return missed(checkpoint, hash_there=there)
