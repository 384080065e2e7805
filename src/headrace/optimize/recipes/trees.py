"""Engines for tree models (native library, ONNX Runtime), and their choice by batch size. Pure.

CatBoost takes ten times as long as ONNX Runtime for one row, and a fifth of its time for 1,024
rows. A second engine costs memory and is a second source of failures, so it must be at least a
tenth faster at some served batch size, by more than the measurement error.

Answers must not depend on the batch. Engines sum and round in different orders; `mixing_problem`
reports whether that is visible.

For one row most of a library's time is call overhead, which is small in ONNX Runtime; for many rows
XGBoost and CatBoost evaluate their trees several times as fast. So neither is better, and
`choose_by_batch` assigns each the batches for which it is faster.

Compilers are not used. tl2cgen (last released in March 2024, and it needs a C compiler) is slower
than ONNX Runtime for one row, and for 1,024 as fast to 2.4 times as fast. lleaves is 1.3 to six
times as fast from 8 rows on, for LightGBM alone; but it compiles a hundred trees for several
seconds, brings 130 MB of LLVM, and its last release (December 2024) needs llvmlite 0.44. Both
produce machine code, which a replica would have to be allowed to run.
"""

import math
from bisect import bisect_left
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import combinations, permutations
from typing import Final, NamedTuple

import numpy as np

from headrace.core import HeadraceError, Tensors
from headrace.optimize.candidate import (
    Candidate,
    CannotBuildError,
    ModelClass,
    Recipe,
    RecipeContext,
)
from headrace.optimize.compare import MAX_CHANGED_RATIO, Comparison, compare
from headrace.optimize.convert.convert import convert
from headrace.optimize.sources import open_source, with_version
from headrace.runtimes import Model
from headrace.runtimes.libraries import reason_of

GAIN_RATIO: Final = 0.10
"""Least gain at some batch size for which a second engine is loaded."""
SLACK_RATIO: Final = 0.03
"""Largest slowdown at other batch sizes that counts as equal."""
MAX_MEMBERS: Final = 3
MIX_TOLERANCE: Final = 1e-5
"""Largest relative difference between two engines' answers to the same row."""


class CallTime(NamedTuple):
    """Measured time of one call in seconds, with its confidence interval."""

    value: float
    low: float
    high: float


