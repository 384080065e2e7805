"""Candidates that are smaller networks, in FP32: what quantizes can take them from there."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from headrace.core import Tensors
from headrace.optimize.candidate import Candidate, CannotBuildError, ModelClass, Workshop
from headrace.optimize.child import run_in_child
from headrace.optimize.prune.groups import FEWEST_EXAMPLES, MOST_EXAMPLES, PruneCut
from headrace.runtimes.libraries import other_framework
from headrace.runtimes.onnx_file import find_onnx_file

ONNX: Final = "onnx"
_GRACE_S: Final = 60.0
"""After a recipe's deadline, by which it gives up itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneRecipe:
    """One cut, as a recipe; `model_classes` that have such units."""

    name: str
    title: str
    cut: PruneCut
    model_classes: frozenset[ModelClass]

    def why_not(self, workshop: Workshop) -> str:
        """Why it does not apply, told without reading the model."""
        if why := _why_not(workshop):
            return why
        if workshop.model_class not in self.model_classes:
            return f"a {workshop.model_class} model has none of what it cuts"
        return ""

    def build(self, workshop: Workshop) -> Sequence[Candidate]:
        """One network in FP32.

        Raises:
            CannotBuildError: There is nothing to cut, or no time; the message says which.
        """
        target = workshop.folder / "model.onnx"
        if other_framework("torch"):  # teaching and importance need PyTorch
            facts = run_in_child(
                *(_prune, self, replace(workshop, say=_say_nothing), target),
                returns=dict[str, str],
                raises=CannotBuildError,
                deadline=workshop.deadline + _GRACE_S,
                say=workshop.say,
            )
        else:
            facts = _prune(workshop.say, self, workshop, target)
        return [
            Candidate(name=self.name, title=self.title, runtime=ONNX, path=target, recipe=facts)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseRecipe:
    """Zeros instead of single weights: a file that compresses better, and is no faster."""

    name: str
    title: str
    zeros_ratio: float

    def why_not(self, workshop: Workshop) -> str:
        """Why it does not apply, told without reading the model."""
        return _why_not(workshop)

    def build(self, workshop: Workshop) -> Sequence[Candidate]:
        """One network as large as before, but for its compressed size.

        Raises:
            CannotBuildError: It has no matrices, or there is no time.
        """
        from headrace.optimize.prune.pruning import sparsify  # noqa: PLC0415  # as above

        sparse = sparsify(
            find_onnx_file(workshop.source),
            workshop.folder / "model.onnx",
            zeros_ratio=self.zeros_ratio,
            examples=_examples(workshop)[:MOST_EXAMPLES],
            threads=workshop.threads,
            deadline=workshop.deadline,
        )
        facts = sparse.facts() | _versions()
        return [
            Candidate(
                name=self.name, title=self.title, runtime=ONNX, path=sparse.path, recipe=facts
            )
        ]


def _prune(
    say: Callable[[str], None], recipe: PruneRecipe, workshop: Workshop, target: Path
) -> dict[str, str]:
    """Write the smaller network to `target`, and return the candidate's facts."""
    from headrace.optimize.prune.pruning import prune  # noqa: PLC0415  # onnx is an extra

    pruned = prune(
        find_onnx_file(workshop.source),
        target,
        cut=recipe.cut,
        calibration=workshop.calibration,
        teaching=workshop.teaching,
        threads=workshop.threads,
        seed=workshop.seed,
        deadline=workshop.deadline,
        say=say,
    )
    return pruned.facts() | _versions()


def _say_nothing(_: str) -> None:
    """Take the place of what does not travel to another process."""


def _examples(workshop: Workshop) -> Sequence[Tensors]:
    teaching = workshop.teaching
    return teaching.examples if teaching is not None and teaching.examples else workshop.calibration


def _why_not(workshop: Workshop) -> str:
    if workshop.runtime != ONNX:
        return f"a {workshop.runtime} model is pruned in its ONNX form, and there is none"
    if workshop.model_class is ModelClass.TREES:
        return "trees have no units to cut"
    if (count := len(_examples(workshop))) < FEWEST_EXAMPLES:
        few = "none" if not count else f"only {count}"
        return f"it needs {FEWEST_EXAMPLES} examples to tell what matters, and there are {few}"
    if find_spec("onnx") is None:
        return "needs the package 'onnx': pip install 'headrace[optimize]'"
    return ""


def _versions() -> dict[str, str]:
    packages = ["onnx", "onnxruntime"] + (["torch"] if find_spec("torch") else [])
    return {name: version(name) for name in packages}


_ENCODERS: Final = frozenset({ModelClass.TRANSFORMER})
_WITH_LAYERS: Final = frozenset({ModelClass.TRANSFORMER, ModelClass.OTHER})
_CONV_NETS: Final = frozenset({ModelClass.CONV_NET, ModelClass.OTHER})

RECIPES: Final = (
    PruneRecipe(
        name="pruned-ffn-25",
        title="a quarter of the hidden units cut",
        cut=PruneCut(ffn_ratio=0.25),
        model_classes=_WITH_LAYERS,
    ),
    PruneRecipe(
        name="pruned-ffn-50",
        title="half of the hidden units cut",
        cut=PruneCut(ffn_ratio=0.5),
        model_classes=_WITH_LAYERS,
    ),
    PruneRecipe(
        name="pruned-ffn-25-heads-25",
        title="a quarter of the hidden units and of the heads cut",
        cut=PruneCut(ffn_ratio=0.25, heads_ratio=0.25),
        model_classes=_ENCODERS,
    ),
    PruneRecipe(
        name="pruned-ffn-50-heads-50",
        title="half of the hidden units and of the heads cut",
        cut=PruneCut(ffn_ratio=0.5, heads_ratio=0.5),
        model_classes=_ENCODERS,
    ),
    PruneRecipe(
        name="pruned-channels-25",
        title="a quarter of the channels cut",
        cut=PruneCut(channels_ratio=0.25),
        model_classes=_CONV_NETS,
    ),
    PruneRecipe(
        name="pruned-channels-50",
        title="half of the channels cut",
        cut=PruneCut(channels_ratio=0.5),
        model_classes=_CONV_NETS,
    ),
)
"""From the least cut to the most, by kind."""
COMPRESSION_RECIPES: Final = (
    SparseRecipe(
        name="unstructured-50",
        title="half of the weights zero: a smaller download, no faster on a CPU",
        zeros_ratio=0.5,
    ),
)
"""Offered where memory is the target, and nowhere else."""
