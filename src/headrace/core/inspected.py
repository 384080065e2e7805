"""What is found out about a model before anybody serves it, and who finds it out."""

from pathlib import Path
from typing import NamedTuple, Protocol

from headrace.core.signature import ModelSignature


class Inspected(NamedTuple):
    """A model that was proved to load.

    `runs_code`: its format runs code of the model's author.
    """

    runtime: str
    signature: ModelSignature
    runs_code: bool = False


class Inspect(Protocol):
    """Proves that the model at a path loads. `headrace.runtimes.inspect_model` is the plain one."""

    def __call__(self, path: Path, runtime: str = "", *, allow_code: bool = False) -> Inspected:
        """What was found.

        Args:
            runtime: Its name; empty takes the one that recognises the model.
            allow_code: Whether the model may be of a format that runs its author's code.

        Raises:
            UnsupportedModelError: It cannot be loaded; the message says why.
            CodeNotAllowedError: It would run code. Nothing of it was run.
        """
