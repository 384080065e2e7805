"""How do two columns of values differ, and what may have been done to one of them?"""

from collections.abc import Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from headrace.core import Array

_FEWEST: Final = 3
"""Rows that a guess is made of."""
_MOST: Final = 0.9
"""So large a part of them has to agree."""
_SPREAD: Final = 1e-3

Booleans = npt.NDArray[np.bool_]


def differing(one: Array, other: Array, tolerance: float) -> Booleans:
    """Where values are not equal; NaN equals NaN, and numbers may differ by rounding.

    Args:
        tolerance: Relative to the larger number.
    """
    if one.dtype.kind != "f":
        return np.asarray(one != other, dtype=np.bool_)
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(all="ignore"):
        is_near = np.abs(a - b) <= tolerance * np.maximum(np.abs(a), np.abs(b))
    # Infinities minus themselves are NaN, so equal ones are asked for.
    is_equal = (a == b) | (is_near & np.isfinite(a) & np.isfinite(b)) | (np.isnan(a) & np.isnan(b))
    return np.asarray(~is_equal, dtype=np.bool_)


def largest_difference(one: Array, other: Array) -> tuple[float | None, float | None]:
    """The largest absolute and the median relative difference; None where there are no numbers."""
    if one.dtype.kind not in "fi":
        return None, None
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(all="ignore"):
        absolute = np.abs(a - b)
        relative = absolute / np.maximum(np.abs(a), np.abs(b))
    absolute, relative = absolute[np.isfinite(absolute)], relative[np.isfinite(relative)]
    if not len(absolute):
        return None, None
    return float(absolute.max()), float(np.median(relative)) if len(relative) else None


def looks_like(
    name: str, served: Array, offline: Mapping[str, Array], rows: Array, tolerance: float
) -> str:
    """What may have become of the column `name` in the rows where it differs; empty: no idea.

    Args:
        offline: What it should be, and the other columns of its type.
        rows: Positions of those that differ although they are of the same time.
    """
    if len(rows) < _FEWEST:
        return ""
    mine = served[rows]
    for other, values in offline.items():
        if other == name or _is_constant(values[rows]):
            continue
        if np.mean(~differing(mine, values[rows], tolerance)) >= _MOST:
            return f"the values of {other!r}"
    if served.dtype.kind not in "fi" or _is_constant(mine):
        return ""
    return _by_arithmetic(mine.astype(np.float64), offline[name][rows].astype(np.float64))


def _by_arithmetic(served: Array, offline: Array) -> str:
    """Whether all values are so many times, or so much more than, what they should be."""
    with np.errstate(all="ignore"):
        for values, text in (
            (served / offline, "{:.6g} times the offline value"),
            (served - offline, "the offline value {:+.6g}"),
        ):
            if not np.isfinite(values).all():
                continue
            middle = float(np.median(values))
            is_near = np.abs(values - middle) <= _SPREAD * abs(middle)
            if np.mean(is_near) >= _MOST:
                return text.format(middle)
    return ""


def _is_constant(values: Array) -> bool:
    return len(set(values.tolist())) == 1
