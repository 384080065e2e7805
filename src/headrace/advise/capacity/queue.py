"""How late are answers of a replica that batches what waits? A queue, solved and not simulated.

Requests come by chance to `copies` replicas. A replica that is free takes all that waits, up to the
largest batch that is worth it, and is busy for the time of such a batch: the bulk queue
M/G^[1,b]/1 (Neuts, "A general class of bulk queues with Poisson input", 1967; Chaudhry and
Templeton, "A First Course in Bulk Queues", 1983). It is solved where batches end, by its embedded
Markov chain: whom a batch leaves waiting decides the next batch and who comes meanwhile. The whole
distribution of waits follows, not only a mean.

Three things are approximated, each by what is usual:

- `c` runs at once are one that is `c` times as fast, of which Erlang's C formula says how many
  requests wait at all. Without batches the mean wait is then exactly Allen and Cunneen's for M/G/c
  (Allen, "Probability, Statistics, and Queueing Theory", 2nd ed. 1990, 5.3).
- A balancer that sends a request to the less loaded of two replicas makes busy ones get less. Each
  replica sees all others as a copy of itself, independent of it (Mitzenmacher, "The Power of Two
  Choices in Randomized Load Balancing", 2001; Bramson, Lu and Prabhakar, "Asymptotic independence
  of queues under randomized load balancing", 2012): rates by how many it has, by iteration.
- Arrivals that are burstier than chance stretch the waits by (ca2 + cs2) / (1 + cs2), as Kingman's
  bound does for means ("The single server queue in heavy traffic", 1961).
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from headrace.advise.capacity.births import Clock, Runs, steady_births, stretches, varied_births
from headrace.advise.capacity.choices import preference, thinned, waiting_ratio
from headrace.advise.capacity.service import ServiceCurve, Spread, spaced
from headrace.advise.capacity.waits import Waits

Array = npt.NDArray[np.float64]

FULL: Final = 0.985
"""Of the capacity: beyond, a queue is as good as endless, and a small error decides."""
ENDLESS: Final = 64
"""From so many replicas on, more of them make no difference to a choice of two."""
_MOST_CHOSEN_ROWS: Final = 8
_ROUNDS: Final = 30
_SETTLED: Final = 1e-4
_TAIL: Final = 1e-5
_LARGEST: Final = 1024
_LITTLE: Final = 1e-9


class Balancing(StrEnum):
    """How requests find a replica: the less loaded of two, or any."""

    LEAST_REQUEST = "least-request"
    RANDOM = "random"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What is asked of `copies` replicas together.

    `rate`: requests a second. `burstiness`: variance over mean of the counts of arrivals; 1 is
    chance. `gateways`: balancers, each of which sees its own requests only.
    """

    rate: float
    copies: int = 1
    gateways: int = 1
    balancing: Balancing = Balancing.LEAST_REQUEST
    burstiness: float = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """How requests are answered. `busy_ratio`: of the places where runs happen."""

    waits: Waits
    busy_ratio: float
    batch_rows: float

    def quantile_s(self, ratio: float) -> float:
        """The latency that this share of the requests stays below."""
        return self.waits.quantile_s(ratio)


def answered(curve: ServiceCurve, load: Load) -> Answered | None:
    """Latency of requests of one row each; None where replicas cannot keep up.

    Args:
        load: With a rate of 0, a lone request is answered.
    """
    each = load.rate / load.copies
    if each > FULL * curve.capacity:
        return None
    if each <= 0.0:
        waits = Waits(curve, places=curve.places, stretch=1.0)
        waits.add_immediate(1.0)
        return Answered(waits=waits, busy_ratio=0.0, batch_rows=1.0)
    size = _first_size(curve)
    while True:
        chain = _Chain(curve, load, each=each, size=size)
        chain.settle()
        if chain.overflow < _TAIL or size >= _LARGEST:
            break
        size *= 2
    if chain.overflow > 100 * _TAIL:
        return None
    squared = curve.spread.squared_cv
    stretch = (load.burstiness + squared) / (1.0 + squared)
    return chain.answered(stretch=max(stretch, 1.0))


def _choices(curve: ServiceCurve, load: Load) -> int:
    """Replicas that a balancer knows to choose from.

    Where batches are large, choosing gains little and takes long to solve: as if there was none.
    """
    return min(load.copies, ENDLESS) if has_choice(curve, load.balancing) else 1


def has_choice(curve: ServiceCurve, balancing: Balancing) -> bool:
    """Whether the choice of a balancer is reckoned with."""
    return balancing is Balancing.LEAST_REQUEST and curve.best_rows <= _MOST_CHOSEN_ROWS


