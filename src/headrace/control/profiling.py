"""Measures a model in a process that it may spoil, confined as a conversion is.

What it says comes line by line, so that what was measured is kept whatever becomes of it.
"""

import contextlib
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from headrace.control.conversion import how_it_ended, readable_copy
from headrace.control.process import python_module
from headrace.control.sandbox import Probe, Sandbox
from headrace.core import (
    Code,
    CodeNotAllowedError,
    FailedPreconditionError,
    HeadraceError,
    UnsupportedModelError,
)
from headrace.optimize.profiling.messages import (
    Event,
    Failed,
    Measured,
    ProfileRequest,
    gathered,
)
from headrace.optimize.profiling.worker import REQUEST
from headrace.serving import confine
from headrace.serving.memory import available_bytes, resident_bytes

GRACE_S: Final = 60.0
"""Beyond its budget, for a model that loads slowly or whose last run takes long."""
_LOOK_S: Final = 0.1
_SERIAL: Final = 605
"""Of the user that profiles run as under root: the last of them, as conversions have theirs."""
_FILE_BYTES: Final = 1 << 30
_MAX_LINE_BYTES: Final = 1 << 20
_MAX_EVENTS: Final = 10_000
_LAST_WORDS: Final = 400
_OF_AVAILABLE: Final = 0.7
_WORKER: Final = "headrace.optimize.profiling.worker"

Hear = Callable[[Event], None]


@dataclass(slots=True, kw_only=True)
class ProfileApart:
    """Measures models in processes of their own.

    `sandbox`: how they are kept apart. `grace_s`: beyond the budget. `memory_bytes`: how much one
    may take; None goes by what the machine has.
    """

    sandbox: Sandbox
    grace_s: float = GRACE_S
    memory_bytes: int | None = None
    program: str = _WORKER

    @classmethod
    def of_home(cls, home: Path) -> "ProfileApart":
        """For a command; `home` is hidden from what is measured."""
        ask = cache(lambda: Probe().result())
        return cls(sandbox=Sandbox(hide=(home.resolve(),), reports=home, abilities=ask))

    def measure(self, request: ProfileRequest, hear: Hear = lambda _: None) -> Measured:
        """What was measured until it was done, failed, or somebody pressed Ctrl-C.

        Args:
            hear: Told everything as it comes.

        Raises:
            UnsupportedModelError: Nothing could be measured; the message says why.
            CodeNotAllowedError: It would run code; nothing of it was run.
            FailedPreconditionError: A package is not installed.
        """
        path = Path(request.path)
        most = self.memory_bytes or int(available_bytes() * _OF_AVAILABLE)
        with copied_for_anybody(path) as (copy, outer):
            folder = outer / "own"
            folder.mkdir(mode=0o700)
            here = msgspec.structs.replace(request, path=str(copy), memory_bytes=most)
            file = folder / REQUEST
            file.write_bytes(msgspec.json.encode(here))
            file.chmod(0o644)  # it may be another user
            heard = _Heard(hear=hear)
            why = self._run(request, folder, outer, heard, most_bytes=most)
        failed = next((event for event in heard.events if isinstance(event, Failed)), None)
        measured = gathered(heard.events)
        if measured is not None and measured.complete:
            return measured
        if measured is None or not measured.cells:
            raise _error(path, copy, failed or Failed(error=why or "it measured nothing"))
        stopped = failed.error.replace(str(copy), str(path)) if failed else why
        if not stopped:
            return measured
        notes = (*measured.notes, f"stopped early: {stopped}")
        return msgspec.structs.replace(measured, notes=notes, complete=False)

    def _run(
        self,
        request: ProfileRequest,
        folder: Path,
        outer: Path,
        heard: "_Heard",
        *,
        most_bytes: int,
    ) -> str:
        """Why the process had to be ended, or ended by itself before it was done."""
        command = confined(
            self.sandbox, python_module(self.program), own=folder, report=outer / "isolation"
        )
        with (outer / "log").open("w+b") as log:
            process = subprocess.Popen(  # noqa: S603  # ourselves
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"HOME": str(folder), "TMPDIR": str(folder)},
            )
            try:
                why = self._listen(
                    process,
                    heard,
                    until=time.monotonic() + request.budget_s + self.grace_s,
                    most_bytes=most_bytes,
                )
            except KeyboardInterrupt:
                why = "interrupted"
            finally:
                code = end(process)
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_WORDS))
            return why or how_it_ended(code, log.read().decode(errors="replace"))

    def _listen(
        self,
        process: "subprocess.Popen[bytes]",
        heard: "_Heard",
        *,
        until: float,
        most_bytes: int,
    ) -> str:
        """Why the process has to be ended; empty once it closed its output."""
        assert process.stdout is not None, "it is a pipe"
        descriptor = process.stdout.fileno()
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            while time.monotonic() < until:
                if resident_bytes(process.pid) > most_bytes:
                    return f"it took more than {most_bytes} bytes of memory"
                if not selector.select(_LOOK_S):
                    continue
                data = os.read(descriptor, 1 << 16)
                if not data:
                    return ""
                if why := heard.take(data):
                    return why
        return f"it took longer than its budget and {self.grace_s:g} s"


@dataclass(slots=True, kw_only=True)
class _Heard:
    """What the process said so far; it may say anything."""

    hear: Hear
    events: list[Event] = field(default_factory=list)
    rest: bytes = b""

    def take(self, data: bytes) -> str:
        """Why it is to be listened to no longer; empty while it makes sense."""
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            try:
                event = msgspec.json.decode(line, type=Event)
            except msgspec.MsgspecError:
                return "it said something that makes no sense"
            self.events.append(event)
            self.hear(event)
        if len(self.rest) > _MAX_LINE_BYTES or len(self.events) > _MAX_EVENTS:
            return "it said too much"
        return ""


def confined(sandbox: Sandbox, program: list[str], *, own: Path, report: Path) -> list[str]:
    """A command line that runs `program` in `own`, without a network."""
    spec = sandbox.spec(
        own=[own],
        keep=[own.parent / "source"],
        network=False,
        serial=_SERIAL,
        report=str(report),
        limits={"file_bytes": _FILE_BYTES},
    )
    return [sys.executable, "-I", "-S", confine.__file__, json.dumps(spec), *program]


@contextlib.contextmanager
def copied_for_anybody(path: Path) -> Iterator[tuple[Path, Path]]:
    """A copy that another user may read, and the directory around it; gone afterwards.

    Raises:
        UnsupportedModelError: It cannot be read.
    """
    with tempfile.TemporaryDirectory(prefix="headrace-profile-") as outer:
        Path(outer).chmod(0o711)
        copy = readable_copy(path, Path(outer) / "source")
        yield copy, Path(outer)


def end(process: "subprocess.Popen[bytes]") -> int:
    """End a process and what it started; its exit status."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(_LOOK_S)
    with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    if process.stdout is not None:
        process.stdout.close()
    return process.wait()


def _error(path: Path, copy: Path, failed: Failed) -> HeadraceError:
    if failed.needs_code:
        return CodeNotAllowedError(str(path), failed.needs_code, failed.why_code)
    text = failed.error.replace(str(copy), str(path))
    if failed.code == Code.FAILED_PRECONDITION:
        return FailedPreconditionError(text)
    return UnsupportedModelError(text if str(path) in text else f"{path}: {text}")