Measured = Mapping[int, CallTime]
"""Call times by batch size in rows."""
Choice = tuple[str, int | None]
"""An engine and the largest batch, in rows, that it runs; None for no limit."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """Engines in the order of the batch sizes that they run."""

    engines: tuple[str, ...]
    starts: tuple[int, ...]
    """Index of the first batch size of each engine."""

    def engine(self, index: int) -> str:
        """Return the engine of the size at `index`."""
        return self.engines[sum(start <= index for start in self.starts) - 1]


def choose_by_batch(
    measured: Mapping[str, Measured],
    *,
    unlike: Collection[frozenset[str]] = (),
) -> list[Choice]:
    """Choose as few engines as are worthwhile, the one for the smallest batches first.

    If an engine was not measured at a size that others were, its time is interpolated on
    logarithmic scales. Below its smallest size a batch takes as long as at that size; above its
    largest size each row takes as long as there.

    Args:
        measured: By engine, at one size at least; of two equal ones the first wins.
        unlike: Pairs whose answers differ, by `mixing_problem`.
    """
    served = sorted({rows for times in measured.values() for rows in times})
    times = {
        name: [_time_at(by_rows, rows) for rows in served] for name, by_rows in measured.items()
    }
    alone = best = min(_plans(tuple(times), 1, len(served)), key=lambda plan: _cost(plan, times))
    for members in range(2, min(MAX_MEMBERS, len(times), len(served)) + 1):
        worth = [
            plan
            for plan in _plans(tuple(times), members, len(served))
            if not any(pair <= set(plan.engines) for pair in unlike)
            and _is_never_slower(plan, alone, times)
            and _is_never_slower(plan, best, times)
            and all(
                _gains(plan, other, times)
                for other in (best, *(_Plan((name,), (0,)) for name in plan.engines))
            )
        ]
        if not worth:
            break
        best = min(worth, key=lambda plan: _cost(plan, times))
    ends = [
        _last_rows(measured[best.engines[i]], measured[best.engines[i + 1]], served, start)
        for i, start in enumerate(best.starts[1:])
    ]
    return list(zip(best.engines, [*ends, None], strict=True))


def mixing_problem(comparison: Comparison) -> str:
    """Return why two engines may not share a model; empty if they may.

    Rounding may show in the sixth digit of a probability; a row's class may not depend on the other
    rows of its batch. The rows should resemble served ones, as engines that compare in another
    precision only differ on some data.

    Args:
        comparison: Difference of one engine's answers from the other's.
    """
    if comparison.changed_rows:
        return (
            f"{comparison.changed_rows} of {comparison.rows} rows would get another class in a "
            "batch of another size"
        )
    if not comparison.largest_relative <= MIX_TOLERANCE:
        return (
            f"output '{comparison.output}' would change by up to "
            f"{comparison.largest_relative:.2g} of its value with the batch size; "
            f"{MIX_TOLERANCE:g} may be rounding"
        )
    return ""


def _time_at(times: Measured, rows: int) -> CallTime:
    """Return an engine's time at a batch size, interpolated."""
    sizes = sorted(times)
    index = bisect_left(sizes, rows)
    if index == 0 or rows in times:
        return times[sizes[index]]
    below = times[sizes[index - 1]]
    if index == len(sizes):
        return CallTime(*(rows / sizes[-1] * seconds for seconds in below))
    above = times[sizes[index]]
    share = math.log(rows / sizes[index - 1]) / math.log(sizes[index] / sizes[index - 1])
    return CallTime(*(a ** (1 - share) * b**share for a, b in zip(below, above, strict=True)))


def _plans(names: tuple[str, ...], members: int, sizes: int) -> Iterator[_Plan]:
    """Yield all assignments of sizes to this many engines."""
    for engines in permutations(names, members):
        for starts in combinations(range(1, sizes), members - 1):
            yield _Plan(engines, (0, *starts))


def _cost(plan: _Plan, times: Mapping[str, Sequence[CallTime]]) -> float:
    """Return the mean log time, so that relative gains count equally at all sizes."""
    sizes = len(next(iter(times.values())))
    return math.fsum(math.log(times[plan.engine(i)][i].value) for i in range(sizes))


def _is_never_slower(plan: _Plan, other: _Plan, times: Mapping[str, Sequence[CallTime]]) -> bool:
    return all(
        times[plan.engine(i)][i].value <= (1 + SLACK_RATIO) * times[other.engine(i)][i].value
        for i in range(len(next(iter(times.values()))))
    )


def _gains(plan: _Plan, other: _Plan, times: Mapping[str, Sequence[CallTime]]) -> bool:
    """Return whether a plan is significantly faster at some size."""
    for i in range(len(next(iter(times.values())))):
        own, its = times[plan.engine(i)][i], times[other.engine(i)][i]
        if own.value <= (1 - GAIN_RATIO) * its.value and own.high < its.low:
            return True
    return False


def _last_rows(small: Measured, large: Measured, served: Sequence[int], start: int) -> int:
    """Return the largest batch for `small`, where both time curves cross."""
    low, high = served[start - 1], served[start]
    while high - low > 1:
        middle = (low + high) // 2
        if _time_at(small, middle).value <= _time_at(large, middle).value:
            low = middle
        else:
            high = middle
    return low


NATIVE: Final = "native"
ONNX: Final = "onnxruntime-trees"
_FILE: Final = "model.onnx"
_NEEDS: Final = {
    "catboost": ("onnx",),
    "lightgbm": ("onnx", "onnxmltools"),
    "sklearn": ("onnx", "skl2onnx"),
    "xgboost": ("onnx", "onnxmltools"),
}
"""Packages of the converter by runtime."""
_PACKAGES: Final = {
    "catboost": ("catboost",),
    "lightgbm": ("lightgbm",),
    "sklearn": ("scikit-learn",),
    "xgboost": ("xgboost", "xgboost-cpu"),
}
_MAX_ROWS: Final = 4096
"""Most calibration rows to compare, besides generated rows."""


