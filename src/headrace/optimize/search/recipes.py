"""Recipe sets by model class."""

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
    "optimized": "is already optimized; optimize its source version",
    "openvino": "is in OpenVINO's format, which is not rewritten; optimize the ONNX model or its "
    "original",
    "pipeline": "is a pipeline, whose models are optimized one by one: name a model's file",
    "python": "is a Python model, which cannot be rewritten; export it to ONNX",
}
_COMPARED: Final = 512


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeSet:
    """Recipes for a model.

    `source` (loaded by `runtime`) is the recipes' input: ONNX if the model can be converted.
    """

    model_class: ModelClass
    why_class: str
    source: Path
    runtime: str
    recipes: Sequence[Recipe]
    """Recipes; the first builds the baseline."""
    later: frozenset[str] = frozenset()
    """Names of recipes that build on the best of the others."""
    notes: tuple[str, ...] = ()
    """Text for the report."""


def pruned_then(cut: Recipe, then: Recipe | None) -> Recipe:
    """Return a recipe that prunes, and then applies the best recipe so far.

    Args:
        then: The best recipe; None if nothing was better than the baseline.
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
    """Return the recipes for a model.

    Args:
        folder: Directory of the converted model, which a resumed search reuses.
        examples: The user's examples; without any, nothing is pruned, and conversions are
            compared on generated inputs only.
        features: Processor features by Linux's names.

    Raises:
        UnsupportedModelError: It is damaged or cannot be optimized; the message has an alternative.
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
    """Return a reference recipe of an existing candidate."""
    return Recipe(candidate.name, candidate.title, lambda _: [candidate], is_reference=True)


def _rows(examples: Sequence[Tensors]) -> Tensors | None:
    """Concatenate examples to one batch; None if impossible."""
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
"""Projections per attention layer: queries, keys, values and output."""


@dataclass(frozen=True, slots=True)
class Classification:
    """Model class with a reason."""

    model_class: ModelClass
    reason: str


def classify(path: Path, runtime: str) -> Classification:
    """Classify the model at `path`.

    Models other than ONNX and trees are classified after their conversion.

    Raises:
        UnsupportedModelError: It is damaged or missing.
    """
    if runtime in _TREE_RUNTIMES:
        return Classification(ModelClass.TREES, f"it is a model of {runtime}")
    if runtime == "onnx":
        return classify_facts(read_onnx_facts(path))
    if not path.exists():
        raise UnsupportedModelError(f"{path}: no such file or directory")
    description = f"a model of the runtime '{runtime}' is classified after conversion to ONNX"
    return Classification(ModelClass.OTHER, description)


def classify_facts(facts: OnnxFacts) -> Classification:
    """Classify a graph. Pure."""
    count = facts.operators
    trees = _sum(count, _TREES)
    products = _sum(count, _PRODUCTS) + _sum(count, _MORE_PRODUCTS)
    convolutions = _sum(count, _CONVOLUTIONS)
    if trees and not convolutions and products <= trees:
        description = "ensemble" if trees == 1 else "ensembles"
        return Classification(ModelClass.TREES, f"it consists of {trees} tree {description}")
    # Fused normalizations, else the written-out form: a mean, the mean of squares, its root.
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


def _several(number: int, description: str) -> str:
    return f"{number or 'no'} {description}{'' if number == 1 else 's'}"
