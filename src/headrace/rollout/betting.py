"""Test martingales for a bounded mean: evidence against a mean, and confidence sequences.

Under the null hypothesis that values have a mean of at most `m`, a gambler who repeatedly stakes a
part of the capital on `value > m` multiplies it by `1 + stake * (value - m)`, which is a
non-negative supermartingale. By Ville's inequality the capital ever reaches `1 / alpha` with
probability at most `alpha`, however often it is read. The means that no gambler has refuted form a
confidence sequence. Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
betting", JRSS-B 2024 (arXiv 2010.09686).

The stakes are fixed, a geometric grid, and their capitals are averaged (a mixture, as in Robbins
1970 and Howard et al. 2021, arXiv 1810.08240). So the capital depends only on how often each value
was observed, not on the order, and any mean can be tested afterwards from a few counts.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[np.float64]

STAKES: Final[Array] = np.array([0.03 * 3.0**power for power in range(8)])
"""Stakes in units of one over the values' scale. A gambler's best stake is the effect divided by
the variance; between neighbouring stakes at least 82 % of the best growth is reached."""
WEIGHTS: Final[Array] = np.array([0.04, 0.10, 0.16, 0.17, 0.17, 0.14, 0.12, 0.10])
"""Each gambler's part of the initial capital: more for effects about as large as the rate
itself."""
_MOST: Final = 0.95
"""Maximum part of the capital that one value may lose."""
_EXACT: Final = 1e-8
_MEANS_PER_BLOCK: Final = 24
"""Number of means that are tested together in the search for a bound: few calls for few tests,
little waste for many."""


def log_growth(values: Array, scale: Array | float, mean: Array | float, *, above: bool) -> Array:
    """Return the logarithm of the factor by which each value multiplies each gambler's capital.

    Stakes are cut where a value could take more than 95 % of the capital. The cut keeps every
    factor monotone in `mean`, so that what is refuted at one mean is refuted beyond it.

    Args:
        values: Possible observations, `[..., values]`.
        scale: Factor from `STAKES` to stakes, `[...]`; any positive number is valid.
        mean: The null's mean, what broadcasts to `[...]`.
        above: Whether the null is "the mean is at most `mean`", so that values above it pay.

    Returns:
        `[..., values, stakes]`.
    """
    worst = np.min(values, axis=-1) if above else np.max(values, axis=-1)
    distance = np.abs(np.asarray(mean) - worst)
    stakes = np.minimum(
        np.asarray(scale)[..., None] * STAKES, _MOST / np.maximum(distance, 1e-12)[..., None]
    )
    gain = (values - np.asarray(mean)[..., None]) * (1.0 if above else -1.0)
    growth: Array = np.log1p(gain[..., :, None] * stakes[..., None, :])
    return growth


def mixture(log_capitals: Array) -> Array:
    """Return the log of all gamblers' total capital, from individual ones, `[..., stakes]`."""
    maximum = np.max(log_capitals, axis=-1)
    average = np.exp(log_capitals - maximum[..., None]) @ WEIGHTS
    result: Array = maximum + np.log(average)
    return result


def refuted_up_to(
    log_capital: Callable[[Array], Array], needed: Array, *, span: tuple[float, float]
) -> Array:
    """Return the largest mean that is refuted from below: a lower confidence bound.

    Args:
        log_capital: Against "at most `mean`", falling in `mean`; several means for each test at
            once, `[tests, means]` to the same.
        needed: `log(1 / alpha)`, `[tests]`.
        span: Range of the mean.

    Returns:
        `[tests]`, to eight digits; the span's lower end where nothing is refuted.
    """
    points = max(1, _MEANS_PER_BLOCK // len(needed))
    inner = np.arange(1, points + 1) / (points + 1)
    low, width = np.full(needed.shape, span[0]), span[1] - span[0]
    while width > _EXACT:
        means = low[:, None] + width * inner
        refuted = log_capital(means) >= needed[:, None]
        width /= points + 1
        low = low + width * refuted.sum(axis=-1)
    return low


def refuted_down_to(
    log_capital: Callable[[Array], Array], needed: Array, *, span: tuple[float, float]
) -> Array:
    """Return the smallest mean refuted from above: an upper bound; see `refuted_up_to`."""
    mirrored = refuted_up_to(lambda mean: log_capital(-mean), needed, span=(-span[1], -span[0]))
    return -mirrored
