"""What is left of the evidence when the worst moments do not count?

A stall (a page that is swapped in, a collector that stops the world, a neighbour that takes the
core) hits all requests of a moment together. They are counted as many and are one event, so a few
of them would condemn a good version. Therefore harm must show without the worst intervals, too.

Leaving an interval out is the capital of a gambler who abstained there, and the smallest capital
over all choices of what to leave out is at most that of the gambler who never abstained, for whom
Ville's inequality holds already. So it costs power and no validity. It is also at most that of the
gambler who abstained exactly where the stalls were, for whom requests need to be independent
nowhere else. Each stake leaves out its own worst intervals; that is at most the least of all.
"""

from typing import Final

import numpy as np

from headrace.rollout.betting import STAKES, Array

FORGIVEN: Final = 3
"""How many intervals between two looks do not count."""


def nothing_yet(tests: int) -> Array:
    """The worst intervals' growth before the first one, `[tests, stakes, forgiven]`."""
    return np.zeros((tests, len(STAKES), FORGIVEN))


def with_interval(worst: Array, growth: Array) -> Array:
    """The worst intervals' growth, descending, with one more interval's.

    Args:
        worst: `[..., stakes, forgiven]`, logarithms, at least 0.
        growth: By how much the interval multiplied each capital, `[..., stakes]`, a logarithm.
    """
    kept = worst.copy()
    for place in range(FORGIVEN):
        here = kept[..., place].copy()
        kept[..., place] = np.maximum(here, growth)
        growth = np.minimum(here, growth)
    return kept


def grown(capitals: Array, growth: Array) -> Array:
    """Capitals after one more interval, which is left out where that makes them smaller.

    For capital that came in at several times, where what is left out cannot be told afterwards.

    Args:
        capitals: Logarithms by how many intervals may be left out, `[..., 1 + forgiven]`.
        growth: A logarithm, `[...]`.
    """
    result = capitals + growth[..., None]
    result[..., 1:] = np.minimum(result[..., 1:], capitals[..., :-1])
    return result
