"""Trees: in their own library, and in ONNX Runtime.

For one row most of a library's time goes into the call, which is short in ONNX Runtime; for many
rows XGBoost and CatBoost walk their trees several times as fast. So neither is better, and
`by_batch` lets each have the batches that it is quicker at.

Compilers are left out. tl2cgen (last released in March 2024, and it needs a C compiler) is slower
than ONNX Runtime for one row, and for 1,024 as fast to 2.4 times as fast. lleaves is 1.3 to six
times as fast from 8 rows on, for LightGBM alone; but it compiles a hundred trees for several
seconds, brings 130 MB of LLVM, and its last release (December 2024) needs llvmlite 0.44. What
either makes is machine code, which a replica had to be allowed to run.
"""

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import numpy as np

from headrace.core import HeadraceError, Tensors
from headrace.optimize.by_batch import MIX_TOLERANCE
from headrace.optimize.candidate import Candidate, CannotBuildError, ModelClass, Recipe, Workshop
from headrace.optimize.compare import MAX_CHANGED_RATIO, Comparison, compare
from headrace.optimize.convert import Conversion, convert
from headrace.optimize.sources import open_source, with_version
from headrace.runtimes import Model
from headrace.runtimes.reasons import reason_of
from headrace.runtimes.tuning import Tuning

NATIVE: Final = "native"
ONNX: Final = "onnxruntime-trees"
_FILE: Final = "model.onnx"
_NEEDS: Final = {
    "catboost": ("onnx",),
    "lightgbm": ("onnx", "onnxmltools"),
    "sklearn": ("onnx", "skl2onnx"),
    "xgboost": ("onnx", "onnxmltools"),
}
"""By runtime, what its converter imports."""
_PACKAGES: Final = {
    "catboost": ("catboost",),
    "lightgbm": ("lightgbm",),
    "sklearn": ("scikit-learn",),
    "xgboost": ("xgboost", "xgboost-cpu"),
}
_MOST_ROWS: Final = 4096
"""Of those that are given; made-up ones are compared besides."""


class NativeTrees:
    """The model in the library that made it: what all others are measured against."""

    name = NATIVE
    title = "its own library"

    def why_not(self, workshop: Workshop) -> str:
        """It needs a model of such a library."""
        return _why_none(workshop)

    def build(self, workshop: Workshop) -> Sequence[Candidate]:
        """The source itself.

        Raises:
            CannotBuildError: It is of another library.
        """
        _check(self, workshop)
        library = with_version(*_PACKAGES[workshop.runtime])
        return [
            Candidate(
                name=NATIVE,
                title=f"{library}, as it is",
                runtime=workshop.runtime,
                path=workshop.source,
                recipe={"what": "nothing is rewritten", "library": library},
            )
        ]


class OnnxTrees:
    """The model as ONNX, whose answers were compared with its own library's."""

    name = ONNX
    title = "converted, ONNX Runtime"

    def why_not(self, workshop: Workshop) -> str:
        """It needs a model of such a library, and a converter for it."""
        if why := _why_none(workshop):
            return why
        for package in _NEEDS[workshop.runtime]:
            if find_spec(package) is None:
                return f"needs the package '{package}': pip install 'headrace[convert]'"
        return ""

    def build(self, workshop: Workshop) -> Sequence[Candidate]:
        """Convert it, and compare the answers to made-up rows and to the examples.

        Raises:
            CannotBuildError: It cannot be converted, or answers differently then.
        """
        _check(self, workshop)
        workshop.say("converting the trees to ONNX")
        target = workshop.folder / _FILE
        try:
            source = open_source(workshop.source, workshop.runtime, allow_code=False)
            try:
                given = as_rows(workshop.calibration[:_MOST_ROWS])
                made = convert(source, target, given=given, max_changed_ratio=MAX_CHANGED_RATIO)
            finally:
                source.model.close()
        except HeadraceError as error:
            raise CannotBuildError(reason_of(error)) from error
        return [
            Candidate(
                name=ONNX,
                title=f"ONNX Runtime, trees in {made.computes}",
                runtime="onnx",
                path=target,
                tuning=Tuning(),
                recipe=_recipe(made, target),
            )
        ]


TREE_RECIPES: Final[tuple[Recipe, ...]] = (NativeTrees(), OnnxTrees())


def as_rows(requests: Sequence[Tensors]) -> Tensors | None:
    """Requests of one row each as one batch; None if there are none.

    Raises:
        CannotBuildError: They do not have the same inputs and columns.
    """
    if not requests:
        return None
    try:
        return {name: np.concatenate([one[name] for one in requests]) for name in requests[0]}
    except (KeyError, ValueError) as error:
        msg = f"the examples are not alike, so that they make no batch: {reason_of(error)}"
        raise CannotBuildError(msg) from error


def differences(one: Model, other: Model, inputs: Tensors, *, what: str = "examples") -> Comparison:
    """How far apart two engines' answers to the same rows are, for `by_batch.why_not_mixed`."""
    return compare(
        one.signature, one.run(inputs), other.run(inputs), inputs=what, tolerance=MIX_TOLERANCE
    )


def _why_none(workshop: Workshop) -> str:
    if workshop.runtime not in _NEEDS:
        return (
            f"is a model of the runtime '{workshop.runtime}'; those of {', '.join(sorted(_NEEDS))} "
            "are rewritten"
        )
    if workshop.model_class not in {ModelClass.TREES, ModelClass.OTHER}:
        return f"it is no model of trees but a {workshop.model_class}"
    return ""


def _check(recipe: Recipe, workshop: Workshop) -> None:
    if why := recipe.why_not(workshop):
        raise CannotBuildError(why)


def _recipe(made: Conversion, file: Path) -> Mapping[str, str]:
    found = made.differences
    return {
        "what": f"its trees as ONNX that computes in {made.computes}",
        "converter": made.converter,
        "library": made.library,
        "onnxruntime": with_version("onnxruntime"),
        "compared_inputs": found.inputs,
        "compared_rows": str(found.rows),
        "largest_absolute_difference": f"{found.largest_absolute:.3g}",
        "largest_relative_difference": f"{found.largest_relative:.3g}",
        "tolerance": f"{made.tolerance:g}",
        "changed_rows": str(found.changed_rows),
        "size_bytes": str(file.stat().st_size),
    }
