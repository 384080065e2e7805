"""How long did everybody wait? Pieces of waits, gathered into one distribution of latency."""

import math
from typing import Final

import numpy as np
import numpy.typing as npt

from headrace.advise.capacity.service import ServiceCurve

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]

_BINS: Final = 4096
_MOST_RUNS_AHEAD: Final = 96
_LITTLE: Final = 1e-12


class Waits:
    """Gathers waits and the size of the batch that each ended in; answers with quantiles.

    Within a run, requests come at any time alike: a wait for its end is uniform. A distribution of
    uniforms is kept by where its density changes.
    """

    def __init__(self, curve: ServiceCurve, *, places: int, stretch: float) -> None:
        self._curve = curve
        self._places = places
        self._stretch = stretch
        self._largest = curve.best_rows
        self._pieces: list[tuple[Array, Array, Array, Integers]] = []
        self._immediate = 0.0
        self._wait_ratio: float | None = None
        self._cdf: tuple[Array, Array] | None = None

    def add_immediate(self, mass: float) -> None:
        """Who finds a free replica does not wait, and is alone in the batch."""
        self._immediate += mass

    def wait_only(self, ratio: float) -> None:
        """Let this share of all requests wait, and the rest not; shapes stay."""
        self._wait_ratio = ratio

    def add_run(
        self,
        *,
        mass: Array,
        run_s: Array,
        behind: Integers,
        came: Integers,
        parts: Array,
        rate: float,
    ) -> None:
        """Who came during runs; all of one length.

        Args:
            mass: The probability of such a run.
            run_s: How long it takes.
            behind: Who was left waiting when it began.
            came: How many came meanwhile, the earlier in front.
            parts: When they came on average, over the middle of the run.
            rate: At which others come while these wait for further runs.
        """
        some = came > 0
        mass, run_s, behind, came = mass[some], run_s[some], behind[some], came[some]
        parts = parts[some]
        waiting = behind + came
        fits = waiting <= self._largest  # all share the next run, whenever they came
        longest_s = run_s[fits]
        self._add(
            mass[fits] * came[fits], longest_s * (1.0 - parts[fits]), longest_s, waiting[fits]
        )
        mass, run_s, behind, came = mass[~fits], run_s[~fits], behind[~fits], came[~fits]
        waiting, parts = waiting[~fits], parts[~fits]
        full_s = self._curve.run_s(self._largest) / self._places
        for ahead in range(_MOST_RUNS_AHEAD):
            if not len(mass):
                return
            first = np.maximum(ahead * self._largest - behind, 0)
            last = np.minimum((ahead + 1) * self._largest - behind, came)
            here = last > first
            late, early = _left(first, last, came, parts)
            low = run_s * late + ahead * full_s
            high = run_s * early + ahead * full_s
            joined = waiting - ahead * self._largest + math.ceil(rate * ahead * full_s)
            rows = np.clip(joined, 1, self._largest)
            self._add(
                (mass * (last - first))[here],
                low[here],
                high[here],
                rows[here],
            )
            more = last < came
            mass, run_s, behind, came = mass[more], run_s[more], behind[more], came[more]
            waiting, parts = waiting[more], parts[more]

    def _add(self, mass: Array, low_s: Array, high_s: Array, rows: Integers) -> None:
        if len(mass):
            self._pieces.append((mass, low_s * self._stretch, high_s * self._stretch, rows))

    @property
    def waiting_ratio(self) -> float:
        """The share of requests that wait."""
        waiting = sum(float(mass.sum()) for mass, *_ in self._pieces)
        if self._wait_ratio is not None:
            return self._wait_ratio if waiting > 0.0 else 0.0
        return waiting / max(waiting + self._immediate, _LITTLE)

    def mean_wait_s(self) -> float:
        """The mean wait of all requests, those that do not wait included."""
        total = sum(float(mass.sum()) for mass, *_ in self._pieces)
        if total <= 0.0:
            return 0.0
        summed = sum(
            float((mass * (low + high)).sum()) / 2.0 for mass, low, high, _ in self._pieces
        )
        return summed / total * self.waiting_ratio

    def quantile_s(self, ratio: float) -> float:
        """The latency that this share of the requests stays below, run included."""
        if self._cdf is None:
            self._cdf = self._distribution()
        times, reached = self._cdf
        place = int(np.searchsorted(reached, ratio))
        if place == 0 or place >= len(times):
            return float(times[min(place, len(times) - 1)]) + self._curve.fixed_s
        low, high = reached[place - 1], reached[place]
        share = (ratio - low) / max(high - low, _LITTLE)
        step = times[place] - times[place - 1]
        return float(times[place - 1] + share * step) + self._curve.fixed_s

    def _distribution(self) -> tuple[Array, Array]:
        """Latency without what is fixed: times, and the share that is answered by then."""
        spread = self._curve.spread
        longest = self._curve.run_s(self._largest) * max(spread.ratios)
        latest = max((float(high.max()) for _, _, high, _ in self._pieces), default=0.0)
        step = (latest + longest) * 1.01 / _BINS
        size = _BINS + 2
        changes = np.zeros((self._largest + 1, size))
        for mass, low, high, rows in self._pieces:
            width = np.maximum(high - low, step)
            for edge, sign in ((low, 1.0), (low + width, -1.0)):
                place = edge / step
                index = np.minimum(place.astype(np.int64), size - 2)
                share = np.clip(place - index, 0.0, 1.0)
                slope = sign * mass / width * step
                np.add.at(changes, (rows, index), slope * (1.0 - share))
                np.add.at(changes, (rows, index + 1), slope * share)
        density: Array = np.cumsum(changes, axis=1)
        waiting = float(density.sum())
        part = self.waiting_ratio
        share_of = part / max(waiting, _LITTLE)
        at = np.zeros(size, dtype=np.float64)
        for size_of in range(1, self._largest + 1):
            if density[size_of].any():
                self._shift(at, density[size_of] * share_of, size_of, step)
        alone = np.zeros(size)
        alone[0] = 1.0 - part
        self._shift(at, alone, 1, step)
        times: Array = step * np.arange(size, dtype=np.float64)
        reached: Array = np.cumsum(at)
        return times, reached / reached[-1]

    def _shift(self, at: Array, wait: Array, rows: int, step: float) -> None:
        """Add the run's own time to waits."""
        run_s = self._curve.run_s(rows)
        spread = self._curve.spread
        for ratio, weight in zip(spread.ratios, spread.weights, strict=True):
            by, share = divmod(run_s * ratio / step, 1.0)
            first = int(by)
            at[first:] += weight * (1.0 - share) * wait[: len(at) - first]
            at[first + 1 :] += weight * share * wait[: len(at) - first - 1]


def _left(first: Integers, last: Integers, came: Integers, parts: Array) -> tuple[Array, Array]:
    """Which part of the run is left when those come that are `first` (exclusive) to `last` of all.

    The i-th of n points by chance is Beta(i, n + 1 - i): a uniform with the mean and variance of
    those in the range, within 0 and 1.
    """
    n = came.astype(np.float64)
    low, high = first + 1.0, np.maximum(last, first + 1).astype(np.float64)
    mean = (low + high) / 2.0
    between = ((high - low + 1.0) ** 2 - 1.0) / 12.0
    within = (mean * (n + 1.0) - mean * mean - between) / (n + 2.0)
    half = np.sqrt(3.0 * (within + between)) / (n + 1.0)
    middle = 1.0 - parts * mean / (n + 1.0)
    return np.maximum(middle - half, 0.0), np.minimum(middle + half, 1.0)