def _native(context: RecipeContext) -> Sequence[Candidate]:
    """Build the baseline: the model in its native library."""
    if reason := _unsupported_reason(context):
        raise CannotBuildError(reason)
    library = with_version(*_PACKAGES[context.runtime])
    return [
        Candidate(
            name=NATIVE,
            title=f"{library}, unchanged",
            runtime=context.runtime,
            path=context.source,
            recipe={"what": "nothing is rewritten", "library": library},
        )
    ]


def _onnx(context: RecipeContext) -> Sequence[Candidate]:
    """Build the model as ONNX, verified on generated rows and examples."""
    if reason := _no_onnx_reason(context):
        raise CannotBuildError(reason)
    context.on_progress("converting the trees to ONNX")
    target = context.folder / _FILE
    try:
        source = open_source(context.source, context.runtime, allow_code=False)
        try:
            data_rows = as_rows(context.calibration[:_MAX_ROWS])
            conversion = convert(
                source, target, data_rows=data_rows, max_changed_ratio=MAX_CHANGED_RATIO
            )
        finally:
            source.model.close()
    except HeadraceError as error:
        raise CannotBuildError(reason_of(error)) from error
    differences = conversion.differences
    return [
        Candidate(
            name=ONNX,
            title=f"ONNX Runtime, trees in {conversion.computes}",
            runtime="onnx",
            path=target,
            recipe={
                "what": f"its trees as ONNX that computes in {conversion.computes}",
                "converter": conversion.converter,
                "library": conversion.library,
                "onnxruntime": with_version("onnxruntime"),
                "compared_inputs": differences.inputs,
                "compared_rows": str(differences.rows),
                "largest_absolute_difference": f"{differences.largest_absolute:.3g}",
                "largest_relative_difference": f"{differences.largest_relative:.3g}",
                "tolerance": f"{conversion.tolerance:g}",
                "changed_rows": str(differences.changed_rows),
                "size_bytes": str(target.stat().st_size),
            },
        )
    ]


def as_rows(requests: Sequence[Tensors]) -> Tensors | None:
    """Concatenate requests of one row to a batch; None if there are none.

    Raises:
        CannotBuildError: Their inputs or columns differ.
    """
    if not requests:
        return None
    try:
        return {
            name: np.concatenate([request[name] for request in requests]) for name in requests[0]
        }
    except (KeyError, ValueError) as error:
        msg = f"the examples differ in shape and cannot be batched: {reason_of(error)}"
        raise CannotBuildError(msg) from error


def differences(model: Model, other: Model, inputs: Tensors) -> Comparison:
    """Compare two engines' answers to the same rows, for `mixing_problem`."""
    expected, actual = model.run(inputs), other.run(inputs)
    return compare(model.signature, expected, actual, inputs="examples", tolerance=MIX_TOLERANCE)


def _unsupported_reason(context: RecipeContext) -> str:
    if context.runtime not in _NEEDS:
        return (
            f"is a model of the runtime '{context.runtime}'; those of {', '.join(sorted(_NEEDS))} "
            "are rewritten"
        )
    if context.model_class not in {ModelClass.TREES, ModelClass.OTHER}:
        return f"it is not a tree model but a {context.model_class}"
    return ""


def _no_onnx_reason(context: RecipeContext) -> str:
    if reason := _unsupported_reason(context):
        return reason
    for package in _NEEDS[context.runtime]:
        if find_spec(package) is None:
            return f"needs the package '{package}': pip install 'headrace[convert]'"
    return ""


NATIVE_TREES: Final = Recipe(NATIVE, "its own library", _native, _unsupported_reason)
ONNX_TREES: Final = Recipe(ONNX, "converted, ONNX Runtime", _onnx, _no_onnx_reason)
TREE_RECIPES: Final = (NATIVE_TREES, ONNX_TREES)
