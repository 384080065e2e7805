"""What a runtime is: the plug-in that runs one model format."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from headrace.core import ModelSignature, Tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadOptions:
    """How to load a model into this process.

    `intra_op_threads`: threads inside one run. `device`: "auto" takes an accelerator if there is
    one, "cpu" never does.
    """

    intra_op_threads: int = 1
    device: str = "auto"


class Model(Protocol):
    """A loaded model: an instance.

    Closed by whoever loaded it.
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

    Made without arguments; holds no state. A runtime of which some models run code, not all, also
    has `code_in(path) -> str`: what in a model is that code, empty for none.
    """

    name: str
    runs_code: bool
    """Whether loading or running a model of this format runs code of its author's: it then needs an
    explicit allow. A runtime that does not say counts as one that does."""

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like this format, by its name and first bytes."""

    def inspect(self, path: Path) -> ModelSignature:
        """Read the signature and prove that the model can be loaded.

        Raises:
            UnsupportedModelError: It cannot; the message names the file and the reason.
        """

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, ready to run.

        Raises:
            UnsupportedModelError: As `inspect`.
        """
