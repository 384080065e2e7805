"""Who comes while a batch runs? Births, by how many requests are in the replica already."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from headrace.advise.capacity.chances import poisson

Array = npt.NDArray[np.float64]

Integers = npt.NDArray[np.int64]

_LITTLE: Final = 1e-10
_RARE: Final = 1e-9


@dataclass(frozen=True, slots=True, kw_only=True)
class Runs:
    """Batches by the number in the replica when they begin, 0 to `size`.

    `run_s`: [begin], their mean time. `ratios`, `weights`: by which single ones differ.
    """

    run_s: Array
    ratios: Array
    weights: Array

    @property
    def size(self) -> int:
        """The largest number that is followed."""
        return len(self.run_s) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Births:
    """`moves`: [begin, end], probability. `dwell`: [begin, state], seconds."""

    moves: Array
    dwell: Array


def steady_births(runs: Runs, rate: float) -> Births:
    """With a constant rate: as many come as Poisson has it."""
    times = runs.run_s[:, None] * runs.ratios[None, :] * rate
    come = np.arange(_most(times, runs.size) + 1)
    some = np.unique(runs.run_s)
    moves = np.zeros((runs.size + 1, runs.size + 1))
    dwell = np.zeros_like(moves)
    for run_s in some:
        means = run_s * runs.ratios * rate
        counts = runs.weights @ poisson(means, come)
        left = np.maximum(1.0 - np.cumsum(counts), 0.0) / rate
        for begin in np.flatnonzero(runs.run_s == run_s).tolist():
            fits = min(len(come), runs.size + 1 - begin)
            moves[begin, begin : begin + fits] = counts[:fits]
            moves[begin, -1] += counts[fits:].sum()
            dwell[begin, begin : begin + fits] = left[:fits]
            dwell[begin, -1] += left[fits:].sum()
    return Births(moves=moves, dwell=dwell)


def varied_births(runs: Runs, rates: Array) -> Births:
    """With a rate for each number in the replica.

    By uniformization (Jensen, "Markoff chains as an aid in the study of Markoff processes", 1953):
    a Poisson number of steps at the highest rate, each a birth with its own probability.
    """
    top = float(rates.max())
    go = rates / top
    go[-1] = 0.0
    times = runs.run_s[:, None] * runs.ratios[None, :] * top
    rows = np.eye(runs.size + 1)
    moves, dwell = np.zeros_like(rows), np.zeros_like(rows)
    now = np.exp(-times)
    left = 1.0 - now
    for step in range(1, _most(times, 1 << 20) + 1):
        moves += (now @ runs.weights)[:, None] * rows
        dwell += (left @ runs.weights / top)[:, None] * rows
        come = rows[:, :-1] * go[:-1]
        rows *= 1.0 - go
        rows[:, 1:] += come
        now = now * times / step
        left = np.maximum(left - now, 0.0)
    return Births(moves=moves, dwell=dwell)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stretches:
    """Runs that began with `begin` requests in the replica, and during which `came` more did.

    All of one length; `mass`: how often, of all that begin.
    """

    mass: Array
    run_s: Array
    begin: Integers
    came: Integers


def stretches(runs: Runs, rates: Array, starts: Array) -> Iterator[Stretches]:
    """What happens during runs, for each ratio of their time to the mean.

    Args:
        starts: How often one begins with so many in the replica.
    """
    steady = float(rates.max() - rates.min()) < _LITTLE * float(rates.max())
    for ratio, weight in zip(runs.ratios, runs.weights, strict=True):
        begins: Integers = np.flatnonzero(starts * weight > _RARE)
        run_s = runs.run_s[begins] * ratio
        if steady:
            different, which = np.unique(run_s, return_inverse=True)
            means = different * rates[0]
            moves = poisson(means, np.arange(_most(means, runs.size) + 1))[which]
        else:
            one = Runs(run_s=runs.run_s * ratio, ratios=np.ones(1), weights=np.ones(1))
            ends = varied_births(one, rates).moves
            shift = begins[:, None] + np.arange(runs.size + 1)[None, :]
            moves = ends[begins[:, None], np.minimum(shift, runs.size)] * (shift <= runs.size)
        mass = (weight * starts[begins])[:, None] * moves
        place, came = np.nonzero(mass > _RARE)
        yield Stretches(mass=mass[place, came], run_s=run_s[place], begin=begins[place], came=came)


class Clock:
    """When do births happen within a run, where their rate falls with each? By their mean gaps."""

    def __init__(self, rates: Array) -> None:
        self._at = np.concatenate(([0.0], np.cumsum(1.0 / np.maximum(rates, _RARE * rates.max()))))
        self._sums = np.concatenate(([0.0], np.cumsum(self._at)))

    def parts(self, begin: Integers, came: Integers) -> Array:
        """By how much later than evenly spaced ones those of a run come, on average: 1 is evenly.

        Args:
            begin: Who was there when the run began.
            came: How many came.
        """
        last = np.minimum(begin + came, len(self._at) - 2)
        whole = self._at[last + 1] - self._at[begin]
        summed = self._sums[last + 1] - self._sums[begin + 1] - (last - begin) * self._at[begin]
        mean = summed / np.maximum(last - begin, 1) / whole
        found: Array = np.clip(2.0 * mean, 0.0, 1.0)
        return found


def _most(times: Array, limit: int) -> int:
    """More than so many come hardly ever."""
    most = float(times.max())
    return min(int(most + 8.0 * math.sqrt(most) + 12.0), limit)