def _first_size(curve: ServiceCurve) -> int:
    return min(max(32, 1 << math.ceil(math.log2(3 * curve.best_rows))), _LARGEST)


class _Chain:
    """One replica as seen where batches end; states are requests in it, 0 to `size`.

    A batch that begins with `m` requests in the replica runs the first min(m, b) of them.
    """

    def __init__(self, curve: ServiceCurve, load: Load, *, each: float, size: int) -> None:
        self._curve = curve
        self._each = each
        self._copies = _choices(curve, load)
        self._seen_of = thinned(size + 1, load.gateways) if self._copies > 1 else None
        self._size = size
        self._places = curve.places
        self._gateways = load.gateways
        self._largest = curve.best_rows
        batch = np.minimum(np.arange(size + 1), self._largest)
        self._batch = np.maximum(batch, 1)
        by_rows = np.array([0.0, *(curve.run_s(k) for k in range(1, self._largest + 1))])
        # Between the ends of many runs at once lie gaps of all sizes. What a caller sees are those;
        # where runs have one request each, a long gap is made up by the next ones.
        between = spaced(curve.spread, self._places)
        run_s = by_rows[self._batch] / self._places
        self._seen = _runs(run_s, between)
        self._runs = _runs(run_s, curve.spread.coarse())
        self._rates: Array = np.full(size + 1, each)
        self._ends: Array = np.zeros(size + 1)
        self._in_system: Array = np.zeros(size + 1)

    @property
    def overflow(self) -> float:
        """The share of time with more in the replica than nine tenths of what is followed."""
        return float(self._in_system[self._size * 9 // 10 :].sum())

    def settle(self) -> None:
        """Find the rates that the balancer makes, and the distribution under them."""
        for _ in range(_ROUNDS):
            before = self._in_system
            self._solve()
            if self._copies == 1 or float(np.abs(self._in_system - before).sum()) < _SETTLED:
                return
            wanted = self._each * preference(self._in_system, self._copies, self._seen_of)
            self._rates = (self._rates + wanted) / 2.0

    def _solve(self) -> None:
        """Where batches end, how many wait; over time, how many there are."""
        births = (
            steady_births(self._runs, self._each)
            if self._copies == 1
            else varied_births(self._runs, self._rates)
        )
        size = self._size
        ends = np.zeros((size + 1, size + 1))
        for state in range(1, size + 1):  # who was in the batch has left
            k = int(self._batch[state])
            ends[state, : size + 1 - k] = births.moves[state, k:]
        ends[0] = ends[1]  # a replica that idles begins with the first who comes
        self._ends = _stationary(ends)
        starts = self._starts()
        time: Array = starts @ births.dwell
        time[0] += self._ends[0] / max(self._rates[0], _LITTLE)
        self._in_system = time / time.sum()

    def _starts(self) -> Array:
        """How many are in the replica when a batch begins."""
        starts = self._ends.copy()
        starts[1] += starts[0]
        starts[0] = 0.0
        return starts

    def answered(self, *, stretch: float) -> Answered:
        """Everybody's wait, by where they came in whose run."""
        starts = self._starts()
        waits = Waits(self._curve, places=self._places, stretch=stretch)
        clock = Clock(self._rates)
        for run in stretches(self._seen, self._rates, starts):
            waits.add_run(
                mass=run.mass,
                run_s=run.run_s,
                behind=run.begin - self._batch[run.begin],
                came=run.came,
                parts=clock.parts(run.begin, run.came),
                rate=self._each,
            )
        waits.add_immediate(float(self._ends[0]))
        if self._places > 1:
            load = self._each * self._run_s_mean(starts)
            waits.wait_only(waiting_ratio(self._places, load, self._copies, self._gateways))
        busy = 1.0 - float(self._in_system[0])
        rows = float(starts @ self._batch)
        return Answered(waits=waits, busy_ratio=busy, batch_rows=rows)

    def _run_s_mean(self, starts: Array) -> float:
        """Seconds of one place that a request takes, on average."""
        return self._places * float(starts @ self._runs.run_s) / float(starts @ self._batch)


def _runs(run_s: Array, spread: Spread) -> Runs:
    return Runs(run_s=run_s, ratios=np.asarray(spread.ratios), weights=np.asarray(spread.weights))


def _stationary(moves: Array) -> Array:
    """The stationary distribution of a chain, [from, to]."""
    size = len(moves)
    system = moves.T - np.eye(size)
    system[-1] = 1.0
    wanted = np.zeros(size)
    wanted[-1] = 1.0
    found = np.maximum(np.linalg.solve(system, wanted), 0.0)
    ratios: Array = found / found.sum()
    return ratios
