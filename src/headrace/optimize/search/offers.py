"""Which recipes are there for a model, whatever it was trained with?"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from headrace.core import Tensors, UnsupportedModelError
from headrace.optimize.candidate import Candidate, CannotBuildError, ModelClass, Recipe, Workshop
from headrace.optimize.onnx_facts import classify
from headrace.optimize.prune.recipes import COMPRESSION_RECIPES, PruneRecipe, SparseRecipe
from headrace.optimize.prune.recipes import RECIPES as PRUNE_RECIPES
from headrace.optimize.recipes.catalogue import in_more_threads, recipes_for
from headrace.optimize.recipes.source import is_prepared, prepare
from headrace.optimize.recipes.trees import TREE_RECIPES, as_rows
from headrace.optimize.search.process import Target

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
class Offer:
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A recipe whose candidate is there already: the model in its own framework."""

    candidate: Candidate

    @property
    def name(self) -> str:
        """The candidate's."""
        return self.candidate.name

    @property
    def title(self) -> str:
        """The candidate's."""
        return self.candidate.title

    def why_not(self, _: Workshop) -> str:
        """It always applies."""
        return ""

    def build(self, _: Workshop) -> Sequence[Candidate]:
        """The candidate."""
        return [self.candidate]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrunedThen:
    """A smaller network, and that rewritten as the best candidate so far was.

    `then`: the recipe of that; None if nothing was better than the baseline.
    """

    cut: PruneRecipe
    then: Recipe | None

    @property
    def name(self) -> str:
        """The cut's."""
        return self.cut.name

    @property
    def title(self) -> str:
        """The cut's."""
        return self.cut.title

    def why_not(self, workshop: Workshop) -> str:
        """As the cut says."""
        return self.cut.why_not(workshop)

    def build(self, workshop: Workshop) -> Sequence[Candidate]:
        """The smaller network in FP32, then rewritten.

        Raises:
            CannotBuildError: There is nothing to cut, or no time.
        """
        (smaller, *_) = made = list(self.cut.build(workshop))
        if self.then is None:
            return made
        place = workshop.folder / "then"
        place.mkdir()
        again = replace(workshop, source=smaller.path, runtime=smaller.runtime, folder=place)
        if self.then.why_not(again):
            return made
        return [
            *made,
            *(
                replace(
                    candidate,
                    name=f"{self.name}-{candidate.name}",
                    title=f"{candidate.title}, {self.title}",
                    recipe={**smaller.recipe, **candidate.recipe},
                )
                for candidate in self.then.build(again)
            ),
        ]


def offer(
    source: Path,
    runtime: str,
    folder: Path,
    *,
    allow_code: bool,
    target: Target,
    given: Sequence[Tensors],
    features: Sequence[str],
) -> Offer:
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
    found = classify(source, runtime)
    if runtime in TREE_RUNTIMES:
        return Offer(
            model_class=ModelClass.TREES,
            why_class=found.reason,
            source=source,
            runtime=runtime,
            recipes=TREE_RECIPES,
        )
    converted = folder / "converted"
    if not is_prepared(converted):
        shutil.rmtree(converted, ignore_errors=True)
        converted.mkdir()
    prepared = prepare(source, runtime, converted, allow_code=allow_code, given=_rows(given))
    if runtime != ONNX:
        found = classify(prepared.onnx, ONNX)
    first, *others = recipes_for(found.model_class, ONNX, features)
    if target in {Target.THROUGHPUT, Target.COST}:
        others = in_more_threads(others)
    later: list[PruneRecipe | SparseRecipe] = []
    if given:
        later += [one for one in PRUNE_RECIPES if found.model_class in one.model_classes]
        later += COMPRESSION_RECIPES if target is Target.MEMORY else ()
    return Offer(
        model_class=found.model_class,
        why_class=found.reason,
        source=prepared.onnx,
        runtime=ONNX,
        recipes=(
            first,
            *(Ready(candidate=candidate) for candidate in prepared.frameworks),
            *others,
            *later,
        ),
        later=frozenset(recipe.name for recipe in later),
        notes=tuple(prepared.notes),
    )


def _rows(given: Sequence[Tensors]) -> Tensors | None:
    """Examples as one batch, to compare with; None if they are none, or make none."""
    try:
        return as_rows(given[:_COMPARED])
    except CannotBuildError:
        return None
