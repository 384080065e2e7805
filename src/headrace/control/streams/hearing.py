"""What do workers of streams say, and since when does one say nothing?"""

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from headrace.control.streams.asking import status_of
from headrace.control.streams.driver import StreamDriver
from headrace.control.streams.plan import Phase
from headrace.control.streams.status import rates
from headrace.control.streams.workers import Worker, note_answer, note_status
from headrace.core import Clock
from headrace.streaming.settings import StreamStatus

_LONGEST_GAP_S: Final = 10.0
"""So long apart two hearings may be; after more, silence is counted from anew."""


@dataclass(slots=True)
class Hearing:
    """Asks workers how they are, and notes it with them."""

    driver: StreamDriver
    clock: Clock
    _heard_at: float = -math.inf

    async def hear(self, workers: Sequence[Worker]) -> list[tuple[Worker, StreamStatus]]:
        """Those that answered, with what they said."""
        before = {w.record.name: w.status for w in workers if w.status is not None}
        addresses = [self.driver.address_of(worker.record) for worker in workers]
        answers = await asyncio.gather(*map(status_of, addresses))
        self._note_silence(workers, answers)
        heard = [
            (worker, status)
            for worker, status in zip(workers, answers, strict=True)
            if status is not None and worker.phase is not Phase.ENDED
        ]
        found = rates(before, {worker.record.name: status for worker, status in heard})
        for worker, status in heard:
            rate = found[worker.record.name]
            if note_status(worker, status, rate=rate, now=self.clock.monotonic()):
                worker.record = msgspec.structs.replace(worker.record, was_ready=True)
                self.driver.note(worker.record)
        return heard

    def _note_silence(
        self, workers: Sequence[Worker], answers: Sequence[StreamStatus | None]
    ) -> None:
        before, now = self._heard_at, self.clock.monotonic()
        self._heard_at, begins = now, now - before > _LONGEST_GAP_S
        for worker, status in zip(workers, answers, strict=True):
            note_answer(worker, answered=status is not None, now=now, begins=begins)
