"""Result of inspecting a model before it is served, and the interface of inspectors."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

from headrace.core.signature import ModelSignature


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstRun:
    """One inference of one row on generated inputs, on the CPU with one thread."""

    run_s: float | None = None
    """Duration; None if the model failed on the inputs, with the reason in `error`."""
    error: str = ""


class Inspected(NamedTuple):
    """Model that was verified to load."""

    runtime: str
    signature: ModelSignature
    runs_code: bool = False
    """Whether its format runs code of the model's author."""
    first_run: FirstRun | None = None
    """Result of the first run; None if it was not tried."""
    metadata: Mapping[str, str] = {}
    """Facts of the model's file by name, for display."""


class Inspect(Protocol):
    """Check that the model at a path loads. `headrace.runtimes.inspect_model` is the direct one."""

    def __call__(self, path: Path, runtime: str = "", *, allow_code: bool = False) -> Inspected:
        """Inspect the model at `path`.

        Args:
            runtime: Name of the runtime; empty selects the one that recognises the model.
            allow_code: Whether the model's format may run its author's code.

        Raises:
            UnsupportedModelError: It cannot be loaded; the message says why.
            CodeNotAllowedError: It would run code. No code of it ran.
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
        """Inspect the model as `Inspect` does.

        Args:
            cancel: Set when the result is no longer needed; ends the process.

        Raises:
            RequestCancelledError: `cancel` was set.
        """
