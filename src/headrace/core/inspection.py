"""Result of inspecting a model before it is served, and the interface of inspectors."""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from headrace.core.signature import ModelSignature


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRun:
    """One inference of one row on made-up inputs, on the CPU with one thread."""

    run_s: float | None = None
    """How long it took; None if the model did not run on them, with the reason in `error`."""
    error: str = ""


class Inspected(NamedTuple):
    """A model that was proved to load."""

    runtime: str
    signature: ModelSignature
    runs_code: bool = False
    """Its format runs code of the model's author."""
    first_run: FirstRun | None = None
    """None where nobody tried."""


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


class CancellableInspect(Inspect, Protocol):
    """An `Inspect` in a separate process, which can be killed."""

    def __call__(
        self,
        path: Path,
        runtime: str = "",
        *,
        allow_code: bool = False,
        cancel: threading.Event | None = None,
    ) -> Inspected:
        """As `Inspect`.

        Args:
            cancel: Set when the result is not needed any more; ends the process.

        Raises:
            RequestCancelledError: `cancel` was set.
        """
