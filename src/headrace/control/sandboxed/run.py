"""Runs of programs in a sandbox, bounded in time and memory, and the inspection of models."""

import contextlib
import os
import select
import signal
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, BinaryIO, Final, TypeVar

import msgspec

from headrace.control.local.sandbox import Sandbox, SandboxPurpose, files_of, launched
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
from headrace.core.confine import CANNOT_ISOLATE
from headrace.core.error_kind import UNDECODABLE
from headrace.core.files import write_atomic
from headrace.core.processes import Process, python_module, resident_bytes
from headrace.registry import copy_files
from headrace.serving.memory import memory_limit_bytes, size_bytes
from headrace.serving.pool.load_check import MAX_MESSAGE_BYTES, Inspection, TrialResult

if TYPE_CHECKING:
    from headrace.optimize.convert.process import ConvertResult
    from headrace.optimize.profiling.messages import ProfileFailed

OWN: Final = "own"
_INPUTS: Final = "given"
_POLL_S: Final = 0.1
_LOG_TAIL_BYTES: Final = 400
_MAX_PART_BYTES: Final = 1 << 16
_MAX_RESULT_BYTES: Final = 1 << 20
_INSPECTION_TIMEOUT_S: Final = 600.0
_INSPECTION: Final = "headrace.serving.inspection"
_Result = TypeVar("_Result", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxLimits:
    """Limits of a program, and the error texts for exceeding them."""

    timeout_s: float
    timeout_reason: str
    memory_bytes: int
    activity: str = ""
    """Suffix of the error for too much memory, such as ` while it loaded`."""


@dataclass(slots=True, kw_only=True)
class SandboxedProgram:
    """A running program; its process launches it, waits for it, and exits with its status."""

    process: Process
    log: IO[bytes]
    report: Path
    output: int | None
    """Descriptor of its standard output; None if the output goes to its log."""
    since: float = field(default_factory=time.monotonic)
    """Monotonic time from which its time limit counts."""
    reason: str = ""
    """Reason why it was killed or failed; empty while it runs and after success."""

    @property
    def pid(self) -> int:
        """Pid of the program once it runs in its sandbox; before, the pid of its launcher."""
        try:
            return int(msgspec.json.decode(self.report.read_bytes())["pid"])
        except (OSError, *UNDECODABLE):
            return self.process.pid

    def watch(self, limits: SandboxLimits) -> Iterator[bytes]:
        """Yield parts of its output (maybe empty) until it ends, exceeds a limit or has a reason.

        Without an output, empty parts are yielded ten times per second.
        """
        while not self.reason:
            part = b""
            if self.output is None:
                has_ended = self.process.wait_blocking(_POLL_S)
            elif select.select([self.output], [], [], _POLL_S)[0]:
                part = os.read(self.output, _MAX_PART_BYTES)
                has_ended = not part
            else:
                has_ended = False
            yield part
            if has_ended or self.reason:
                return
            if time.monotonic() > self.since + limits.timeout_s:
                self.reason = limits.timeout_reason
            elif resident_bytes(self.pid) > limits.memory_bytes:
                maximum = f"{limits.memory_bytes} bytes of memory{limits.activity}"
                self.reason = f"it took more than {maximum}"

    def failure(self) -> str:
        """Wait for its end; return the failure with the last line of its log; empty on success."""
        self.process.wait_blocking()
        status = self.process.exit_status
        if not status:
            return ""
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - _LOG_TAIL_BYTES))
        last = self.log.read().decode(errors="replace").strip().rpartition("\n")[2]
        signalled = f"was ended by {signal.Signals(-status).name}" if status < 0 else ""
        how = signalled or f"ended with status {status}"
        return f"its process {how}" + (f": {last}" if last else "")

    def end(self) -> None:
        """Kill it and its children, and set `reason`."""
        if not self.reason:
            self.process.wait_blocking(_POLL_S)
        if self.process.is_running():  # its children end with it, then its launcher
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)
        if self.output is not None:
            os.close(self.output)
        self.reason = self.reason or self.failure()
        self.process.wait_blocking()
        self.process.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxedRun:
    """A directory in which programs run sequentially as the user of their purpose."""

    sandbox: Sandbox
    folder: Path
    purpose: SandboxPurpose
    file_bytes: int = 1 << 40
    """Largest size in bytes of the files that they write."""
    keep: tuple[Path, ...] = ()
    """Paths that they read in addition to copies."""

    @classmethod
    @contextlib.contextmanager
    def next_to_copy(
        cls, path: Path, sandbox: Sandbox, purpose: SandboxPurpose, *, file_bytes: int = 1 << 40
    ) -> "Iterator[tuple[SandboxedRun, Path]]":
        """Yield a new directory and the copy of `path` in it, and remove both afterwards.

        Raises:
            UnsupportedModelError: `path` cannot be read.
        """
        prefix = f"headrace-{purpose.name.lower()}-"
        with tempfile.TemporaryDirectory(prefix=prefix) as folder:
            run = cls(sandbox=sandbox, folder=Path(folder), purpose=purpose, file_bytes=file_bytes)
            run.own.mkdir(mode=0o700)
            yield run, run.add_input(path)

    @property
    def own(self) -> Path:
        """Working directory of the programs."""
        return self.folder / OWN

    @property
    def inputs(self) -> Path:
        """Directory of copies of their inputs."""
        return self.folder / _INPUTS

    def add_input(self, path: Path, kind: str = "model") -> Path:
        """Return a copy for the program, whose user may not have access to `path`.

        Raises:
            UnsupportedModelError: `path` cannot be read, or a link points outside of it.
        """
        folder = self.inputs / kind
        for directory in (self.inputs, folder):
            directory.mkdir(exist_ok=True)
            directory.chmod(0o755)
        try:
            return copy_files(path, folder / path.name)
        except OSError as error:
            raise UnsupportedModelError(f"{path}: {error.strerror or error}") from error
        except InvalidArgumentError as error:
            raise UnsupportedModelError(str(error)) from None

    def write_request(self, name: str, request: msgspec.Struct) -> Path:
        """Write the program's request file and return it; a link left there is replaced."""
        write_atomic(self.own / name, msgspec.json.encode(request), mode=0o644, durable=False)
        return self.own / name

    @contextlib.contextmanager
    def started(
        self, module: str, *arguments: str, reads_output: bool = False
    ) -> Iterator[SandboxedProgram]:
        """Yield `module` running in `own` without network; kill it and its children afterwards.

        Args:
            reads_output: Whether `watch` yields its output instead of logging it.
        """
        report, log_path = self.folder / "isolation", self.folder / "log"
        command = self._command(python_module(module, *arguments), report)
        with log_path.open("w+b") as log:
            reader, writer = os.pipe() if reads_output else (None, None)
            try:
                process = Process.spawn(
                    command,
                    log=log_path,
                    output=writer,
                    environment=self.sandbox.environment.of()
                    | {"HOME": str(self.own), "TMPDIR": str(self.own)},
                )
            except OSError:
                if reader is not None:
                    os.close(reader)
                raise
            finally:
                if writer is not None:
                    os.close(writer)
            program = SandboxedProgram(process=process, log=log, report=report, output=reader)
            try:
                yield program
            finally:
                program.end()

    def _command(self, program: list[str], report: Path) -> list[str]:
        spec = self.sandbox.spec(
            own=[self.own],
            keep=[path for path in (self.inputs, *self.keep) if path.exists()],
            network=False,
            serial=self.purpose,
            report=report,
            limits={"file_bytes": self.file_bytes},
        )
        spec["attached"] = True
        # Copies may be secret, so only root and that user can read them.
        if spec["uid"] is not None:
            os.chown(self.folder, -1, spec["uid"])
            self.folder.chmod(0o710)
        return launched(spec, program)


