"""Measurement grid of settings, and its interleaved rounds.

A machine's speed drifts, so two settings measured one after the other see different phases. Here
each setting gets a short window in every round, in random order, so that all of them see the same
phases, and the drift between rounds is known. A run that begins after a pause has cold caches and a
slower clock; below full load this is frequent, so such runs are timed as well.

The CPU use of other processes is reported with the figures, not subtracted.
"""

import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import Final

import msgspec
import numpy as np

from headrace.optimize.profiling.messages import GridCell, Paused, ProfileRequest, Round, Setting
from headrace.optimize.timing import ProcStat

Clock = Callable[[], float]
KEPT: Final = 200
"""Most stored samples of a cell."""
_MIN_RUNS: Final = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class RunWindow:
    """Times of consecutive runs in one window."""

    samples_s: list[float]
    elapsed_s: float
    foreign_ratio: float


def time_runs(
    run: Callable[[], object],
    setting: Setting,
    *,
    seconds: float,
    clock: Clock = time.perf_counter,
) -> GridCell:
    """Measure one window of about `seconds`.

    Raises:
        Exception: The error of `run`, in any thread.
    """
    minimum = max(1, -(-_MIN_RUNS // setting.runs))
    window = time_window(run, setting, seconds=seconds, minimum=minimum, clock=clock)
    return cell_of(
        setting,
        window.samples_s,
        elapsed_s=window.elapsed_s,
        foreign_ratio=window.foreign_ratio,
    )


def time_window(
    run: Callable[[], object],
    setting: Setting,
    *,
    seconds: float = 0.0,
    minimum: int,
    clock: Clock = time.perf_counter,
) -> RunWindow:
    """Call `run` repeatedly from as many threads as the setting has concurrent runs.

    Args:
        run: One run; may be called from several threads at once.
        seconds: Duration.
        least: Least number of calls per thread.

    Raises:
        Exception: The error of `run`, in any thread.
    """

    def call(_: int) -> list[float]:
        samples: list[float] = []
        before = clock()
        while before < until or len(samples) < minimum:
            run()
            after = clock()
            samples.append(after - before)
            before = after
        return samples

    others = _others()
    foreign_s, started = others.foreign_s(), clock()
    until = started + seconds
    if setting.runs == 1:
        groups = [call(0)]
    else:
        with ThreadPoolExecutor(setting.runs) as pool:
            groups = list(pool.map(call, range(setting.runs)))
    elapsed, after_s = clock() - started, others.foreign_s()
    foreign = 0.0 if foreign_s is None or after_s is None else after_s - foreign_s
    return RunWindow(
        samples_s=[sample for samples in groups for sample in samples],
        elapsed_s=elapsed,
        foreign_ratio=min(max(foreign / (elapsed * others.cpus), 0.0), 1.0) if elapsed else 0.0,
    )


@cache
def _others() -> ProcStat:
    """Return the CPU watch that all windows share."""
    return ProcStat()


def cell_of(
    setting: Setting, samples_s: list[float], *, elapsed_s: float, foreign_ratio: float = 0.0
) -> GridCell:
    """Summarize samples that were taken in `elapsed_s`."""
    times = np.sort(np.asarray(samples_s, float))
    return GridCell(
        threads=setting.threads,
        runs=setting.runs,
        rows=setting.rows,
        length=setting.length,
        samples_s=compress_samples(times),
        count=len(times),
        mean_s=float(times.mean()),
        p50_s=float(np.quantile(times, 0.5)),
        p99_s=float(np.quantile(times, 0.99)),
        rows_per_s=len(times) * setting.rows / elapsed_s,
        foreign_ratio=round(foreign_ratio, 4),
    )


def compress_samples(
    ascending: "np.ndarray[tuple[int], np.dtype[np.float64]]", maximum: int = KEPT
) -> tuple[float, ...]:
    """Reduce ascending samples to `most` values of the same mean, by averaging neighbours."""
    parts = np.array_split(ascending, maximum) if len(ascending) > maximum else ascending
    return tuple(round(float(np.mean(part)), 9) for part in parts)


LENGTHS: Final = (16, 32, 64, 128, 256)
"""Default sizes of variable dimensions to measure."""
_MAIN_LENGTH: Final = 32
_WORSE: Final = 1.3
"""Time per row over the best, above which no larger batch is tried."""
_FLAT: Final = 0.95
"""A batch is better than a smaller one if it takes less than this share of its time per row."""
_MIN_SIZES: Final = 4
"""Least batch sizes to try: 1, 2, 4 and 8 rows."""
_OF_BUDGET: Final = 0.04
"""Largest share of the budget for a single run."""
_FEW_ROWS: Final = 4
_MIN_WINDOW_S: Final = 0.05
MAX_WINDOW_S: Final = 4.0


def doubling(maximum: int) -> tuple[int, ...]:
    """Return 1, 2, 4, ... and `most`."""
    return tuple(sorted({*(1 << power for power in range(maximum.bit_length())), maximum}))


def main_length(lengths: Sequence[int], requested: Sequence[int]) -> int:
    """Return the length at which the whole grid is measured.

    Args:
        lengths: Lengths with which the model runs; not empty.
        requested: Requested lengths; the first one wins.
    """
    if requested:
        return requested[0]
    return min(lengths, key=lambda length: (abs(length - _MAIN_LENGTH), length))


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPlan:
    """Settings to measure."""

    rows: tuple[int, ...]
    """Batch sizes, ascending."""
    runs: tuple[int, ...]
    """Concurrent runs, with one thread each."""
    threads: tuple[int, ...]
    """Threads per run."""
    lengths: tuple[int, ...]
    length: int


def plan_of(
    request: ProfileRequest, *, batched: bool, concurrent: bool, lengths: Sequence[int], length: int
) -> GridPlan:
    """Return the plan for a model that takes these `lengths`."""
    cores = request.cores
    rows = tuple(sorted(set(request.rows))) if request.rows else doubling(request.max_rows)
    runs = tuple(sorted(set(request.runs))) if request.runs else doubling(cores)
    threads = tuple(sorted(set(request.threads))) if request.threads else doubling(cores)
    return GridPlan(
        rows=rows if batched else (1,),
        runs=runs if concurrent else (1,),
        threads=threads,
        lengths=tuple(other for other in lengths if other != length),
        length=length,
    )


def is_worth_more(cells: Sequence[GridCell], *, budget_s: float) -> bool:
    """Return whether a batch twice as large may be better than these cells (ascending rows)."""
    if not cells:
        return True
    if cells[-1].p50_s * 2 > budget_s * _OF_BUDGET:
        return False
    # The fastest runs were undisturbed, so that they distinguish sizes even on a busy machine.
    row_s = [cell.samples_s[len(cell.samples_s) // 10] / cell.rows for cell in cells]
    if len(cells) < _MIN_SIZES:
        return True
    if row_s[-1] > min(row_s) * _WORSE:
        return False
    return min(row_s[-2:]) < min(row_s[:-2]) * _FLAT


def best_rows(cells: Iterable[GridCell]) -> int:
    """Return the smallest batch with nearly the best rows per second; 1 without cells."""
    rates = {cell.rows: cell.rows_per_s for cell in cells}
    if not rates:
        return 1
    best = max(rates.values())
    return min(rows for rows, rate in rates.items() if rate >= best * _FLAT)


def remaining(plan: GridPlan, rows: Sequence[int], best: int, *, cores: int) -> list[Setting]:
    """Return the remaining settings once the useful batch sizes are known, most important first.

    The order is concurrent runs, then threads, then other lengths, of which the long ones take the
    longest.

    Args:
        rows: The batch sizes that were measured one at a time, ascending.
        best: The best of these.
    """
    maximum = max(plan.runs)
    settings = [
        Setting(threads=1, runs=runs, rows=r, length=plan.length)
        for runs in reversed(plan.runs)
        for r in rows
        if runs > 1
    ]
    few = tuple(dict.fromkeys((1, *(r for r in rows if r == _FEW_ROWS), best)))
    settings += [
        Setting(threads=threads, runs=runs, rows=r, length=plan.length)
        for threads in plan.threads
        for runs in dict.fromkeys((1, max(1, min(cores // threads, maximum))))
        for r in few
        if threads > 1
    ]
    settings += [
        Setting(threads=1, runs=runs, rows=r, length=length)
        for length in sorted(plan.lengths)
        for runs in dict.fromkeys((1, maximum))
        for r in dict.fromkeys((1, best))
    ]
    return settings


def in_rounds(cells: Iterable[GridCell], plan: GridPlan, best: int) -> list[GridCell]:
    """Return the cells that predictions are based on, which are measured in rounds.

    They have one run at a time, and the maximum of concurrent runs, with the batches that a replica
    forms: up to the best, and one step further, which it tries occasionally.
    """
    maximum = max(plan.runs)
    largest = best * 2 if best > 1 else _FEW_ROWS
    here = [
        cell
        for cell in cells
        if cell.threads == 1 and cell.length == plan.length and cell.runs in {1, maximum}
    ]
    minimum = min((cell.rows for cell in here), default=1)
    return [cell for cell in here if cell.rows <= max(largest, minimum)]


def window_s(*, left_s: float, settings_left: int, most_s: float = MAX_WINDOW_S) -> float:
    """Return the window length that lets all remaining settings fit."""
    return min(max(left_s / max(settings_left, 1), _MIN_WINDOW_S), most_s)


Run = Callable[[], object]
FEW: Final = 4
"""Rounds below which earlier measurements count as well."""
_MOST: Final = 40
"""Approximate number of rounds; more would make each too short."""
_WINDOW_S: Final = 0.02
_MIN_RUNS_OF_PHASE: Final = 2
_KEPT: Final = 1000
_PAUSES: Final = (0.25, 1.0, 4.0)
"""Pauses over the run time; at most loads a replica idles for about one run time."""
_JITTER: Final = 1.5
_PER_ROUND: Final = 2
_SHORTEST_S: Final = 0.0003
_LONGEST_S: Final = 0.025


@dataclass(slots=True, kw_only=True)
class _Series:
    """Measurements of one setting over all rounds."""

    before: GridCell
    count: int
    """Runs per thread in a window."""
    samples_s: list[float] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    timed: int = 0
    elapsed_s: float = 0.0
    foreign_s: float = 0.0

    def add(self, window: RunWindow, at_s: float) -> None:
        times = np.sort(np.asarray(window.samples_s, float))
        self.samples_s += compress_samples(times, _KEPT)
        self.rounds.append(Round(at_s=round(at_s, 3), mean_s=round(float(times.mean()), 9)))
        self.timed += len(times)
        self.elapsed_s += window.elapsed_s
        self.foreign_s += window.foreign_ratio * window.elapsed_s


@dataclass(slots=True, kw_only=True)
class _PauseGroup:
    """Runs after pauses of about one length."""

    about_s: float
    pauses_s: list[float] = field(default_factory=list)
    samples_s: list[float] = field(default_factory=list)


class Rounds:
    """Interleaved measurement rounds over settings that were measured once before.

    Args:
        before: First measurement of each setting; not empty.
        total_s: Approximate time of all rounds.
        seed: Seed of orders and pauses.
    """

    def __init__(
        self,
        before: Sequence[GridCell],
        *,
        total_s: float,
        seed: int = 1,
        clock: Clock = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._began = clock()
        self._rng = random.Random(seed)  # noqa: S311  # an order
        window_s = max(total_s / (_MOST * (len(before) + 1)), _WINDOW_S)
        self._series = [
            _Series(before=cell, count=max(_MIN_RUNS_OF_PHASE, round(window_s / cell.mean_s)))
            for cell in before
        ]
        # An idle replica starts with a single request: the smallest batch, without concurrency.
        self._single = min(self._series, key=lambda s: (s.before.runs, s.before.rows))
        base_s = min(max(self._single.before.mean_s, _SHORTEST_S), _LONGEST_S)
        self._levels = [_PauseGroup(about_s=base_s * factor) for factor in _PAUSES]
        self.count = 0
        self.takes_s = sum(
            (series.count + 1) * series.before.mean_s for series in self._series
        ) + sum((level.about_s + self._single.before.mean_s) * _PER_ROUND for level in self._levels)
        """Duration of the last round; an estimate before the first."""

    @property
    def settings(self) -> list[Setting]:
        """Measured settings."""
        return [series.before.setting for series in self._series]

    def measure(self, runs: Mapping[Setting, Run]) -> None:
        """Measure one round.

        Args:
            runs: Run function of each setting.

        Raises:
            Exception: The error of a run.
        """
        started = self._clock()
        turns: list[_Series | None] = [*self._series, None]
        self._rng.shuffle(turns)
        windows: list[tuple[_Series, RunWindow, float]] = []
        for turn in turns:
            if turn is None:
                self._after_pauses(runs[self._single.before.setting])
                continue
            setting = turn.before.setting
            run = runs[setting]
            run()  # excludes cache contents of another batch size
            at_s = self._clock() - self._began
            window = time_window(run, setting, minimum=turn.count, clock=self._clock)
            windows.append((turn, window, at_s))
        for turn, window, at_s in windows:  # a round counts for all settings or for none
            turn.add(window, at_s)
        self.count += 1
        self.takes_s = self._clock() - started

    def cells(self) -> list[GridCell]:
        """Return the pooled cell of each setting."""
        paused = tuple(_paused(level) for level in self._levels if level.samples_s)
        return [
            _pooled(series, paused if series is self._single else ())
            for series in self._series
            if series.rounds
        ]

    def _after_pauses(self, run: Run) -> None:
        turns = self._levels * _PER_ROUND
        self._rng.shuffle(turns)
        run()
        for level in turns:
            ended = self._clock()
            self._sleep(level.about_s * _JITTER ** self._rng.uniform(-1.0, 1.0))
            started = self._clock()
            run()
            level.samples_s.append(self._clock() - started)
            level.pauses_s.append(started - ended)


def _pooled(series: _Series, paused: tuple[Paused, ...]) -> GridCell:
    samples_s, timed, before = series.samples_s, series.timed, series.before
    elapsed_s, foreign_s = series.elapsed_s, series.foreign_s
    if len(series.rounds) < FEW:
        before_s = before.count * before.rows / before.rows_per_s
        samples_s = [*samples_s, *before.samples_s]
        timed += before.count
        elapsed_s += before_s
        foreign_s += before.foreign_ratio * before_s
    cell = cell_of(
        before.setting, samples_s, elapsed_s=elapsed_s, foreign_ratio=foreign_s / elapsed_s
    )
    return msgspec.structs.replace(
        cell,
        count=timed,
        rows_per_s=timed * cell.rows / elapsed_s,
        rounds=tuple(series.rounds),
        paused=paused,
    )


def _paused(level: _PauseGroup) -> Paused:
    times = np.sort(np.asarray(level.samples_s, float))
    return Paused(
        pause_s=round(float(np.mean(level.pauses_s)), 9),
        samples_s=compress_samples(times),
        count=len(times),
        mean_s=float(times.mean()),
    )
