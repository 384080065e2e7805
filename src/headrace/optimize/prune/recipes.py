"""Pruning recipes: smaller FP32 networks, which other recipes can quantize."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from headrace.core import Tensors
from headrace.optimize.candidate import (
    Candidate,
    CannotBuildError,
    ModelClass,
    Recipe,
    RecipeContext,
)
from headrace.optimize.child import run_in_child
from headrace.optimize.prune.groups import FEWEST_EXAMPLES, MAX_EXAMPLES, PruneCut
from headrace.runtimes.libraries import other_framework
from headrace.runtimes.onnx.file import find_onnx_file

ONNX: Final = "onnx"
_GRACE_S: Final = 60.0
"""Grace after a recipe's deadline before its process is killed."""


def _recipe(name: str, title: str, cut: PruneCut, *classes: ModelClass) -> Recipe:
    """Return a recipe of one cut for models of `classes`."""

    def build(context: RecipeContext) -> Sequence[Candidate]:
        target = context.folder / "model.onnx"
        if other_framework("torch"):  # teaching needs PyTorch
            facts = run_in_child(
                *(_prune, cut, replace(context, on_progress=_ignore_progress), target),
                returns=dict[str, str],
                raises=CannotBuildError,
                deadline=context.deadline + _GRACE_S,
                on_progress=context.on_progress,
            )
        else:
            facts = _prune(context.on_progress, cut, context, target)
        return [Candidate(name=name, title=title, runtime=ONNX, path=target, recipe=facts)]

    def inapplicable_reason(context: RecipeContext) -> str:
        if reason := _inapplicable_reason(context):
            return reason
        if context.model_class not in classes:
            return f"a {context.model_class} model has no such units"
        return ""

    return Recipe(
        name, title, build, inapplicable_reason, model_classes=frozenset(classes), prunes=True
    )


def _prune(
    on_progress: Callable[[str], None], cut: PruneCut, context: RecipeContext, target: Path
) -> dict[str, str]:
    """Write the pruned network to `target`, and return the recipe's entries."""
    from headrace.optimize.prune.pruning import prune  # noqa: PLC0415  # onnx is an extra

    pruned = prune(
        find_onnx_file(context.source),
        target,
        cut=cut,
        calibration=context.calibration,
        training=context.training,
        threads=context.threads,
        seed=context.seed,
        deadline=context.deadline,
        on_progress=on_progress,
    )
    return pruned.facts() | _versions()


def _sparse(name: str, title: str, zeros_ratio: float) -> Recipe:
    """Return a recipe of unstructured pruning, which compresses better but is no faster."""

    def build(context: RecipeContext) -> Sequence[Candidate]:
        from headrace.optimize.prune.pruning import sparsify  # noqa: PLC0415  # as above

        sparse = sparsify(
            find_onnx_file(context.source),
            context.folder / "model.onnx",
            zeros_ratio=zeros_ratio,
            examples=_examples(context)[:MAX_EXAMPLES],
            threads=context.threads,
            deadline=context.deadline,
        )
        facts = sparse.facts() | _versions()
        return [Candidate(name=name, title=title, runtime=ONNX, path=sparse.path, recipe=facts)]

    return Recipe(name, title, build, _inapplicable_reason)


def _ignore_progress(_: str) -> None:
    """Ignore progress, as a picklable default."""


def _examples(context: RecipeContext) -> Sequence[Tensors]:
    training = context.training
    return training.examples if training is not None and training.examples else context.calibration


def _inapplicable_reason(context: RecipeContext) -> str:
    if context.runtime != ONNX:
        return f"a {context.runtime} model is pruned in its ONNX form, and there is none"
    if context.model_class is ModelClass.TREES:
        return "trees have no units to cut"
    if (count := len(_examples(context))) < FEWEST_EXAMPLES:
        few = "none" if not count else f"only {count}"
        return f"it needs {FEWEST_EXAMPLES} examples to rank its units, and there are {few}"
    if find_spec("onnx") is None:
        return "needs the package 'onnx': pip install 'headrace[optimize]'"
    return ""


def _versions() -> dict[str, str]:
    packages = ["onnx", "onnxruntime"] + (["torch"] if find_spec("torch") else [])
    return {name: version(name) for name in packages}


_QUARTER, _HALF = PruneCut(ffn_ratio=0.25), PruneCut(ffn_ratio=0.5)
_QUARTERS = PruneCut(ffn_ratio=0.25, heads_ratio=0.25)
_HALVES = PruneCut(ffn_ratio=0.5, heads_ratio=0.5)
_WITH_LAYERS: Final = (ModelClass.TRANSFORMER, ModelClass.OTHER)
_CONV_NETS: Final = (ModelClass.CONV_NET, ModelClass.OTHER)
RECIPES: Final = (
    _recipe("pruned-ffn-25", "a quarter of the hidden units cut", _QUARTER, *_WITH_LAYERS),
    _recipe("pruned-ffn-50", "half of the hidden units cut", _HALF, *_WITH_LAYERS),
    _recipe(
        "pruned-ffn-25-heads-25",
        "a quarter of the hidden units and of the heads cut",
        _QUARTERS,
        ModelClass.TRANSFORMER,
    ),
    _recipe(
        "pruned-ffn-50-heads-50",
        "half of the hidden units and of the heads cut",
        _HALVES,
        ModelClass.TRANSFORMER,
    ),
    _recipe(
        "pruned-channels-25",
        "a quarter of the channels cut",
        PruneCut(channels_ratio=0.25),
        *_CONV_NETS,
    ),
    _recipe(
        "pruned-channels-50", "half of the channels cut", PruneCut(channels_ratio=0.5), *_CONV_NETS
    ),
)
"""Pruning recipes by kind, from the smallest cut to the largest."""
COMPRESSION_RECIPES: Final = (
    _sparse(
        "unstructured-50", "half of the weights zero: a smaller download, no faster on a CPU", 0.5
    ),
)
"""Recipes for the memory target only."""
