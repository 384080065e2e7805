"""Interface of runtimes: the plug-in that runs one model format, and how it loads a model."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

import msgspec

from headrace.core import FeatureSource, ModelSignature, Tensors, UnsupportedModelError

PRECISIONS: Final = ("f32", "bf16", "f16")
GRAPH_OPTIMIZATIONS: Final = ("all", "extended", "basic", "none")
MAX_THREADS: Final = 1024
_OPTIMIZER: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_MAX_OPTIMIZERS: Final = 256
_SHOWN: Final = 40


class Tuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the engines; a runtime uses those that it supports and ignores the others.

    The defaults run a model that was not optimized.
    """

    precision: str = ""
    """Precision of OpenVINO: `f32`, `bf16` or `f16`; empty for the model's own."""
    graph_optimizations: str = "all"
    """Level of ONNX Runtime: `all`, `extended`, `basic` or `none`."""
    disabled_optimizers: tuple[str, ...] | None = None
    """Optimizers of ONNX Runtime to disable, by name; None for the runtime's choice."""
    arena: bool = False
    """Whether the memory of the largest batch is retained."""
    spinning: bool = False
    """Whether idle threads spin instead of sleeping."""
    intra_op_threads: int | None = None
    """Threads inside one run; None for the number that the replica plans."""


UNTUNED = Tuning()


def check_tuning(tuning: Tuning) -> None:
    """Check a tuning against the options that any engine supports.

    Raises:
        UnsupportedModelError: A value is not supported; the message lists the supported ones.
    """
    _check_one_of("precision", tuning.precision, ("", *PRECISIONS))
    _check_one_of("graph_optimizations", tuning.graph_optimizations, GRAPH_OPTIMIZATIONS)
    disabled = tuning.disabled_optimizers or ()
    if len(disabled) > _MAX_OPTIMIZERS:
        _refuse(f"disables {len(disabled)} optimizers; the limit is {_MAX_OPTIMIZERS}")
    for name in disabled:
        if _OPTIMIZER.fullmatch(name) is None:
            _refuse(
                f"disables the optimizer {_display(name)}, which is not a valid name of ONNX "
                "Runtime: use letters, digits and underscores, as in SkipLayerNormFusion"
            )
    threads = tuning.intra_op_threads
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        _refuse(f"asks for {threads} threads inside a run; allowed are 1 to {MAX_THREADS}")


def _check_one_of(description: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        available = ", ".join(name for name in allowed if name)
        _refuse(
            f"asks for the unknown {description} {_display(value)}; allowed values: {available}"
        )


def _display(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def _refuse(description: str) -> None:
    raise UnsupportedModelError(f"the model's tuning {description}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """Options for loading a model into this process."""

    intra_op_threads: int = 1
    """Threads inside one run."""
    device: str = "auto"
    """A `headrace.core.devices.Device`: "auto" uses an accelerator if one starts, "cpu" uses none,
    any other must run the model.
    """
    features: FeatureSource | None = None
    """Source of features for a model that reads them; None if none is configured."""
    tuning: Tuning = UNTUNED
    """Best options that the optimizer measured for this model; its `intra_op_threads` takes
    precedence. Of an optimized model, which has its own tuning, only the threads are
    overridden."""
    rows_independent: bool = False
    """Whether the operator declares that rows do not influence each other; a model without proof
    is then batched."""

    @property
    def declared_by(self) -> str:
        """Name of the party that declares rows independent, for display; empty for none."""
        return "`rows_independent`" if self.rows_independent else ""

    @property
    def threads(self) -> int:
        """Threads inside one run: the tuned number if there is one, else the planned one."""
        return self.tuning.intra_op_threads or self.intra_op_threads


class Model(Protocol):
    """A loaded model: an instance.

    The caller that loaded it closes it. Its optional attribute `device`, a
    `headrace.core.devices.DeviceUse`, names the device it runs on; a model without that attribute
    is refused if a device was requested.
    """

    signature: ModelSignature
    concurrent: bool
    """Whether `run` may be called from several threads at once.

    Optional attributes: `may_wait` says that a run can wait for other systems, such as a database;
    the model then never runs on the event loop, however short its measured runs are. With
    `takes_deadline`, `run` takes `deadline=`: the monotonic time at which the first caller stops
    waiting, infinity for never. `intra_op_threads` is set by a model that was optimized for another
    number of threads than was planned. `facts()` returns facts of a model's file by name; such a
    model is not run when it is inspected.
    """

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch; blocks, and releases the GIL while computing where the format allows it.

        Args:
            inputs: Every input of `signature`, validated; axis 0 of equal size if batched.
            outputs: Names of the requested outputs, in order; None for all.

        Raises:
            InvalidArgumentError: The model rejects the input.
            RuntimeFailedError: The model failed on this batch; `__cause__` has its own error.
        """

    def close(self) -> None:
        """Free the model's resources.

        `run` must not be called afterwards.
        """


class DeadlineModel(Model, Protocol):
    """A model with `takes_deadline`."""

    def run(
        self,
        inputs: Tensors,
        outputs: Sequence[str] | None = None,
        *,
        deadline: float | None = None,
    ) -> Tensors:
        """Run one batch like `Model.run`; waits for other systems end at `deadline`."""


class Runtime(Protocol):
    """Loader of models of one format.

    Created without arguments; stateless. Optional attributes: `libraries` is a tuple of the
    required packages by import name, `extra` the extra of Headrace that installs them, and
    `optional_libraries` the packages that are used where installed. Neither importing nor
    `recognises` may need them, so that a model of this format is distinguished from an unknown
    file. A runtime whose models identify themselves by a file in their directory sets
    `has_manifest`: other runtimes that recognise another file there are not considered. A runtime
    of which only some models run code has `code_in(path) -> str`: a description of the code in a
    model, empty for none.
    """

    name: str
    runs_code: bool
    """Whether loading or running a model of this format runs its author's code and so needs an
    explicit allow. A runtime without this attribute counts as one that does.
    """

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like this format, by its name and first bytes."""

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, ready to run.

        Raises:
            UnsupportedModelError: The model cannot be loaded; the message names the file and the
                reason.
        """
