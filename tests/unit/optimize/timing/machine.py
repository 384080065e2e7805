"""A machine in simulated time that others use too: it is clock, CPU watch and processor in one."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from headrace.optimize.timing import TimedCandidate

_HORIZON_S = 600


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What disturbs calls.

    Bursts of others' work begin every `gap_s` on average, last `burst_s` on average and make calls
    2 to 10 times slower; the CPU watch sees `seen_ratio` of them. The processor's speed drifts by
    `drift_ratio` over minutes. Each call is off by `noise_ratio`, and calls that follow each other
    are off alike over about `alike` calls.
    """

    gap_s: float = 1.0
    burst_s: float = 0.3
    seen_ratio: float = 0.7
    drift_ratio: float = 0.15
    noise_ratio: float = 0.03
    alike: int = 4


QUIET = World(gap_s=math.inf, drift_ratio=0.0, noise_ratio=0.01, alike=1)


class Machine:
    cpus = 2

    def __init__(self, world: World, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.at = 1000.0
        self._begin = self.at
        self._bursts = _bursts(world, rng, self.at)
        self._next = 0
        self._seen_s = 0.0
        minutes = np.arange(_HORIZON_S) / 60
        phases = rng.uniform(0, 2 * math.pi, 2)
        waves = np.sin(minutes * 3 + phases[0]) + np.sin(minutes * 11 + phases[1])
        self._drift = np.exp(world.drift_ratio * waves / 2).tolist()
        white = rng.normal(size=4096 + world.alike - 1)
        noise = np.convolve(white, np.ones(world.alike), "valid") / math.sqrt(world.alike)
        self._noise = np.exp(world.noise_ratio * noise).tolist()
        self._calls = int(rng.integers(4096))

    def monotonic(self) -> float:
        return self.at

    def now(self) -> float:
        return self.at

    def foreign_s(self) -> float | None:
        """Whole ticks, as the kernel counts."""
        self._pass_bursts()
        seen_s = self._seen_s
        if self._next < len(self._bursts):
            start, end, _, is_seen = self._bursts[self._next]
            seen_s += is_seen * (min(max(self.at, start), end) - start)
        return math.floor((seen_s + 0.03 * (self.at - self._begin)) * 100) / 100

    def candidate(self, name: str, call_s: float) -> TimedCandidate:
        return TimedCandidate(name=name, run=self.runs_for(call_s))

    def runs_for(self, call_s: float) -> Callable[[], None]:
        def run() -> None:
            self._calls += 1
            drift = self._drift[int(self.at - self._begin) % _HORIZON_S]
            self._work(call_s * drift * self._noise[self._calls % 4096])

        return run

    def _work(self, left_s: float) -> None:
        """Pass the time that so much undisturbed work takes."""
        while self._next < len(self._bursts):
            start, end, factor, _ = self._bursts[self._next]
            before_s = max(start - self.at, 0.0)
            if left_s <= before_s:
                break
            self.at += before_s
            left_s -= before_s
            if left_s * factor <= end - self.at:
                self.at += left_s * factor
                return
            left_s -= max(end - self.at, 0.0) / factor
            self.at = max(self.at, end)
            self._pass_bursts()
        self.at += left_s

    def _pass_bursts(self) -> None:
        while self._next < len(self._bursts) and self._bursts[self._next][1] <= self.at:
            start, end, _, is_seen = self._bursts[self._next]
            self._seen_s += is_seen * (end - start)
            self._next += 1


def _bursts(
    world: World, rng: np.random.Generator, begin: float
) -> list[tuple[float, float, float, bool]]:
    """Begin, end, by what factor calls are slower, and whether the CPU watch sees it."""
    if math.isinf(world.gap_s):
        return []
    count = int(_HORIZON_S / (world.gap_s + world.burst_s))
    pauses = rng.exponential(world.gap_s, count)
    lengths = rng.exponential(world.burst_s, count)
    ends = begin + np.cumsum(pauses + lengths)
    factors = rng.uniform(2, 10, count)
    seen = rng.random(count) < world.seen_ratio
    return list(
        zip((ends - lengths).tolist(), ends.tolist(), factors.tolist(), seen.tolist(), strict=True)
    )
