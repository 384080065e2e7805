"""Design effect of a feature's rows: how many rows carry as much as one independent row.

Rows that follow each other are often alike: one caller's, one batch's, one market's. A share over
`n` such rows varies like that over `n / effect` independent ones (Kish, "Survey Sampling", 1965;
"statistical inefficiency" in simulation). The effect is measured by batch means: the shares of
blocks of rows against the binomial variance, for blocks of several lengths, because an effect
shows in full only where blocks are longer than the dependence (Flyvbjerg and Petersen, "Error
estimates on averages of correlated data", J. Chem. Phys. 91, 1989). Neighbouring blocks are
compared with each other and not with the mean of all (von Neumann, Annals of Mathematical
Statistics 12, 1941), and one difference counts so much at most: a drift moves the level once and is
not taken for dependence.
"""

import math
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]

BATCH_ROWS: Final = 50
"""The shortest blocks that are compared. Unit: rows."""
UNKNOWN_EFFECT: Final = 10.0
"""The effect assumed of rows of which nothing was measured; it weighs as much as one difference."""
_STEADY_PAIRS: Final = 8.0
"""Weight of the mean over all lengths in the estimate of one length. Unit: differences."""
_RATIO_SPREAD: Final = 0.8
"""Standard deviation of one ratio over its mean, for about three independent events."""
_FEWEST_BLOCKS: Final = 8
"""From so many blocks on, pairs of them are compared as well."""
_ROUNDS: Final = 4
_LARGEST: Final = 6.0
"""A difference counts at most so many times what is expected."""


def ratios(
    seen: Floats, total: Floats, *, expected: Floats | float = 0.0, more: Floats | float = 0.0
) -> tuple[Floats, Floats]:
    """Return squared differences of neighbouring blocks over what independent rows would show.

    Args:
        seen: Values for which each event is true, `[blocks, events]`.
        total: Values, `[blocks]`; more than 0.
        expected: Shares that the reference says of each block, `[blocks, events]`.
        more: What the error of the expected shares adds to the sum of the inverse numbers of rows,
            `[blocks - 1]`.

    Returns:
        The ratios and the values of the shorter block, `[differences]`; neighbours without any
        variance are left out.
    """
    residual = seen / total[:, None] - expected
    pooled = (seen[1:] + seen[:-1]) / (total[1:] + total[:-1])[:, None]
    inverse = 1.0 / total[1:] + 1.0 / total[:-1] + more
    variance = (pooled * (1.0 - pooled)).sum(axis=1) * inverse
    moved = ((residual[1:] - residual[:-1]) ** 2).sum(axis=1)
    usable = variance > 0
    return moved[usable] / variance[usable], np.minimum(total[1:], total[:-1])[usable]


def design_effect(
    ratio: Floats, rows: Floats, *, prior: float = 1.0, prior_pairs: float = 1.0
) -> float:
    """Return the largest effect over the lengths of blocks, at least 1.

    Args:
        ratio: As `ratios` returns them, `[differences]`.
        rows: Of the shorter block of each difference.
        prior: The effect assumed before any difference was measured.
        prior_pairs: How many differences the prior weighs as much as.
    """
    overall = _shrunk(ratio, prior, prior_pairs)
    levels = np.floor(np.log2(np.maximum(rows, 1.0))).astype(int)
    largest = overall * (1.0 - _error(len(ratio)))
    for level in set(levels.tolist()):
        of_length = ratio[levels == level]
        effect = _shrunk(of_length, overall, _STEADY_PAIRS)
        largest = max(largest, effect * (1.0 - 2.0 * _error(len(of_length))))
    return max(1.0, largest)


def _error(count: int) -> float:
    """The relative standard error of an estimate; the largest of several is too large by it."""
    return _RATIO_SPREAD / math.sqrt(_STEADY_PAIRS + count)


def effect_in_order(seen: Floats, total: Floats) -> float:
    """Return the design effect of rows that follow each other, from blocks of them.

    Args:
        seen: Values for which each event is true, `[blocks, events]`.
        total: Values, `[blocks]`.
    """
    parts = [ratios(seen, total)]
    while len(total) >= _FEWEST_BLOCKS:
        pairs = len(total) // 2
        seen = seen[: 2 * pairs].reshape(pairs, 2, -1).sum(axis=1)
        total = total[: 2 * pairs].reshape(pairs, 2).sum(axis=1)
        parts.append(ratios(seen, total))
    ratio, rows = (np.concatenate(part) for part in zip(*parts, strict=True))
    return design_effect(ratio, rows)


def _shrunk(ratio: Floats, prior: float, pairs: float) -> float:
    """The mean of the ratios with a prior; ratios far above it count up to a bound."""
    count, effect = len(ratio), prior
    largest = float(ratio.max()) if count else 0.0
    for _ in range(_ROUNDS):
        bound = _LARGEST * max(effect, 1.0)
        total = float(np.minimum(ratio, bound).sum())
        effect = (prior * pairs + total) / (pairs + count)
        if largest <= bound:
            break
    return effect
