"""How alike are two models' answers in one output? Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.core import Array
from headrace.optimize.accuracy.rounding import Pair, chunks

_SCORES: Final = ("logit", "prob", "score", "class", "softmax", "label")
_NUMBERS: Final = ("embed", "hidden", "pool", "feature", "vector", "box")
_NEAR_ONE: Final = 1e-2
_LOOKED_AT: Final = 16
_MOST: Final = 1e9
_QUANTILES: Final = (0.5, 0.95, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputFidelity:
    """One output, over `n` examples.

    `error_ratio`: size of the differences over the spread of the baseline's answers.
    `quantiles`: of that by example: median, 95 %, largest. `agreement_ratio`: places with the same
    class; None where the output tells none. `largest_relative`: the largest difference of a number
    over its own value, or over the output's usual size where that is larger.
    """

    n: int
    error_ratio: float = 0.0
    quantiles: tuple[float, float, float] = (0.0, 0.0, 0.0)
    agreement_ratio: float | None = None
    largest_relative: float = 0.0


def problem_of(name: str, pairs: Sequence[Pair]) -> str:
    """Why answers cannot even be compared; empty if they can."""
    for was, now in pairs:
        if was.shape != now.shape or was.dtype.kind != now.dtype.kind:
            return (
                f"output '{name}' is {now.dtype} {list(now.shape)} instead of {was.dtype} "
                f"{list(was.shape)}"
            )
        if now.dtype.kind == "f" and (np.isfinite(was) & ~np.isfinite(now)).any():
            return f"output '{name}' answers with what is no finite number"
    return ""


def compared(name: str, pairs: Sequence[Pair]) -> tuple[OutputFidelity, Array]:
    """The differences, and the share of each example's places that tell the same class."""
    share = _share_of_same(name, pairs)
    ratio = None if share is None else float(share.mean())
    same = np.ones(len(pairs)) if share is None else share
    if pairs[0][0].dtype.kind != "f":
        return OutputFidelity(n=len(pairs), agreement_ratio=ratio), same
    errors, relative = _errors(pairs)
    overall = float(np.sqrt((errors**2).mean()))
    low, high, most = np.quantile(errors, _QUANTILES).tolist()
    found = OutputFidelity(
        n=len(pairs),
        error_ratio=overall,
        quantiles=(low, high, most),
        agreement_ratio=ratio,
        largest_relative=relative,
    )
    return found, same


def tells_class(name: str, rows: Sequence[Array]) -> bool:
    """Whether the largest of an output's numbers, along its last axis, is the answer's class.

    Told by the name, by rows that sum to one, and by there being one row without unit length:
    embeddings are often of that.
    """
    first = rows[0]
    if first.ndim == 0 or first.shape[-1] < 2:  # noqa: PLR2004  # of one, none is the largest
        return False
    lower = name.lower()
    if any(word in lower for word in _NUMBERS):
        return False
    if any(word in lower for word in _SCORES):
        return True
    seen = [row.astype(np.float64) for row in rows[:_LOOKED_AT]]
    if all((row >= 0).all() and _are_one(row.sum(axis=-1)) for row in seen):
        return True
    return first.ndim == 1 and not all(_are_one(np.linalg.norm(row)) for row in seen)


def _are_one(values: Array | np.floating) -> bool:
    return bool((np.abs(np.asarray(values) - 1.0) < _NEAR_ONE).all())


def _share_of_same(name: str, pairs: Sequence[Pair]) -> Array | None:
    if pairs[0][0].dtype.kind != "f":
        return np.array([float(np.mean(was == now)) if was.size else 1.0 for was, now in pairs])
    if not tells_class(name, [was for was, _ in pairs]):
        return None
    return np.array(
        [float(np.mean(was.argmax(axis=-1) == now.argmax(axis=-1))) for was, now in pairs]
    )


def _errors(pairs: Sequence[Pair]) -> tuple[Array, float]:
    """By example: root mean squared difference over the spread; and the largest relative one."""
    width = _width(pairs)
    total, columns, squares, count = 0.0, np.zeros(width), np.zeros(width), 0
    for was, _, _ in chunks(pairs):
        by_column = np.where(np.isfinite(was), was, 0.0).reshape(-1, width)
        columns, squares = columns + by_column.sum(axis=0), squares + (by_column**2).sum(axis=0)
        total, count = total + float(np.abs(by_column).sum()), count + len(by_column)
    mean = columns / max(count, 1)
    variance = float((squares / max(count, 1) - mean**2).mean())
    mean_square = float((squares / max(count, 1)).mean())
    # Answers that are all the same have no spread: then their size is what there is.
    scale = np.sqrt(variance if variance > 1e-12 * mean_square else mean_square)
    usual = total / max(count * width, 1)
    found, relative = np.zeros(len(pairs)), 0.0
    for was, now, owner in chunks(pairs):
        apart = np.where(np.isfinite(was), now - was, 0.0)
        found += np.bincount(owner, apart**2, len(pairs))
        sizes = np.maximum(np.abs(np.where(np.isfinite(was), was, np.inf)), usual)
        told = np.abs(apart) / np.maximum(sizes, np.finfo(np.float64).tiny)
        relative = max(relative, float(told.max(initial=0.0)))
    sizes = np.maximum([was.size for was, _ in pairs], 1)
    errors = np.sqrt(found / sizes)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(errors > 0, errors / scale, 0.0)
    return np.minimum(ratio, _MOST), min(relative, _MOST)


def _width(pairs: Sequence[Pair]) -> int:
    """Size of the last axis, if all have the same; else 1."""
    widths = {was.shape[-1] if was.ndim else 1 for was, _ in pairs}
    width = widths.pop()
    return width if not widths and width else 1
