"""What a runtime is: the plug-in that runs one model format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headrace.core import FeatureSource, ModelSignature, Tensors
from headrace.runtimes.tuning import UNTUNED, Tuning


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to load a model into this process.

    `intra_op_threads`: threads inside one run. `device`: one of `headrace.core.devices.Device`;
    "auto" takes an accelerator if there is one that starts, "cpu" never does, and any other one has
    to be what runs the model. `features`: what a model that says that it takes features asks
    for them; None where nobody does. `tuning`: what the optimizer found best for this model; its
    `intra_op_threads` stands above the other. A model that was optimized brings its own, of which
    only the threads can be pinned so. `rows_independent`: the operator declares that the rows of a
    batch do not influence each other; a model that is not proven to be so is then batched.
    """

    intra_op_threads: int = 1
    device: str = "auto"
    features: FeatureSource | None = None
    tuning: Tuning = UNTUNED
    rows_independent: bool = False

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
