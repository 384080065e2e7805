"""What the optimizer tries: a model rewritten in one way, to be run by one engine in one way.

The unit is never "the INT8 model": the same file is fast in one engine and slow in another.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

from headrace.core import HeadraceError, Tensors
from headrace.core.errors import Code
from headrace.runtimes.base import UNTUNED, Tuning

BASELINE: Final = "onnxruntime-fp32"
"""Name of the candidate that others are measured against, where the source is ONNX."""


class ModelClass(StrEnum):
    """What kind of network or model it is, by its graph: recipes do not transfer between them."""

    TRANSFORMER = "transformer"
    CONV_NET = "conv-net"
    TREES = "trees"
    OTHER = "other"


class CannotBuildError(HeadraceError):
    """A recipe does not apply to this model; the message says why, for the report."""

    code = Code.FAILED_PRECONDITION


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run a model, ready to be loaded.

    `name`: short and stable, `openvino-int8`. `title`: for people. `runtime` loads `path` (a file
    or directory) with `tuning`. `recipe`: what was done, with the versions of what did it, kept as
    all sizes.
    """

    name: str
    title: str
    runtime: str
    path: Path
    tuning: Tuning = UNTUNED
    recipe: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingExamples:
    """Labelled examples that a pruned model may learn from; never those it is judged by.

    `examples`: one request of one row each (axis 0 is 1 where the model is batched). `labels`: a
    class number, or a value, for each; None where there are none, and a model learns from the
    source's answers alone.
    """

    examples: Sequence[Tensors]
    labels: Sequence[float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeContext:
    """What a recipe may use.

    `source`: the model's file or directory, loaded by `runtime`. `folder`: an empty directory of
    the recipe's own. `calibration`: requests of one row, like those that are served. `threads`: how
    many cores may be used to build. `say`: told in a few words what goes on. `deadline`: monotonic
    time by which the recipe should be done.
    """

    source: Path
    runtime: str
    model_class: ModelClass
    folder: Path
    calibration: Sequence[Tensors]
    threads: int
    seed: int
    deadline: float
    teaching: TrainingExamples | None = None
    say: Callable[[str], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to make candidates of a model."""

    name: str
    """As its candidate's, or the beginning of theirs."""
    title: str
    """For people."""
    build: Callable[[RecipeContext], Sequence[Candidate]]
    """Makes its candidates in the workshop's folder; raises CannotBuildError with the reason where
    that cannot be done with this model."""
    why_not: Callable[[RecipeContext], str] = lambda _: ""
    """Why it does not apply here, told without trying: a package that is missing, say."""
    model_classes: frozenset[ModelClass] = frozenset(ModelClass)
    """To which it applies."""
    prunes: bool = False
    """It makes a smaller network, which the best of the other recipes then rewrites."""
    is_reference: bool = False
    """Its candidate is the model in its own framework, to be compared with and not chosen."""
