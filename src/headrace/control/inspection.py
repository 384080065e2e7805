"""Inspection of a model that is not stored yet, in a sandboxed process of its own.

The process starts an interpreter and imports the runtimes, which takes about 0.3 s: a process that
waits with both would have to be root, to become whoever may see the model.
"""

import tempfile
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.confined import Bounds, Confined, Running
from headrace.control.sandbox import Occasion, Sandbox, files_of
from headrace.core import (
    Code,
    CodeNotAllowedError,
    FailedPreconditionError,
    HeadraceError,
    Inspected,
    InvalidArgumentError,
    RequestCancelledError,
    UnsupportedModelError,
)
from headrace.serving.confine import CANNOT_ISOLATE
from headrace.serving.memory import memory_limit_bytes, size_bytes
from headrace.serving.trial import MAX_MESSAGE_BYTES, Inspection, TrialResult

TIMEOUT_S: Final = 600.0
_MODULE: Final = "headrace.serving.inspecting"


@dataclass(slots=True)
class InspectApart:
    """Inspects models in sandboxed processes. Thread-safe; `close` ends all inspections.

    `timeout_s`: how long one may take.
    """

    sandbox: Sandbox
    timeout_s: float = TIMEOUT_S
    memory_bytes: int | None = None
    """How much one may take; None goes by the model's size."""
    _closing: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of_home(cls, home: Path) -> "InspectApart":
        """For a command that works on a home without a control plane."""
        return cls(Sandbox.of_home(home))

    def __call__(
        self,
        path: Path,
        runtime: str = "",
        *,
        allow_code: bool = False,
        cancel: threading.Event | None = None,
    ) -> Inspected:
        """As `headrace.core.Inspect`.

        Args:
            cancel: Once set, the inspection's process is killed with all that it started.

        Raises:
            FailedPreconditionError: Besides what that says: the process cannot be isolated.
            RequestCancelledError: `cancel` was set, or this was closed.
        """
        path = path.absolute()
        bounds = Bounds(
            limit_s=self.timeout_s,
            too_long=f"it did not load within {self.timeout_s:g} s",
            memory_bytes=self.memory_bytes or memory_limit_bytes(size_bytes(path)),
            while_what=" while it loaded",
        )
        is_closed = self.sandbox.user(Occasion.INSPECTION) is not None and not is_open(path)
        stops = [self._closing, *([] if cancel is None else [cancel])]
        answer = b""
        with tempfile.TemporaryDirectory(prefix="headrace-inspect-") as folder:
            sandboxed = Confined(
                sandbox=self.sandbox,
                folder=Path(folder),
                occasion=Occasion.INSPECTION,
                keep=() if is_closed else tuple(files_of(path)),
            )
            sandboxed.own.mkdir(mode=0o700)
            copy = sandboxed.give(path) if is_closed else path
            inspection = Inspection(path=str(copy), runtime=runtime, allow_code=allow_code)
            request = msgspec.json.encode(inspection).decode()
            with sandboxed.started(_MODULE, request, is_heard=True) as running:
                for part in running.looks(bounds):
                    answer += part
                    if any(stop.is_set() for stop in stops):
                        raise RequestCancelledError(f"{path}: its inspection was cancelled")
                    if len(answer) > MAX_MESSAGE_BYTES:
                        running.why = "it wrote more than an answer"
        result = _result(running, answer)
        if result.inspected is not None:
            return result.inspected
        text = result.error.replace(str(copy), str(path))
        raise _error(path, msgspec.structs.replace(result, error=text))

    def close(self) -> None:
        """End all inspections under way."""
        self._closing.set()
        self._closing = threading.Event()


def is_open(path: Path) -> bool:
    """Whether users that own no part of a model may read it, and what lies beside it."""
    try:
        return all(
            item.stat().st_mode & (0o005 if item.is_dir() else 0o004) != 0
            for folder in files_of(path)
            for item in (folder, *([path] if path.is_file() else path.rglob("*")))
        )
    except OSError:
        return True  # the inspection says what is wrong


def _result(running: Running, answer: bytes) -> TrialResult:
    """What the process wrote; why it ended, if it wrote nothing that can be read."""
    if running.process.returncode == CANNOT_ISOLATE:
        return TrialResult(error=running.why, code=Code.FAILED_PRECONDITION)
    try:
        return msgspec.json.decode(answer, type=TrialResult)
    except msgspec.MsgspecError:
        return TrialResult(error=running.why or "its process wrote no answer")


def _error(path: Path, result: TrialResult) -> HeadraceError:
    if result.needs_code:
        return CodeNotAllowedError(str(path), result.needs_code, result.why_code)
    match result.code:
        case Code.FAILED_PRECONDITION:
            return FailedPreconditionError(result.error)
        case Code.INVALID_ARGUMENT if "there is no runtime" in result.error:
            return InvalidArgumentError(result.error)
        case "":
            return UnsupportedModelError(f"{path}: {result.error}")
        case _:
            return UnsupportedModelError(result.error)
