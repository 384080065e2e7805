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
    """What a program may take, and the reasons that are given for one that took more."""

    timeout_s: float
    timeout_reason: str
    memory_bytes: int
    activity: str = ""
    """Said of one that took too much memory, as ` while it loaded`."""


@dataclass(slots=True, kw_only=True)
class SandboxedProgram:
    """A program that runs; its process launches it, waits for it, and ends as it ends."""

    process: Process
    log: IO[bytes]
    report: Path
    output: int | None
    """Where its standard output is read; None if that is a part of its log."""
    since: float = field(default_factory=time.monotonic)
    """What its time counts from, in monotonic seconds."""
    reason: str = ""
    """Why it had to be ended, or failed: empty while it runs, and if it ended well."""

    @property
    def pid(self) -> int:
        """Of the program itself, once it runs in its sandbox; of its launcher before."""
        try:
            return int(msgspec.json.decode(self.report.read_bytes())["pid"])
        except (OSError, *UNDECODABLE):
            return self.process.pid

    def watch(self, limits: SandboxLimits) -> Iterator[bytes]:
        """Parts of its output, which may be empty, until it ends, exceeds a limit or has a reason.

        Without an output the parts are all empty, and come ten times a second.
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
                most = f"{limits.memory_bytes} bytes of memory{limits.activity}"
                self.reason = f"it took more than {most}"

    def failure(self) -> str:
        """Wait for its end; how it failed, with the last line of its log, empty if it did not."""
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
        """End it with what it started, and set `reason`."""
        if not self.reason:
            self.process.wait_blocking(_POLL_S)
        if self.process.is_running():  # all that it started ends with it, and its launcher then
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)
        if self.output is not None:
            os.close(self.output)
        self.reason = self.reason or self.failure()
        self.process.wait_blocking()
        self.process.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxedRun:
    """A directory that programs run in, one after the other, as the user of their occasion."""

    sandbox: Sandbox
    folder: Path
    purpose: SandboxPurpose
    file_bytes: int = 1 << 40
    """How large the files may become that they write."""
    keep: tuple[Path, ...] = ()
    """What they read besides copies."""

    @classmethod
    @contextlib.contextmanager
    def beside_copy(
        cls, path: Path, sandbox: Sandbox, purpose: SandboxPurpose, *, file_bytes: int = 1 << 40
    ) -> "Iterator[tuple[SandboxedRun, Path]]":
        """A new directory and the copy of `path` in it; gone afterwards.

        Raises:
            UnsupportedModelError: It cannot be read.
        """
        prefix = f"headrace-{purpose.name.lower()}-"
        with tempfile.TemporaryDirectory(prefix=prefix) as folder:
            run = cls(sandbox=sandbox, folder=Path(folder), purpose=purpose, file_bytes=file_bytes)
            run.own.mkdir(mode=0o700)
            yield run, run.add_input(path)

    @property
    def own(self) -> Path:
        """The directory of the programs."""
        return self.folder / OWN

    @property
    def inputs(self) -> Path:
        """Where copies of what they read lie."""
        return self.folder / _INPUTS

    def add_input(self, path: Path, kind: str = "model") -> Path:
        """A copy that the program may read, whose user may be one that `path` is closed to.

        Raises:
            UnsupportedModelError: It cannot be read, or a link leaves it.
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
        """The file that says what to do; a link that a program left there is replaced."""
        write_atomic(self.own / name, msgspec.json.encode(request), mode=0o644, durable=False)
        return self.own / name

    @contextlib.contextmanager
    def started(
        self, module: str, *arguments: str, reads_output: bool = False
    ) -> Iterator[SandboxedProgram]:
        """`module`, running in `own` without a network; ended with all it started afterwards.

        Args:
            reads_output: Whether its output is what `watch` gives, and not a part of its log.
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
        # Copies of what may be secret are for root and that user, and nobody else.
        if spec["uid"] is not None:
            os.chown(self.folder, -1, spec["uid"])
            self.folder.chmod(0o710)
        return launched(spec, program)


def open_result(file: Path) -> BinaryIO:
    """What a program left; no link that it may have put there is followed, no pipe waited for.

    Raises:
        OSError: There is no such file, or it is none.
    """
    return os.fdopen(os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb")


def read_result(file: Path, kind: type[_Result]) -> _Result | None:
    """The message that a program left; None if it left something else, or nothing."""
    try:
        with open_result(file) as stream:
            return msgspec.json.decode(stream.read(_MAX_RESULT_BYTES), type=kind)
    except (OSError, *UNDECODABLE):
        return None


def error_of(
    result: "ConvertResult | ProfileFailed | TrialResult", path: Path, copy: Path
) -> HeadraceError:
    """What a program says of `copy`, as an error of `path`."""
    if result.needs_code:
        return CodeNotAllowedError(str(path), result.needs_code, result.why_code)
    text = result.error.replace(str(copy), str(path))
    if result.code == Code.FAILED_PRECONDITION:
        return FailedPreconditionError(text)
    return UnsupportedModelError(text if str(path) in text else f"{path}: {text}")


@dataclass(slots=True)
class SandboxedInspector:
    """Inspects models that are not stored yet. Thread-safe; `close` ends all inspections.

    A process starts an interpreter and imports the runtimes, which takes about 0.3 s: a process
    that waits with both would have to be root, to become the user that may see the model.
    """

    sandbox: Sandbox
    timeout_s: float = _INSPECTION_TIMEOUT_S
    memory_bytes: int | None = None
    """How much one may take; None goes by the model's size."""
    _closing: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of_home(cls, home: Path) -> "SandboxedInspector":
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


def _inspection_result(program: SandboxedProgram, answer: bytes) -> TrialResult:
    """What the process wrote; why it ended, if it wrote nothing that can be read."""
    if program.process.exit_status == CANNOT_ISOLATE:
        return TrialResult(error=program.reason, code=Code.FAILED_PRECONDITION)
    try:
        return msgspec.json.decode(answer, type=TrialResult)
    except UNDECODABLE:
        return TrialResult(error=program.reason or "its process wrote no answer")
