"""Which units matter least, and how do the others make up for them? Linear algebra only.

Both questions are asked of one layer: what a weight `W` answers, `x W`, is to change least. With
second moments `H = E[x x^T]` of what it reads, the best weight on the units that stay is a ridge
regression, and the loss of a unit that the others make up for is `W_u^T (H^-1_uu)^-1 W_u`: the
optimal brain surgeon (Hassibi and Stork, 1993) for structures, as in ZipLM (Kurtic et al., NeurIPS
2023) and SlimGPT (Ling et al., NeurIPS 2024). ThiNet (Luo et al., ICCV 2017) does it for channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.core import Array
from headrace.optimize.prune.layout import Layout

_RIDGE_RATIO: Final = 1e-3
"""Of the mean second moment: what few examples say is believed no further."""
_STEPS: Final = 64
"""In how many steps units are removed; after each the others' losses are told anew."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """One weight that reads the units.

    `weight`: `[inputs, outputs]`. `layout`: of the units along its inputs. `own`: `E[x x^T]`.
    `across`: `E[x y^T]`, where `y` was read before anything was pruned. Both centred where the
    weight has a bias to take up the means.
    """

    weight: Array
    layout: Layout
    own: Array
    across: Array


def activation_losses(readings: Sequence[Reading]) -> Array:
    """Loss of each unit if it alone is dropped and nothing makes up for it, `[units]`.

    The mean square of what it adds to the answer, as Wanda scores (Sun et al., ICLR 2024).
    """
    total = np.zeros(readings[0].layout.units)
    for reading in readings:
        blocks = _blocks(reading.layout)
        weight = reading.weight.astype(np.float64)
        products = weight @ weight.T
        for unit, block in enumerate(blocks):
            at = np.ix_(block, block)
            total[unit] += float(np.sum(reading.own[at] * products[at]))
    return total


def weight_losses(readings: Sequence[Reading]) -> Array:
    """Squared size of what reads each unit, `[units]`: magnitude, which asks no data."""
    total = np.zeros(readings[0].layout.units)
    for reading in readings:
        squares = np.sum(reading.weight.astype(np.float64) ** 2, axis=1)
        total += [float(squares[block].sum()) for block in _blocks(reading.layout)]
    return total


def least_lossy(readings: Sequence[Reading], count: int) -> Array:
    """The `count` units that stay, ascending, when the others are removed few at a time."""
    units = readings[0].layout.units
    alive = np.ones(units, bool)
    surgeons = [_Surgeon(reading) for reading in readings]
    while (left := int(alive.sum())) > count:
        losses = sum((surgeon.losses(alive) for surgeon in surgeons), np.zeros(units))
        step = min(left - count, max(1, units // _STEPS))
        gone = np.flatnonzero(alive)[np.argsort(losses[alive], kind="stable")[:step]]
        alive[gone] = False
        for surgeon in surgeons:
            surgeon.remove(gone)
    return np.flatnonzero(alive)


def largest(scores: Array, count: int) -> Array:
    """The `count` units of the largest scores, ascending; ties go to the first."""
    found: Array = np.sort(np.argsort(-scores, kind="stable")[:count])
    return found


def made_up(reading: Reading, kept: Array) -> Array:
    """The weight on the units `kept` that answers most nearly as all did, `[kept inputs, outputs]`.

    Raises:
        numpy.linalg.LinAlgError: Activations are not finite.
    """
    entries = reading.layout.entries(kept)
    weight = reading.weight.astype(np.float64)
    ridge = _ridge(reading.own)
    left = reading.own[np.ix_(entries, entries)] + ridge * np.eye(len(entries))
    right = reading.across[entries] @ weight + ridge * weight[entries]
    found: Array = np.linalg.solve(left, right)
    return found


class _Surgeon:
    """One weight while units are taken from it; the others change to make up for each."""

    def __init__(self, reading: Reading) -> None:
        self._layout = reading.layout
        self._weight = reading.weight.astype(np.float64)
        self._inverse = np.linalg.inv(reading.own + _ridge(reading.own) * np.eye(len(reading.own)))
        self._blocks = np.stack(_blocks(reading.layout))

    def losses(self, alive: Array) -> Array:
        """Infinite for what is gone."""
        found = np.full(len(alive), np.inf)
        blocks = self._blocks[alive]
        inner = self._inverse[blocks[:, :, None], blocks[:, None, :]]
        weight = self._weight[blocks]
        found[alive] = np.sum(weight * np.linalg.solve(inner, weight), axis=(1, 2))
        return found

    def remove(self, units: Array) -> None:
        at = self._blocks[units].reshape(-1)
        columns = self._inverse[:, at]
        gain = np.linalg.solve(columns[at], columns.T).T
        self._weight -= gain @ self._weight[at]
        self._inverse -= gain @ columns.T
        # What is gone must not come back as rounding; the diagonal keeps solves possible.
        self._inverse[at] = self._inverse[:, at] = 0.0
        self._inverse[at, at] = 1.0
        self._weight[at] = 0.0


def _blocks(layout: Layout) -> list[Array]:
    """Entries of each unit."""
    return [layout.entries(np.array([unit])) for unit in range(layout.units)]


def _ridge(own: Array) -> float:
    return _RIDGE_RATIO * float(np.trace(own)) / len(own) + np.finfo(np.float64).tiny
