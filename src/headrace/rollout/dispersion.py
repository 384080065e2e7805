"""Design effect of requests that go wrong together: how many count as one observation.

The bets of `rate_difference` take requests as independent given the past. Stalls and slow noise
strike one arm's requests in clusters, so sums over intervals vary more than independent requests
would let them. The factor is estimated from squared differences of successive sums (von Neumann
1941, "Distribution of the ratio of the mean square successive difference to the variance"), over
blocks of several lengths (batch means). A lasting difference between the arms does not touch them,
and a version that turns bad once shows in two of them at most, so the two largest are left out.

Each request then counts as one part in `factor`. Capital to a power below 1 reaches a bound of at
least 1 only if the capital itself does (Jensen), so a factor that was estimated from the same data
costs power: a level of 1 in c becomes one of 1 in c - 1 at most (Bernoulli's inequality).
"""

from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from headrace.rollout.betting import Array

_BLOCKS: Final = np.array([1.0, 8.0])
"""Block lengths in intervals."""
_PRIOR_BLOCKS: Final = 20.0
"""How many blocks of independent requests are assumed before the first one."""
_LEFT_OUT: Final = 2


class Dispersion(msgspec.Struct):
    """Running estimate for several tests side by side.

    `open` and `closed`: the sums of the present and the last block, `[lengths, tests]`, and
    `open_expected` the variance of the present one if its requests are independent; `size`: its
    intervals. `observed` and `expected`: summed over the `pairs` of successive blocks. `largest`:
    of the observed ones, `[lengths, tests, 2]`.
    """

    open: Array
    open_expected: Array
    size: Array
    closed: Array
    observed: Array
    expected: Array
    pairs: Array
    largest: Array

    @classmethod
    def start(cls, tests: int) -> "Dispersion":
        """Nothing counted yet."""
        zeros = np.zeros((len(_BLOCKS), tests))
        return cls(
            open=zeros,
            open_expected=zeros,
            size=zeros,
            closed=np.full_like(zeros, np.nan),
            observed=zeros,
            expected=zeros,
            pairs=zeros,
            largest=np.zeros((*zeros.shape, _LEFT_OUT)),
        )

    def add(self, sums: Array, expected: Array) -> None:
        """Count one interval.

        Args:
            sums: What the requests of the interval sum to, `[tests]`.
            expected: The sum of their squares, `[tests]`; 0 counts as no interval.
        """
        counts = expected > 0.0
        self.open = self.open + sums
        self.open_expected = self.open_expected + expected
        self.size = self.size + counts
        full = self.size >= _BLOCKS[:, None]
        paired = full & ~np.isnan(self.closed)
        step = np.where(paired, self.open - np.nan_to_num(self.closed), 0.0)
        square = step**2 / 2.0
        self.observed = self.observed + square
        ranked = np.sort(np.concatenate([self.largest, square[..., None]], axis=-1), axis=-1)
        self.largest = ranked[..., 1:]
        self.expected = self.expected + np.where(paired, self.open_expected, 0.0)
        self.pairs = self.pairs + paired
        self.closed = np.where(full, self.open, self.closed)
        self.open = np.where(full, 0.0, self.open)
        self.open_expected = np.where(full, 0.0, self.open_expected)
        self.size = np.where(full, 0.0, self.size)

    def restart(self, tests: NDArray[np.bool_]) -> None:
        """Pair no block of before with one of after: another share has other sums."""
        self.open = np.where(tests, 0.0, self.open)
        self.open_expected = np.where(tests, 0.0, self.open_expected)
        self.size = np.where(tests, 0.0, self.size)
        self.closed = np.where(tests, np.nan, self.closed)

    def append(self, like: int) -> None:
        """One test more, with the history of the test `like`."""
        for name in self.__struct_fields__:
            values: Array = getattr(self, name)
            setattr(self, name, np.concatenate([values, values[:, [like]]], axis=1))

    @property
    def factor(self) -> Array:
        """How many requests count as one, at least 1, `[tests]`."""
        observed = self.observed - self.largest.sum(axis=-1)
        ratio = observed / np.maximum(self.expected, 1e-300)
        estimate = (_PRIOR_BLOCKS + self.pairs * ratio) / (_PRIOR_BLOCKS + self.pairs)
        result: Array = np.maximum(estimate, 1.0).max(axis=0)
        return result
