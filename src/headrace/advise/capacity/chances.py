"""Probabilities of counts, exact to floating point: Poisson and binomial."""

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


def poisson(means: Array, counts: Integers) -> Array:
    """Probabilities of `counts` for each mean above 0, [mean, count]."""
    logs = counts[None, :] * np.log(means[:, None]) - means[:, None]
    found: Array = np.exp(logs - log_factorials(int(counts.max()))[counts][None, :])
    return found


def binomial(trials: Integers, counts: Integers, chance: float) -> Array:
    """Probabilities of `counts` successes, each with a chance between 0 and 1, [trials, count]."""
    n, k = trials[:, None], counts[None, :]
    known = log_factorials(int(max(trials.max(), counts.max())))
    fails = np.maximum(n - k, 0)
    logs = known[n] - known[k] - known[fails] + k * np.log(chance) + fails * np.log1p(-chance)
    found: Array = np.where(k <= n, np.exp(np.minimum(logs, 0.0)), 0.0)
    return found


def log_factorials(largest: int) -> Array:
    """Logarithms of 0! to `largest`!."""
    found: Array = np.concatenate(([0.0], np.cumsum(np.log(np.arange(1.0, largest + 1.0)))))
    return found