def open_result(file: Path) -> BinaryIO:
    """Open a program's result file, without following links or waiting for pipes.

    Raises:
        OSError: The file does not exist, or is not a regular file.
    """
    return os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def read_result(file: Path, kind: type[_Result]) -> _Result | None:
    """Return the message in a program's result file; None if it is missing or invalid."""
    try:
        with open_result(file) as stream:
            return msgspec.json.decode(stream.read(_MAX_RESULT_BYTES), type=kind)
    except (OSError, *UNDECODABLE):
        return None


def error_of(
    result: "ConvertResult | ProfileFailed | TrialResult", path: Path, copy: Path
) -> HeadraceError:
    """Return a program's error about `copy` as an error about `path`."""
    if result.needs_code:
        return CodeNotAllowedError(str(path), result.needs_code, result.why_code)
    text = result.error.replace(str(copy), str(path))
    if result.code == Code.FAILED_PRECONDITION:
        return FailedPreconditionError(text)
    return UnsupportedModelError(text if str(path) in text else f"{path}: {text}")


@dataclass(slots=True)
class SandboxedInspector:
    """Inspects models that are not stored yet. Thread-safe; `close` ends all inspections.

    A process starts an interpreter and imports the runtimes, which takes about 0.3 s. A prestarted
    process would have to be root to change to the user that may read the model.
    """

    sandbox: Sandbox
    timeout_s: float = _INSPECTION_TIMEOUT_S
    memory_bytes: int | None = None
    """Memory limit of an inspection; None derives it from the model's size."""
    _closing: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of_home(cls, home: Path) -> "SandboxedInspector":
        """Return an inspector for a command that uses a home without a control plane."""
        return cls(Sandbox.of_home(home))

    def __call__(
        self,
        path: Path,
        runtime: str = "",
        *,
        allow_code: bool = False,
        cancel: threading.Event | None = None,
    ) -> Inspected:
        """Inspect a model; see `headrace.core.Inspect`.

        Args:
            cancel: Once set, the inspection's process is killed with all its children.

        Raises:
            FailedPreconditionError: As in `Inspect`, or the process cannot be isolated.
            RequestCancelledError: `cancel` was set, or the inspector was closed.
        """
        path = path.absolute()
        limits = SandboxLimits(
            timeout_s=self.timeout_s,
            timeout_reason=f"it did not load within {self.timeout_s:g} s",
            memory_bytes=self.memory_bytes or memory_limit_bytes(size_bytes(path)),
            activity=" while it loaded",
        )
        is_closed = self.sandbox.user(SandboxPurpose.INSPECTION) is not None and not is_open(path)
        stops = [self._closing, *([] if cancel is None else [cancel])]
        answer = b""
        with tempfile.TemporaryDirectory(prefix="headrace-inspect-") as folder:
            run = SandboxedRun(
                sandbox=self.sandbox,
                folder=Path(folder),
                purpose=SandboxPurpose.INSPECTION,
                keep=() if is_closed else tuple(files_of(path)),
            )
            run.own.mkdir(mode=0o700)
            copy = run.add_input(path) if is_closed else path
            request = Inspection(path=str(copy), runtime=runtime, allow_code=allow_code)
            text = msgspec.json.encode(request).decode()
            with run.started(_INSPECTION, text, reads_output=True) as program:
                for part in program.watch(limits):
                    answer += part
                    if any(stop.is_set() for stop in stops):
                        raise RequestCancelledError(f"{path}: its inspection was cancelled")
                    if len(answer) > MAX_MESSAGE_BYTES:
                        program.reason = "it wrote more than an answer"
        result = _inspection_result(program, answer)
        if result.inspected is not None:
            return result.inspected
        if result.code == Code.INVALID_ARGUMENT and "there is no runtime" in result.error:
            raise InvalidArgumentError(result.error.replace(str(copy), str(path)))
        raise error_of(result, path, copy)

    def close(self) -> None:
        """End all running inspections."""
        self._closing.set()
        self._closing = threading.Event()


def is_open(path: Path) -> bool:
    """Whether users other than its owner may read a model and the files beside it."""
    try:
        return all(
            item.stat().st_mode & (0o005 if item.is_dir() else 0o004) != 0
            for folder in files_of(path)
            for item in (folder, *([path] if path.is_file() else path.rglob("*")))
        )
    except OSError:
        return True  # the inspection reports the error


def _inspection_result(program: SandboxedProgram, answer: bytes) -> TrialResult:
    """Return the process's result, or why it ended if its output cannot be read."""
    if program.process.exit_status == CANNOT_ISOLATE:
        return TrialResult(error=program.reason, code=Code.FAILED_PRECONDITION)
    try:
        return msgspec.json.decode(answer, type=TrialResult)
    except UNDECODABLE:
        return TrialResult(error=program.reason or "its process wrote no answer")
