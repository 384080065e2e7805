"""Does a model still answer as it did when it was verified?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headrace.core import Array, HeadraceError, Tensors
from headrace.runtimes.base import Model
from headrace.runtimes.check_file import Asked
from headrace.runtimes.optimized_manifest import Check

_SMALLEST = 1e-12


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How answers compare with those that were recorded, counted in rows.

    `far`: rows beyond the tolerance. `changed`: rows with another class, whole number or text.
    `differing`: rows that are either. `worst_ratio`: the largest difference, over its output's
    largest magnitude. `problem`: why this is not the model that was verified; empty if it is.
    """

    rows: int = 0
    far: int = 0
    changed: int = 0
    differing: int = 0
    worst_ratio: float = 0.0
    problem: str = ""


def ask_again(model: Model, asked: Sequence[Asked], check: Check) -> Outcome:
    """Run every request, and compare the answers with those that were recorded.

    A row is far if a value of a float output is off by more than `check.tolerance` of the largest
    magnitude with which this output was recorded; none may be. A row is changed if a matrix of
    scores has its largest in another column, or if what is no float is not equal. Of these there
    may be a share of `check.max_changed_ratio`: two scores may be all but equal.
    """
    scales = _scales(asked)
    far: list[Array] = []
    changed: list[Array] = []
    worst_ratio = 0.0
    for number, (inputs, recorded) in enumerate(asked):
        try:
            given = model.run(inputs, tuple(recorded))
        except HeadraceError as error:
            return Outcome(problem=f"request {number}, which it answered then, fails: {error}")
        ratios, others = _compared(given, recorded, scales, batched=model.signature.batched)
        worst_ratio = max(worst_ratio, float(ratios.max(initial=0.0)))
        far.append(ratios > check.tolerance)
        changed.append(others)
    return _outcome(np.concatenate(far), np.concatenate(changed), worst_ratio, check)


def _outcome(far: Array, changed: Array, worst_ratio: float, check: Check) -> Outcome:
    rows, differing = far.size, int((far | changed).sum())
    problem = ""
    if far.any() or changed.sum() > check.max_changed_ratio * rows:
        by = f", by up to {worst_ratio:.2g} of the largest value" if far.any() else ""
        problem = f"{differing} of {rows} answers differ{by}"
    return Outcome(
        rows=rows,
        far=int(far.sum()),
        changed=int(changed.sum()),
        differing=differing,
        worst_ratio=worst_ratio,
        problem=problem,
    )


def _scales(asked: Sequence[Asked]) -> dict[str, float]:
    """For each float output the largest magnitude that was recorded."""
    scales: dict[str, float] = {}
    for _, answers in asked:
        for name, array in answers.items():
            if array.dtype.kind == "f":
                magnitudes = np.abs(array[np.isfinite(array)].astype(np.float64))
                scales[name] = max(scales.get(name, _SMALLEST), magnitudes.max(initial=0.0))
    return scales


def _compared(
    given: Tensors, recorded: Tensors, scales: dict[str, float], *, batched: bool
) -> tuple[Array, Array]:
    """For each row how far it is off at most, and whether it changed."""
    rows = next(iter(recorded.values())).shape[0] if batched else 1
    ratios, changed = np.zeros(rows), np.zeros(rows, np.bool_)
    for name, want in recorded.items():
        got = given[name]
        if got.shape != want.shape or got.dtype != want.dtype:
            return np.full(rows, math.inf), np.ones(rows, np.bool_)
        flat_got, flat_want = got.reshape(rows, -1), want.reshape(rows, -1)
        if want.dtype.kind != "f":
            changed |= (flat_got != flat_want).any(axis=1)
            continue
        ratios = np.maximum(ratios, _off(flat_got, flat_want) / scales[name])
        if batched and want.ndim == 2 and want.shape[1] > 1:  # noqa: PLR2004  # rows and classes
            changed |= got.argmax(axis=1) != want.argmax(axis=1)
    return ratios, changed


def _off(got: Array, want: Array) -> Array:
    """For each row the largest difference; infinite where one is no number and the other is."""
    got, want = got.astype(np.float64), want.astype(np.float64)
    same = (got == want) | (np.isnan(got) & np.isnan(want))
    with np.errstate(invalid="ignore"):  # infinity less infinity
        off = np.abs(got - want)
    off = np.where(same, 0.0, np.where(np.isnan(off), math.inf, off))
    found: Array = off.max(axis=1, initial=0.0)
    return found
