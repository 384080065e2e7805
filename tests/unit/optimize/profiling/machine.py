"""A machine made up, in virtual time: its runs are slower after pauses, and its speed drifts."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from headrace.optimize.profiling.grid import Rounds, time_runs
from headrace.optimize.profiling.messages import Measured, Setting
from tests.unit.optimize.profiling import made


def steady(at_s: float) -> float:
    """No drift."""
    del at_s
    return 1.0


def drifting(deviation: float, *, lasts_s: float, seed: int) -> Callable[[float], float]:
    """Slower and faster by chance: each value is close to the one before (an AR(1) process)."""
    rng = random.Random(seed)  # noqa: S311  # a machine made up
    keeps = math.exp(-1.0 / lasts_s)
    values = [rng.gauss(0.0, 1.0)]
    for _ in range(3_000):
        values.append(keeps * values[-1] + math.sqrt(1 - keeps**2) * rng.gauss(0.0, 1.0))
    return lambda at_s: math.exp(deviation * values[int(at_s) % len(values)])


@dataclass(slots=True, kw_only=True)
class Machine:
    """`cold`: by how much more a run takes after a long pause; half of it after `half_s`."""

    row_s: float = 0.010
    cold: float = 0.0
    half_s: float = 0.005
    noise: float = 0.05
    drift: Callable[[float], float] = steady
    now: float = 0.0
    ended: float = 0.0
    rng: random.Random = field(default_factory=lambda: random.Random(1))  # noqa: S311  # the same

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def takes_s(self, at_s: float, idle_s: float) -> float:
        pause = 1.0 + self.cold * idle_s / (idle_s + self.half_s)
        noise = math.exp(self.rng.gauss(-(self.noise**2) / 2, self.noise))
        return self.row_s * pause * noise * self.drift(at_s)

    def run(self, rows: int = 1) -> None:
        self.now += rows * self.takes_s(self.now, self.now - self.ended)
        self.ended = self.now

    def measured(self, sizes: tuple[int, ...] = (1, 2), *, budget_s: float = 30.0) -> Measured:
        """What a measurement in rounds finds of a model without a batch axis."""
        settings = [Setting(threads=1, runs=1, rows=rows, length=32) for rows in sizes]
        runs = {one: lambda one=one: self.run(one.rows) for one in settings}
        before = [time_runs(runs[one], one, seconds=1.0, clock=self.clock) for one in settings]
        rounds = Rounds(before, total_s=budget_s, clock=self.clock, sleep=self.sleep)
        until = self.now + budget_s
        while self.now + rounds.takes_s < until:
            rounds.measure(runs)
        return made.measured(*rounds.cells(), batched=False)

    def p99_s(self, rate: float, *, seconds: float) -> float:
        """Of requests one by one in the order in which they come; without our simulation."""
        rng = np.random.default_rng(5)
        arrivals = np.cumsum(rng.exponential(1 / rate, int(rate * seconds))).tolist()
        end, found = 0.0, []
        for at in arrivals:
            start = max(at, end)
            end = start + self.takes_s(start, start - end)
            found.append(end - at)
        return float(np.quantile(found[len(found) // 20 :], 0.99))
