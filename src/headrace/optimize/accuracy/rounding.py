"""Do two models' answers differ by more than the order of their sums? Pure."""

from collections.abc import Iterator, Sequence
from typing import Final

import numpy as np

from headrace.core import Array
from headrace.optimize.accuracy.asking import Answers

ROUNDING_RATIO: Final = 1e-3
"""Of an output's usual size: kernels that sum in another order differ by less, and those that
compute with eight bits, or in bfloat16, by more."""
_AT_ONCE: Final = 4_000_000

Pair = tuple[Array, Array]
"""One example's answers: the baseline's and the candidate's, of one shape."""


def pairs_of(base: Answers, candidate: Answers, output: str) -> tuple[Array, list[Pair]]:
    """Examples that both answered in an output, by index, and the answers."""
    both = np.flatnonzero(base.has(output) & candidate.has(output))
    was, now = base.rows[output], candidate.rows.get(output, ())
    found = ((was[i], now[i]) for i in both.tolist())
    return both, [(a, b) for a, b in found if a is not None and b is not None]


def only_rounding(base: Answers, candidate: Answers) -> bool:
    """Whether every number differs by rounding at most, and something has numbers to tell by."""
    seen = False
    for name in base.rows:
        _, pairs = pairs_of(base, candidate, name)
        if not pairs or pairs[0][0].dtype.kind != "f":
            continue
        if any(was.shape != now.shape for was, now in pairs) or not _are_close(pairs):
            return False
        seen = True
    return seen


def chunks(pairs: Sequence[Pair]) -> Iterator[tuple[Array, Array, Array]]:
    """Elements of both sides, wide, and which pair each is of; some millions at a time."""
    start, size = 0, 0
    for end, (was, _) in enumerate(pairs, start=1):
        size += was.size
        if size < _AT_ONCE and end < len(pairs):
            continue
        part = pairs[start:end]
        owner = np.repeat(np.arange(start, end), [one.size for one, _ in part])
        yield _flat([one for one, _ in part]), _flat([one for _, one in part]), owner
        start, size = end, 0


def _are_close(pairs: Sequence[Pair]) -> bool:
    largest, total, count = 0.0, 0.0, 0
    for was, now, _ in chunks(pairs):
        if not np.isfinite(was).all() or not np.isfinite(now).all():
            return False
        largest = max(largest, float(np.abs(was - now).max(initial=0.0)))
        total, count = total + float(np.abs(was).sum()), count + was.size
    return largest <= ROUNDING_RATIO * total / max(count, 1)


def _flat(rows: Sequence[Array]) -> Array:
    return np.concatenate([row.reshape(-1) for row in rows]).astype(np.float64)
