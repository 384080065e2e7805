"""How fast is the model in each of the machine's phases? Its settings in turn, over and over.

A machine's speed drifts: what is measured in one window is measured in one phase, and two settings
in two. Here each setting gets a short window in every round, in an order by chance, so that all of
them see the same phases, and the drift between rounds is known. A run that begins after a pause
finds cold caches and a slower clock; at less than full load many do, so these are timed as well.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec
import numpy as np

from headrace.optimize.profiling.messages import Cell, Paused, Round
from headrace.optimize.profiling.timing import (
    Clock,
    Setting,
    Window,
    cell_of,
    kept,
    time_window,
)

Run = Callable[[], object]

FEW: Final = 4
"""With fewer rounds, what was measured before them counts as well."""
_MOST: Final = 40
"""About so many rounds fit the time: with more, each would say too little."""
_WINDOW_S: Final = 0.02
_LEAST_RUNS: Final = 2
_KEPT: Final = 1000
_PAUSES: Final = (0.25, 1.0, 4.0)
"""By the time of a run: at most loads a replica idles for about as long as a run takes."""
_JITTER: Final = 1.5
_PER_ROUND: Final = 2
_SHORTEST_S: Final = 0.0003
_LONGEST_S: Final = 0.025


@dataclass(slots=True, kw_only=True)
class _Series:
    """One setting, over all rounds. `count`: of runs by each thread in a window."""

    setting: Setting
    before: Cell
    count: int
    samples_s: list[float] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)
    timed: int = 0
    elapsed_s: float = 0.0
    foreign_s: float = 0.0

    def add(self, window: Window, at_s: float) -> None:
        times = np.sort(np.asarray(window.samples_s, float))
        self.samples_s += kept(times, _KEPT)
        self.rounds.append(Round(at_s=round(at_s, 3), mean_s=round(float(times.mean()), 9)))
        self.timed += len(times)
        self.elapsed_s += window.elapsed_s
        self.foreign_s += window.foreign_ratio * window.elapsed_s


@dataclass(slots=True, kw_only=True)
class _Level:
    """Pauses of about one length."""

    about_s: float
    pauses_s: list[float] = field(default_factory=list)
    samples_s: list[float] = field(default_factory=list)


class Rounds:
    """Rounds over settings that were measured once before.

    Args:
        before: What was found of each setting; not empty.
        total_s: How long all rounds together may take, about.
        seed: Of the orders and the pauses.
    """

    def __init__(
        self,
        before: Mapping[Setting, Cell],
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
            _Series(
                setting=setting,
                before=cell,
                count=max(_LEAST_RUNS, round(window_s / cell.mean_s)),
            )
            for setting, cell in before.items()
        ]
        # A replica that idled begins with whoever comes first: with the smallest batch, alone.
        self._single = min(self._series, key=lambda s: (s.setting.runs, s.setting.rows))
        base_s = min(max(self._single.before.mean_s, _SHORTEST_S), _LONGEST_S)
        self._levels = [_Level(about_s=base_s * factor) for factor in _PAUSES]
        self.count = 0
        self.takes_s = sum((one.count + 1) * one.before.mean_s for one in self._series) + sum(
            (level.about_s + self._single.before.mean_s) * _PER_ROUND for level in self._levels
        )
        """How long one round takes: about, until there was one."""

    @property
    def settings(self) -> list[Setting]:
        """What is measured."""
        return [one.setting for one in self._series]

    def measure(self, runs: Mapping[Setting, Run]) -> None:
        """One round.

        Args:
            runs: What runs each of `settings`.

        Raises:
            Exception: What a run raised.
        """
        began = self._clock()
        turns: list[_Series | None] = [*self._series, None]
        self._rng.shuffle(turns)
        windows: list[tuple[_Series, Window, float]] = []
        for turn in turns:
            if turn is None:
                self._after_pauses(runs[self._single.setting])
                continue
            run = runs[turn.setting]
            run()  # what another batch size left in the caches is not its
            at_s = self._clock() - self._began
            window = time_window(run, turn.setting, least=turn.count, clock=self._clock)
            windows.append((turn, window, at_s))
        for turn, window, at_s in windows:  # a round counts for all of them, or for none
            turn.add(window, at_s)
        self.count += 1
        self.takes_s = self._clock() - began

    def cells(self) -> list[Cell]:
        """What is known of each setting now."""
        paused = tuple(_paused(level) for level in self._levels if level.samples_s)
        return [
            _pooled(one, paused if one is self._single else ())
            for one in self._series
            if one.rounds
        ]

    def _after_pauses(self, run: Run) -> None:
        turns = self._levels * _PER_ROUND
        self._rng.shuffle(turns)
        run()
        for level in turns:
            ended = self._clock()
            self._sleep(level.about_s * _JITTER ** self._rng.uniform(-1.0, 1.0))
            began = self._clock()
            run()
            level.samples_s.append(self._clock() - began)
            level.pauses_s.append(began - ended)


def _pooled(series: _Series, paused: tuple[Paused, ...]) -> Cell:
    samples_s, timed, before = series.samples_s, series.timed, series.before
    elapsed_s, foreign_s = series.elapsed_s, series.foreign_s
    if len(series.rounds) < FEW:
        before_s = before.count * before.rows / before.rows_per_s
        samples_s = [*samples_s, *before.samples_s]
        timed += before.count
        elapsed_s += before_s
        foreign_s += before.foreign_ratio * before_s
    cell = cell_of(
        series.setting, samples_s, elapsed_s=elapsed_s, foreign_ratio=foreign_s / elapsed_s
    )
    return msgspec.structs.replace(
        cell,
        count=timed,
        rows_per_s=timed * cell.rows / elapsed_s,
        rounds=tuple(series.rounds),
        paused=paused,
    )


def _paused(level: _Level) -> Paused:
    times = np.sort(np.asarray(level.samples_s, float))
    return Paused(
        pause_s=round(float(np.mean(level.pauses_s)), 9),
        samples_s=kept(times),
        count=len(times),
        mean_s=float(times.mean()),
    )
