"""What a runtime is: the plug-in that runs one model format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headrace.core import ModelSignature, Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to load a model into this process.

    `intra_op_threads`: threads inside one run. `device`: one of `headrace.core.devices.Device`;
    "auto" takes an accelerator if there is one that starts, "cpu" never does, and any other one has
    to be what runs the model.
    """

    intra_op_threads: int = 1
    device: str = "auto"


class Model(Protocol):
    """A loaded model: an instance.

    Closed by whoever loaded it. It may say in `device`, a `headrace.core.devices.DeviceUse`, on
    what it runs; one that does not say is refused where a device was asked for.
    """

    signature: ModelSignature
    concurrent: bool
    """Whether `run` may be called from several threads at once."""

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


class Runtime(Protocol):
    """Loads models of one format.

    Made without arguments; holds no state. It may say what it needs: `libraries`, a tuple of
    packages as they are imported, and `extra`, the one of Headrace's that brings them. Neither
    importing nor `recognises` may need them, so that a model is told apart from an unknown file.
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
