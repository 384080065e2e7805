"""How long does the next run take? Drawn from what was measured, by batch size and runs at once."""

import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from headrace.optimize.profiling.messages import Cell

_DRAWS: Final = 1 << 14


class Service(Protocol):
    """Times of runs."""

    def run_s(self, rows: int, busy: int, idle_s: float) -> float:
        """Seconds of one more run of `rows`, with which `busy` are under way.

        `idle_s`: for how long nothing was before it began; 0 where something ran until then.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class _Level:
    """What was measured with so many runs at once. `spreads`: for each size, time over mean."""

    rows: tuple[int, ...]
    mean_s: tuple[float, ...]
    spreads: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pauses:
    """What runs take after a pause, over what they take without: by its length, ascending."""

    lengths_s: tuple[float, ...]
    ratios: tuple[float, ...]
    spreads: tuple[tuple[float, ...], ...]


class MeasuredService:
    """Draws from cells of one length and number of threads.

    Between two batch sizes that were measured, means lie on a line and the spread is that of the
    nearer one; beyond the largest, time grows with rows. Between two pauses that were measured it
    is the same; a longer pause than all of them is like the longest. Seeded: the same draws every
    time.
    """

    def __init__(self, cells: Iterable[Cell], *, seed: int) -> None:
        cells = list(cells)
        by_runs: dict[int, list[Cell]] = {}
        for cell in cells:
            by_runs.setdefault(cell.runs, []).append(cell)
        assert by_runs, "nothing was measured"
        self._levels = {runs: _level(found) for runs, found in sorted(by_runs.items())}
        self._known = tuple(self._levels)
        self._nearest: dict[int, _Level] = {}
        self._tables: dict[tuple[int, int], tuple[float, tuple[float, ...]]] = {}
        self._pauses = _pauses(cells)
        rng = random.Random(seed)  # noqa: S311  # a simulation
        self._draws = [rng.random() for _ in range(_DRAWS)]
        self._next = 0

    def mean_s(self, rows: int, busy: int) -> float:
        """The mean of `run_s`."""
        return self._table(rows, busy)[0]

    def run_s(self, rows: int, busy: int, idle_s: float = 0.0) -> float:
        """Seconds of one more run of `rows`, with which `busy` are under way."""
        mean, spread = self._table(rows, busy)
        if idle_s > 0.0 and busy == 1 and self._pauses is not None:
            ratio, spread = _after(self._pauses, idle_s)
            mean *= ratio
        self._next = place = (self._next + 1) % _DRAWS
        return mean * spread[int(self._draws[place] * len(spread))]

    def _table(self, rows: int, busy: int) -> tuple[float, tuple[float, ...]]:
        key = (rows, busy)
        found = self._tables.get(key)
        if found is None:
            level = self._level_for(busy)
            found = self._tables[key] = (_mean(level, rows), _spread(level, rows))
        return found

    def _level_for(self, busy: int) -> _Level:
        level = self._nearest.get(busy)
        if level is None:
            above = [runs for runs in self._known if runs >= busy]
            level = self._nearest[busy] = self._levels[min(above) if above else self._known[-1]]
        return level


def _level(cells: Sequence[Cell]) -> _Level:
    ordered = sorted(cells, key=lambda cell: cell.rows)
    return _Level(
        rows=tuple(cell.rows for cell in ordered),
        mean_s=tuple(cell.mean_s for cell in ordered),
        spreads=tuple(
            tuple(sample / cell.mean_s for cell_mean in (cell.mean_s,) for sample in cell.samples_s)
            for cell in ordered
        ),
    )


def _pauses(cells: Sequence[Cell]) -> _Pauses | None:
    """By the smallest batch, with which a replica that idled begins; None if nothing is known."""
    known = [cell for cell in cells if cell.paused and cell.runs == 1]
    if not known:
        return None
    cell = min(known, key=lambda one: one.rows)
    found = sorted(cell.paused, key=lambda one: one.pause_s)
    return _Pauses(
        lengths_s=tuple(one.pause_s for one in found),
        ratios=tuple(one.mean_s / cell.mean_s for one in found),
        spreads=tuple(tuple(sample / one.mean_s for sample in one.samples_s) for one in found),
    )


def _after(pauses: _Pauses, idle_s: float) -> tuple[float, tuple[float, ...]]:
    lengths = pauses.lengths_s
    above = bisect_left(lengths, idle_s)
    if above == len(lengths):
        return pauses.ratios[-1], pauses.spreads[-1]
    low_s, low = (lengths[above - 1], pauses.ratios[above - 1]) if above else (0.0, 1.0)
    share = (idle_s - low_s) / (lengths[above] - low_s)
    nearest = above if share >= 0.5 or not above else above - 1  # noqa: PLR2004  # the nearer one
    return low + share * (pauses.ratios[above] - low), pauses.spreads[nearest]


def _mean(level: _Level, rows: int) -> float:
    sizes, means = level.rows, level.mean_s
    if rows >= sizes[-1]:
        return means[-1] * rows / sizes[-1]
    if rows <= sizes[0]:
        return means[0]
    above = next(place for place, size in enumerate(sizes) if size >= rows)
    low, high = sizes[above - 1], sizes[above]
    share = (rows - low) / (high - low)
    return means[above - 1] + share * (means[above] - means[above - 1])


def _spread(level: _Level, rows: int) -> tuple[float, ...]:
    nearest = min(range(len(level.rows)), key=lambda place: abs(level.rows[place] - rows))
    return level.spreads[nearest]
