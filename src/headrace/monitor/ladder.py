"""How does what is kept grow coarser with age? It moves from short steps to longer ones."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic

from headrace.monitor.levels import C, Chunk, Form, Level, R

KEPT_S: Final = 24 * 3600
STEPS: Final = ((1, 600), (10, 2 * 3600), (60, KEPT_S))
"""Length of a step, and how long steps of this length are kept; in seconds."""


@dataclass(slots=True, kw_only=True)
class Ladder(Generic[C, R]):
    """Steps of every length; nothing is made before something is counted."""

    form: Form[C, R]
    _levels: tuple[Level[C, R], ...] = field(default=())

    def add(self, at: float, cell: C) -> None:
        """Count `cell` at the step of `at`, or at the newest one if that is later."""
        self._levels = self._levels or self._new_levels()
        self._levels[0].add(at, cell)

    def cells(self, begin: float, end: float) -> Iterator[tuple[int, float, C]]:
        """Length, begin and counts of all steps that overlap [begin, end)."""
        for level in self._levels:
            for at, cell in level.cells(begin, end):
                yield level.step_s, at, cell

    def sums(self, begin: float, end: float) -> Iterator[tuple[int, C]]:
        """Length of the steps, and counts that add up to those whose middle is in [begin, end)."""
        for level in self._levels:
            for cell in level.sums(begin, end):
                yield level.step_s, cell

    def age(self, now: float) -> None:
        """Join what is older than its level keeps into longer steps; forget the oldest."""
        for number, (level, (_, kept_s)) in enumerate(zip(self._levels, STEPS, strict=False)):
            is_last = number == len(self._levels) - 1
            for at, cell in level.take_before(now - kept_s):
                if not is_last:
                    self._levels[number + 1].add(at, self.form.joined(cell))

    def forget_before(self, end: float) -> None:
        """Let go of whole chunks that end before `end`."""
        for level in self._levels:
            for _ in level.take_before(end):
                pass

    @property
    def oldest(self) -> float | None:
        """Begin of the oldest chunk; None if nothing is kept."""
        found = [at for level in self._levels if (at := level.oldest) is not None]
        return min(found, default=None)

    @property
    def size_bytes(self) -> int:
        """How much is kept, about."""
        return sum(level.size_bytes for level in self._levels)

    def packed(self) -> list[list[Chunk]]:
        """Everything, to be written down; empty if nothing was ever counted."""
        return [level.packed() for level in self._levels]

    def load(self, stored: Sequence[Sequence[Chunk]]) -> None:
        """Take up what `packed` wrote."""
        if stored:
            self._levels = self._new_levels()
            for level, chunks in zip(self._levels, stored, strict=True):
                level.load(chunks)

    def _new_levels(self) -> tuple[Level[C, R], ...]:
        return tuple(Level(step_s=step_s, form=self.form) for step_s, _ in STEPS)
