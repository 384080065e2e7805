"""Candidate of an optimization: a rewritten model together with the engine and options that run it.

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
    """Kind of model by its graph; recipes do not transfer between kinds."""

    TRANSFORMER = "transformer"
    CONV_NET = "conv-net"
    TREES = "trees"
    OTHER = "other"


class CannotBuildError(HeadraceError):
    """A recipe does not apply to this model; the message is the reason for the report."""

    code = Code.FAILED_PRECONDITION


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way to run a model, ready to be loaded."""

    name: str
    """Short and stable: `openvino-int8`."""
    title: str
    """Display name."""
    runtime: str
    """Runtime that loads `path`."""
    path: Path
    """The model's file or directory."""
    tuning: Tuning = UNTUNED
    """Load options of the runtime."""
    recipe: Mapping[str, str] = field(default_factory=dict)
    """Applied transformations and the versions of the packages that made them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingExamples:
    """Examples that a pruned model may train on; disjoint from the evaluation examples."""

    examples: Sequence[Tensors]
    """Requests of one row each; axis 0 is 1 where the model is batched."""
    labels: Sequence[float] | None = None
    """A class number or value per example; None trains on the source model's outputs alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecipeContext:
    """Inputs and limits of a recipe's build."""

    source: Path
    """The model's file or directory."""
    runtime: str
    """Runtime that loads `source`."""
    model_class: ModelClass
    folder: Path
    """Empty directory for this recipe's output."""
    calibration: Sequence[Tensors]
    """Requests of one row, like those that are served."""
    threads: int
    """Cores that the build may use."""
    seed: int
    deadline: float
    """Monotonic time by which the recipe should end."""
    training: TrainingExamples | None = None
    """Examples to train with; None where the user gave none."""
    on_progress: Callable[[str], None] = lambda _: None
    """Called with a short description of the current step."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """One way to make candidates of a model."""

    name: str
    """The name of its candidate, or the prefix of its candidates' names."""
    title: str
    """Display name."""
    build: Callable[[RecipeContext], Sequence[Candidate]]
    """Builds its candidates in the context's folder; raises CannotBuildError with the reason where
    the model does not allow it."""
    inapplicable_reason: Callable[[RecipeContext], str] = lambda _: ""
    """Returns the reason why it does not apply, such as a missing package, without building."""
    model_classes: frozenset[ModelClass] = frozenset(ModelClass)
    """Model classes that it applies to."""
    prunes: bool = False
    """Whether it makes a smaller network, which the best of the other recipes then rewrites."""
    is_reference: bool = False
    """Whether its candidate is the model in its own framework, for comparison only."""
