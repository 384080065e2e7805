"""Compare arms fairly: short windows in turn, with the noisy ones taken again.

Arm A, arm B, arm A, arm B: a slow drift of the machine hits all arms alike, so ratios are taken
within a round and then their median over rounds.
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from bench import cpu

MAX_FOREIGN_CORES: Final = 0.35
RETRIES: Final = 3

Figures = Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One thing to measure: its name, and a function that measures it once."""

    name: str
    measure: Callable[[], Figures]


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What one measurement gave, and who else used the machine meanwhile."""

    figures: Figures
    usage: cpu.Usage

    @property
    def is_quiet(self) -> bool:
        """Whether strangers, and the host, left us the machine."""
        return self.usage.foreign + self.usage.stolen <= MAX_FOREIGN_CORES


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A median with what it was taken over."""

    median: float
    low: float
    high: float
    count: int

    def __str__(self) -> str:
        return f"{self.median:,.4g} [{self.low:,.4g} to {self.high:,.4g}]"


Rounds = Mapping[str, Sequence[Window]]
"""Windows by arm; the same number of each, in order of time."""


def interleave(
    arms: Sequence[Arm], *, rounds: int, take: Callable[[Arm], Window] | None = None
) -> Rounds:
    """Measure every arm once per round; every other round runs backwards.

    Args:
        take: Measures an arm once; by default with the machine watched and noisy windows repeated.
    """
    take = take or quiet_window
    windows: dict[str, list[Window]] = {arm.name: [] for arm in arms}
    for number in range(rounds):
        for arm in arms if number % 2 == 0 else reversed(arms):
            windows[arm.name].append(take(arm))
    return windows


def quiet_window(arm: Arm) -> Window:
    """Measure until a window is quiet; after `RETRIES` the quietest, which then counts as noisy."""
    tried = []
    for _ in range(1 + RETRIES):
        tried.append(watched(arm.measure))
        if tried[-1].is_quiet:
            break
    return min(tried, key=lambda window: window.usage.foreign + window.usage.stolen)


def watched(measure: Callable[[], Figures]) -> Window:
    """Measure once and account for the processors."""
    before = cpu.read(time.monotonic())
    figures = measure()
    return Window(figures=figures, usage=cpu.usage(before, cpu.read(time.monotonic())))


def spread(values: Sequence[float]) -> Spread:
    """Median, lowest and highest."""
    return Spread(
        median=statistics.median(values), low=min(values), high=max(values), count=len(values)
    )


def fair_rounds(rounds: Rounds, *arms: str) -> list[list[Figures]]:
    """The figures of `arms` in each round in which all their windows were quiet.

    Where no round was, all of them: the result says how many windows were noisy.
    """
    together = list(zip(*(rounds[arm] for arm in arms), strict=True))
    quiet = [row for row in together if all(window.is_quiet for window in row)]
    return [[window.figures for window in row] for row in quiet or together]


def figure(rounds: Rounds, arm: str, key: str) -> Spread:
    """One figure of one arm over the rounds."""
    return spread([figures[key] for (figures,) in fair_rounds(rounds, arm)])


def ratio(rounds: Rounds, arm: str, base: str, key: str) -> Spread:
    """How many times the figure of `base` the figure of `arm` is, within each round."""
    return spread([mine[key] / theirs[key] for mine, theirs in fair_rounds(rounds, arm, base)])


def difference(rounds: Rounds, arm: str, base: str, key: str) -> Spread:
    """How much more than `base` the figure of `arm` is, within each round."""
    return spread([mine[key] - theirs[key] for mine, theirs in fair_rounds(rounds, arm, base)])
