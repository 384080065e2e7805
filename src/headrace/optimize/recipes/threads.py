"""Where throughput counts: is it better to let several cores share a run, or a run have one each?

One core each wins while all that runs at once fits in the caches. Where it does not (long inputs,
many rows, large models) fewer runs on more cores each may. In OpenVINO this is fewer streams.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from headrace.optimize.candidate import Candidate, Recipe, Workshop

_WORTH_IT: Final = frozenset(
    {"onnxruntime-fp32-served", "onnxruntime-int8-dynamic", "openvino-bf16", "openvino-int8"}
)
"""Recipes whose candidates are the fastest: each takes a few seconds more with every number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class InMoreThreads:
    """What another recipe makes, and the same with several cores for each run."""

    recipe: Recipe

    @property
    def name(self) -> str:
        """The other's."""
        return self.recipe.name

    @property
    def title(self) -> str:
        """The other's."""
        return self.recipe.title

    def why_not(self, workshop: Workshop) -> str:
        """As the other says."""
        return self.recipe.why_not(workshop)

    def build(self, workshop: Workshop) -> Sequence[Candidate]:
        """The other's candidates first; the files are the same.

        Raises:
            CannotBuildError: The other cannot be built.
        """
        made = self.recipe.build(workshop)
        counts = thread_counts(workshop.threads)
        return [*made, *(_in_threads(one, count) for one in made for count in counts)]


def in_more_threads(recipes: Sequence[Recipe]) -> list[Recipe]:
    """All recipes, the most promising of them in more threads too."""
    return [InMoreThreads(recipe=one) if one.name in _WORTH_IT else one for one in recipes]


def thread_counts(cores: int) -> tuple[int, ...]:
    """How many threads inside a run are tried besides one: all cores, and some between. Pure.

    Both are powers of two, as cores divided by threads run at once.
    """
    if cores <= 1:
        return ()
    power = int(math.log2(cores))
    return tuple(sorted({1 << power, 1 << (power + 1) // 2} - {1}))


def _in_threads(candidate: Candidate, count: int) -> Candidate:
    return replace(
        candidate,
        name=f"{candidate.name}-{count}-threads",
        title=f"{candidate.title}, {count} cores for each run",
        tuning=msgspec.structs.replace(candidate.tuning, intra_op_threads=count),
        recipe={**candidate.recipe, "intra_op_threads": str(count)},
    )
