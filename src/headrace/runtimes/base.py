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
MOST_THREADS: Final = 1024
_OPTIMIZER: Final = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_MOST_OPTIMIZERS: Final = 256
_SHOWN: Final = 40


class Tuning(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of the engines. Each runtime uses those that it supports and ignores the others.

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
    """Threads inside one run; None for what the replica plans."""


UNTUNED = Tuning()


def check_tuning(tuning: Tuning) -> None:
    """Refuse what no engine knows, whichever runtime would heed it.

    Raises:
        UnsupportedModelError: A value is none of those there are; the message lists them.
    """
    _check_one_of("precision", tuning.precision, ("", *PRECISIONS))
    _check_one_of("graph_optimizations", tuning.graph_optimizations, GRAPH_OPTIMIZATIONS)
    disabled = tuning.disabled_optimizers or ()
    if len(disabled) > _MOST_OPTIMIZERS:
        _refuse(f"disables {len(disabled)} optimizers; the limit is {_MOST_OPTIMIZERS}")
    for name in disabled:
        if _OPTIMIZER.fullmatch(name) is None:
            _refuse(
                f"disables the optimizer {_shown(name)}, which is not a valid name of ONNX "
                "Runtime: use letters, digits and underscores, as in SkipLayerNormFusion"
            )
    threads = tuning.intra_op_threads
    if threads is not None and not 1 <= threads <= MOST_THREADS:
        _refuse(f"asks for {threads} threads inside a run; allowed are 1 to {MOST_THREADS}")


def _check_one_of(what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        available = ", ".join(name for name in allowed if name)
        _refuse(f"asks for the unknown {what} {_shown(value)}; allowed values: {available}")


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")


def _refuse(what: str) -> None:
    raise UnsupportedModelError(f"the model's tuning {what}")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How a model is loaded into this process."""

    intra_op_threads: int = 1
    """Threads inside one run."""
    device: str = "auto"
    """A `headrace.core.devices.Device`: "auto" takes an accelerator if one starts, "cpu" never
    does, any other must run the model."""
    features: FeatureSource | None = None
    """Source of features for a model that reads them; None if there is none."""
    tuning: Tuning = UNTUNED
    """Best options that the optimizer measured for this model; its `intra_op_threads` takes
    precedence. Of an optimized model, which has its own tuning, only the threads are
    overridden."""
    rows_independent: bool = False
    """Whether the operator declares that rows do not influence each other; a model without proof
    is then batched."""

    @property
    def declared_by(self) -> str:
        """Who declares rows independent, for people; empty for nobody."""
        return "`rows_independent`" if self.rows_independent else ""

    @property
    def threads(self) -> int:
        """Threads inside one run: as tuned, where it was."""
        return self.tuning.intra_op_threads or self.intra_op_threads


class Model(Protocol):
    """A loaded model: an instance.

    Closed by whoever loaded it. It may say in `device`, a `headrace.core.devices.DeviceUse`, on
    what it runs; one that does not say is refused where a device was asked for.
    """

    signature: ModelSignature
    concurrent: bool
    """Whether `run` may be called from several threads at once.

    A model may also say `may_wait`: that a run can wait for others, such as a database. It then
    never runs on the event loop, however short its runs are measured to be. With `takes_deadline`
    its `run` takes `deadline=`: the monotonic time at which the first caller stops waiting,
    infinity for never. One that was optimized for another number of threads than was planned says
    so in `intra_op_threads`.
    """

    def run(self, inputs: Tensors, outputs: Sequence[str] | None = None) -> Tensors:
        """Run one batch; blocks, and releases the GIL while computing where the format allows it.

        Args:
            inputs: As `signature` says: every input, checked; axis 0 of equal size if batched.
            outputs: Names of the outputs that are wanted, in this order; None for all.

        Raises:
            InvalidArgumentError: The model itself says that the input is wrong.
            RuntimeFailedError: The model failed on this batch; `__cause__` has its own error.
        """

    def close(self) -> None:
        """Free what the model holds.

        `run` must not be called again.
        """


class DeadlineModel(Model, Protocol):
    """A model that says `takes_deadline`."""

    def run(
        self,
        inputs: Tensors,
        outputs: Sequence[str] | None = None,
        *,
        deadline: float | None = None,
    ) -> Tensors:
        """As `Model.run`; what waits for others waits no longer than that."""


class Runtime(Protocol):
    """Loads models of one format.

    Made without arguments; holds no state. It may say what it needs: `libraries`, a tuple of
    packages as they are imported, and `extra`, the one of Headrace's that brings them; and in
    `optional_libraries` what it uses where that is installed. Neither
    importing nor `recognises` may need them, so that a model is told apart from an unknown file.
    One whose models say themselves what they are, by a file in their directory, sets
    `has_manifest`: no runtime that recognises another file there is asked. One of which some models
    run code, not all, has `code_in(path) -> str`: what in a model is that code, empty for none.
    """

    name: str
    runs_code: bool
    """Whether loading or running a model of this format runs code of its author's: it then needs an
    explicit allow. A runtime that does not say counts as one that does."""

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like this format, by its name and first bytes."""

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, ready to run.

        Raises:
            UnsupportedModelError: It cannot be; the message names the file and the reason.
        """
