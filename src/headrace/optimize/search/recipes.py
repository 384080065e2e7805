"""Recipes for a model by its class, whatever it was trained with."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from headrace.core import Tensors, UnsupportedModelError
from headrace.optimize.candidate import (
    Candidate,
    CannotBuildError,
    ModelClass,
    Recipe,
    RecipeContext,
)
from headrace.optimize.prune.recipes import COMPRESSION_RECIPES
from headrace.optimize.prune.recipes import RECIPES as PRUNE_RECIPES
from headrace.optimize.recipes.catalogue import in_more_threads, recipes_for
from headrace.optimize.recipes.source import is_prepared, prepare
from headrace.optimize.recipes.trees import TREE_RECIPES, as_rows
from headrace.optimize.search.process import SearchTarget
from headrace.runtimes.onnx.facts import OnnxFacts, read_onnx_facts

ONNX: Final = "onnx"
TREE_RUNTIMES: Final = frozenset({"catboost", "lightgbm", "sklearn", "xgboost"})
_WRITTEN_BY_US: Final = {
    "optimized": "is optimized already; optimize the version that it was made of",
    "openvino": "is OpenVINO's own format, which is rewritten no further; optimize the ONNX model, "
    "or what it was exported from",
    "pipeline": "is a pipeline, of which each model is optimized by itself: name that model's file",
    "python": "is a Python model, of which nothing can be rewritten; export it to ONNX",
}
_COMPARED: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeSet:
    """What can be tried.

    `source`, of `runtime`: what recipes start from, which is ONNX wherever the model can be
    converted. `recipes`: the first one makes the baseline. `later`: the names of those that build
    on the best of the others. `notes`: for people.
    """

    model_class: ModelClass
    why_class: str
    source: Path
    runtime: str
    recipes: Sequence[Recipe]
    later: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()


def pruned_then(cut: Recipe, then: Recipe | None) -> Recipe:
    """A smaller network, and that rewritten as the best candidate so far was.

    Args:
        then: The recipe of that; None if nothing was better than the baseline.
    """
    if then is None:
        return cut

    def build(context: RecipeContext) -> Sequence[Candidate]:
        (smaller, *_) = candidates = list(cut.build(context))
        subfolder = context.folder / "then"
        subfolder.mkdir()
        again = replace(context, source=smaller.path, runtime=smaller.runtime, folder=subfolder)
        if then.inapplicable_reason(again):
            return candidates
        return [
            *candidates,
            *(
                replace(
                    candidate,
                    name=f"{cut.name}-{candidate.name}",
                    title=f"{candidate.title}, {cut.title}",
                    recipe={**smaller.recipe, **candidate.recipe},
                )
                for candidate in then.build(again)
            ),
        ]

    return replace(cut, build=build)


def find_recipes(
    source: Path,
    runtime: str,
    folder: Path,
    *,
    allow_code: bool,
    target: SearchTarget,
    examples: Sequence[Tensors],
    features: Sequence[str],
) -> RecipeSet:
    """What can be tried with a model.

    Args:
        folder: Where it is converted, if it has to be; a search that goes on in another process
            finds it there.
        given: Examples of the user's own; with none nothing is pruned, and conversions are compared
            on made-up inputs only.
        features: Of the processor, by Linux's names.

    Raises:
        UnsupportedModelError: It is damaged, or cannot be rewritten; the message says what could.
    """
    if runtime in _WRITTEN_BY_US:
        raise UnsupportedModelError(f"{source}: {_WRITTEN_BY_US[runtime]}")
    classification = classify(source, runtime)
    if runtime in TREE_RUNTIMES:
        return RecipeSet(
            model_class=ModelClass.TREES,
            why_class=classification.reason,
            source=source,
            runtime=runtime,
            recipes=TREE_RECIPES,
        )
    converted = folder / "converted"
    if not is_prepared(converted):
        shutil.rmtree(converted, ignore_errors=True)
        converted.mkdir()
    prepared = prepare(source, runtime, converted, allow_code=allow_code, data_rows=_rows(examples))
    if runtime != ONNX:
        classification = classify(prepared.onnx, ONNX)
    first, *others = recipes_for(classification.model_class, ONNX, features)
    if target in {SearchTarget.THROUGHPUT, SearchTarget.COST}:
        others = in_more_threads(others)
    later: list[Recipe] = []
    if examples:
        later += [
            recipe for recipe in PRUNE_RECIPES if classification.model_class in recipe.model_classes
        ]
        later += COMPRESSION_RECIPES if target is SearchTarget.MEMORY else ()
    return RecipeSet(
        model_class=classification.model_class,
        why_class=classification.reason,
        source=prepared.onnx,
        runtime=ONNX,
        recipes=(
            first,
            *map(_reference, prepared.frameworks),
            *others,
            *later,
        ),
        later=frozenset(recipe.name for recipe in later),
        notes=tuple(prepared.notes),
    )


def _reference(candidate: Candidate) -> Recipe:
    """The model in its own framework, which is there already."""
    return Recipe(candidate.name, candidate.title, lambda _: [candidate], is_reference=True)


def _rows(examples: Sequence[Tensors]) -> Tensors | None:
    """Examples as one batch, to compare with; None if they are none, or make none."""
    try:
        return as_rows(examples[:_COMPARED])
    except CannotBuildError:
        return None


_TREE_RUNTIMES: Final = frozenset({"catboost", "lightgbm", "xgboost"})
_PRODUCTS: Final = ("MatMul", "Gemm", "MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul")
_MORE_PRODUCTS: Final = ("MatMulIntegerToFloat", "FusedMatMul", "MatMulNBits", "QGemm", "Einsum")
_CONVOLUTIONS: Final = ("Conv", "ConvTranspose", "ConvInteger", "QLinearConv", "FusedConv")
_NORMS: Final = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_FUSED_NORMS: Final = ("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
_MORE_NORMS: Final = ("EmbedLayerNormalization", "GroupQueryAttention")
_ATTENTION: Final = ("Attention", "MultiHeadAttention", "QAttention", "GroupQueryAttention")
_TREES: Final = ("TreeEnsemble", "TreeEnsembleClassifier", "TreeEnsembleRegressor")
_PRODUCTS_A_LAYER: Final = 4
"""What projects queries, keys, values and the result, beside the scores and their mixing."""


@dataclass(frozen=True, slots=True)
class Classification:
    """A model's class, and why, in words."""

    model_class: ModelClass
    reason: str


