"""How far apart are two distributions? Three numbers that people know, from counts by bin.

They say how large a difference is, not whether it is more than chance: `drift_evidence` does.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

_SMOOTHING: Final = 0.5
"""Added to each bin, so that an empty one is no infinite difference."""
Counts: TypeAlias = Sequence[float] | NDArray[np.float64]
Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Distances:
    """`psi`: population stability index; `js`: Jensen-Shannon divergence in bits, 0 to 1.

    `ks`: Kolmogorov-Smirnov distance at the bins' edges, or for categories the largest difference
    of a share; 0 to 1.
    """

    psi: float
    js: float
    ks: float


def distances(reference: Counts, live: Counts, *, ordered: bool) -> Distances | None:
    """How far `live` is from `reference`; None where one of them is empty.

    Args:
        ordered: Whether the bins follow each other on a line; else they are categories.
    """
    expected, found = np.asarray(reference, dtype=float), np.asarray(live, dtype=float)
    if not expected.sum() or not found.sum():
        return None
    p, q = _smooth(expected), _smooth(found)
    middle = (p + q) / 2
    exact = found / found.sum() - expected / expected.sum()
    moved = np.cumsum(exact) if ordered else exact
    return Distances(
        psi=float(((q - p) * np.log(q / p)).sum()),
        js=float((p * np.log2(p / middle)).sum() / 2 + (q * np.log2(q / middle)).sum() / 2),
        ks=float(np.abs(moved).max()),
    )


def _smooth(
    counts: Floats,
) -> Floats:
    made = counts + _SMOOTHING
    shares: Floats = made / made.sum()
    return shares


def fixed_band(rows: float, alpha: float) -> float:
    """How far a sample's distribution function may be from the true one, looked at once.

    Dvoretzky, Kiefer and Wolfowitz with Massart's constant (1990).
    """
    return math.sqrt(math.log(2.0 / alpha) / (2.0 * rows)) if rows else 1.0


def uniform_band(rows: float, alpha: float) -> float:
    """The same however often one looks while the sample grows.

    Howard and Ramdas, "Sequential estimation of quantiles", Bernoulli 2022 (arXiv 1906.09712).
    """
    if not rows:
        return 1.0
    iterated = math.log(math.log(math.e * max(rows, 1.0)))
    return min(1.0, 0.85 * math.sqrt((iterated + 0.8 * math.log(1612.0 / alpha)) / rows))
