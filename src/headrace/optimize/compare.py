"""Comparison of two models' answers to the same inputs. Pure.

Relative differences are over the larger of the value and the median of its output, so that a score
of 1e-9 that becomes 2e-9 does not count as a doubling.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.core import Array, Datatype, ModelSignature, Tensors
from headrace.runtimes.tables.tabular import PREDICTION

TOLERANCES: Final = {Datatype.FP64: 1e-6, Datatype.FP32: 1e-4, Datatype.FP16: 1e-2}
"""Largest relative difference that counts as rounding, by the datatype of the computation."""
MAX_CHANGED_RATIO: Final = 1e-3
"""Share of rows whose class may change."""
_TIE_RATIO: Final = 1e-6
"""Relative score difference below which classes tie, as rounding decides between them."""
_MATRIX: Final = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class DifferenceLimits:
    """Limits of the differences between answers; `tolerance` is relative."""

    tolerance: float
    max_changed_ratio: float = MAX_CHANGED_RATIO


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Differences between two models' answers over some rows."""

    inputs: str
    """Description of the compared inputs."""
    rows: int
    largest_absolute: float = 0.0
    largest_relative: float = 0.0
    output: str = ""
    """Output with the largest relative difference."""
    beyond_rows: int = 0
    """Rows with a difference above the tolerance."""
    changed_rows: int = 0
    """Rows with another class or another value of a non-float output; ties do not count."""

    @property
    def changed_ratio(self) -> float:
        """Share of rows with another class."""
        return self.changed_rows / self.rows if self.rows else 0.0

    def problem(self, limits: DifferenceLimits) -> str:
        """Return why the differences exceed the limits; empty if they do not."""
        problems = []
        if not self.largest_relative <= limits.tolerance:
            problems.append(
                f"output '{self.output}' differs by up to {self.largest_relative:.2g} of its "
                f"value ({self.largest_absolute:.2g} absolute), in {self.beyond_rows} of "
                f"{self.rows} rows by more than the tolerance of {limits.tolerance:g}"
            )
        if not self.changed_ratio <= limits.max_changed_ratio:
            problems.append(
                f"{self.changed_rows} of {self.rows} rows ({self.changed_ratio:.2%}) get another "
                f"class; the limit is {limits.max_changed_ratio:.2%}"
            )
        return f"on {self.inputs}, " + ", and ".join(problems) if problems else ""


def compare(
    signature: ModelSignature, expected: Tensors, actual: Tensors, *, inputs: str, tolerance: float
) -> Comparison:
    """Compare `actual` with the source's answers `expected`, row by row.

    Args:
        signature: Of the source; a model that is not batched counts as one row.
        inputs: Description of the inputs.
        tolerance: Relative difference above which a row is counted.
    """
    rows = next(iter(expected.values())).shape[0] if signature.batched else 1
    absolute, relative, location = 0.0, 0.0, ""
    beyond, changed, ties = (np.zeros(rows, bool) for _ in range(3))
    has_classes = any(array.dtype.kind not in "fc" for array in expected.values())
    for name, reference in expected.items():
        answer = actual[name]
        if reference.shape != answer.shape:
            location, absolute, relative = name, np.inf, np.inf
            beyond[:] = True
            continue
        if reference.dtype.kind not in "fc":
            changed |= _by_row(reference != answer, rows)
            continue
        difference, ratio = _apart(reference, answer)
        beyond |= _by_row(~(ratio <= tolerance), rows)
        if not has_classes and rows > 1 and _are_scores(name, reference):
            changed |= reference.argmax(axis=1) != answer.argmax(axis=1)
        if rows > 1 and _are_scores(name, reference):
            ties |= _tie(reference, answer)
        absolute = max(absolute, _largest(difference))
        if _largest(ratio) >= relative:
            relative, location = _largest(ratio), name
    return Comparison(
        inputs=inputs,
        rows=rows,
        largest_absolute=absolute,
        largest_relative=relative,
        output=location,
        beyond_rows=int(beyond.sum()),
        changed_rows=int((changed & ~ties).sum()),
    )


def worst(comparisons: Sequence[Comparison]) -> Comparison:
    """Merge comparisons into one."""
    largest = max(comparisons, key=lambda comparison: comparison.largest_relative)
    return Comparison(
        inputs=" and ".join(dict.fromkeys(comparison.inputs for comparison in comparisons)),
        rows=sum(comparison.rows for comparison in comparisons),
        largest_absolute=max(comparison.largest_absolute for comparison in comparisons),
        largest_relative=largest.largest_relative,
        output=largest.output,
        beyond_rows=sum(comparison.beyond_rows for comparison in comparisons),
        changed_rows=sum(comparison.changed_rows for comparison in comparisons),
    )


def _are_scores(name: str, answers: Array) -> bool:
    """Return whether a row's largest answer is its class."""
    return name != PREDICTION and answers.ndim == _MATRIX and answers.shape[1] > 1


def _tie(expected: Array, actual: Array) -> Array:
    """Return a mask of rows whose class in `actual` ties with the best class in `expected`."""
    best = expected.max(axis=1)
    selected = np.take_along_axis(expected, actual.argmax(axis=1)[:, None], axis=1)[:, 0]
    second = np.partition(expected, -2, axis=1)[:, -2]
    margin = _TIE_RATIO * np.abs(best)
    with np.errstate(invalid="ignore"):  # of infinities
        is_tie: Array = (best - selected <= margin) & (best - second <= margin)
    return is_tie


def _apart(expected: Array, actual: Array) -> tuple[Array, Array]:
    """Return absolute and relative differences; equal infinities and NaNs count as 0."""
    wide_expected, wide_actual = expected.astype(np.float64), actual.astype(np.float64)
    same = (wide_expected == wide_actual) | (np.isnan(wide_expected) & np.isnan(wide_actual))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(same, 0.0, np.abs(wide_actual - wide_expected))
        difference[np.isnan(difference)] = np.inf  # a number on one side only
        sizes = np.abs(wide_expected)
        finite = sizes[np.isfinite(sizes)]
        usual = float(np.median(finite)) if finite.size else 0.0
        scale = np.maximum(np.where(np.isfinite(sizes), sizes, 0.0), usual)
        tiny = float(np.finfo(np.float64).tiny)
        ratio = np.where(same, 0.0, difference / np.maximum(scale, tiny))
    return difference, ratio


def _by_row(mask: Array, rows: int) -> Array:
    """Reduce a mask to rows."""
    return np.asarray(np.asarray(mask, bool).reshape(rows, -1).any(axis=1))


def _largest(array: Array) -> float:
    return float(array.max()) if array.size else 0.0