def classify(path: Path, runtime: str) -> Classification:
    """What kind of model lies at `path`, which `runtime` loads.

    A model that is no ONNX and no trees is told apart once it has been converted.

    Raises:
        UnsupportedModelError: It is damaged, or there is none.
    """
    if runtime in _TREE_RUNTIMES:
        return Classification(ModelClass.TREES, f"it is a model of {runtime}")
    if runtime == "onnx":
        return classify_facts(read_onnx_facts(path))
    if not path.exists():
        raise UnsupportedModelError(f"{path}: no such file or directory")
    what = f"a model of the runtime '{runtime}' says what it is once it is converted to ONNX"
    return Classification(ModelClass.OTHER, what)


def classify_facts(facts: OnnxFacts) -> Classification:
    """What kind of model a graph is. Pure."""
    count = facts.operators
    trees = _sum(count, _TREES)
    products = _sum(count, _PRODUCTS) + _sum(count, _MORE_PRODUCTS)
    convolutions = _sum(count, _CONVOLUTIONS)
    if trees and not convolutions and products <= trees:
        what = "ensemble" if trees == 1 else "ensembles"
        return Classification(ModelClass.TREES, f"it is made of {trees} {what} of trees")
    # Fused ones, else those written out: a mean, the mean of squares, its root.
    fused = _sum(count, _NORMS) + _sum(count, _FUSED_NORMS) + _sum(count, _MORE_NORMS)
    squares = count["Pow"] + count["Mul"]
    attentions, norms = (
        facts.attentions + _sum(count, _ATTENTION),
        (fused or min(count["ReduceMean"] // 2, count["Sqrt"], squares)),
    )
    counts = (
        f"{_several(products, 'matrix product')}, {_several(convolutions, 'convolution')}, "
        f"{_several(attentions, 'attention')} and {_several(norms, 'layer normalisation')}"
    )
    if attentions and products + attentions * _PRODUCTS_A_LAYER > convolutions:
        return Classification(ModelClass.TRANSFORMER, counts)
    if convolutions and convolutions >= products:
        return Classification(ModelClass.CONV_NET, counts)
    return Classification(ModelClass.OTHER, f"{counts}: no known kind of network")


def _sum(count: Counter[str], names: tuple[str, ...]) -> int:
    return sum(count[name] for name in names)


def _several(number: int, what: str) -> str:
    return f"{number or 'no'} {what}{'' if number == 1 else 's'}"
