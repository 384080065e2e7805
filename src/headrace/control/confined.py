"""Single run of a program in a sandbox, bounded in time and memory.

It runs in a directory of its own (`own`), beside copies of what it reads, and leaves its results
there; the directory around both is the control plane's.
"""

import contextlib
import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

import msgspec

from headrace.control.process import python_module
from headrace.control.sandbox import Occasion, Sandbox, launched
from headrace.core import InvalidArgumentError, UnsupportedModelError
from headrace.core.files import write_atomic
from headrace.registry import copy_files
from headrace.serving.memory import resident_bytes

OWN: Final = "own"
_GIVEN: Final = "given"
_LOOK_S: Final = 0.1
_LAST_WORDS: Final = 400
_MAX_PART_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What a program may take, and what is said of one that took more."""

    limit_s: float
    too_long: str
    memory_bytes: int
    while_what: str = ""


@dataclass(slots=True, kw_only=True)
class Running:
    """A program that runs. `since`: what its time counts from, in monotonic seconds.

    `why` it had to be ended, or ended by itself: empty while it runs, and if it ended well.
    `process` launches it and waits for it.
    """

    process: "subprocess.Popen[bytes]"
    log: IO[bytes]
    report: Path
    since: float = field(default_factory=time.monotonic)
    why: str = ""

    @property
    def pid(self) -> int:
        """Of the program itself, once it runs in its sandbox; of its launcher before."""
        try:
            return int(msgspec.json.decode(self.report.read_bytes())["pid"])
        except (OSError, msgspec.DecodeError):
            return self.process.pid

    def looks(self, bounds: Bounds) -> Iterator[bytes]:
        """What it said since the last look, if it is heard; goes on until it ends or has to."""
        while not self.why:
            has_ended, said = self._wait()
            yield said
            if has_ended or self.why:
                return
            if time.monotonic() > self.since + bounds.limit_s:
                self.why = bounds.too_long
            elif resident_bytes(self.pid) > bounds.memory_bytes:
                most = f"{bounds.memory_bytes} bytes of memory{bounds.while_what}"
                self.why = f"it took more than {most}"

    def _wait(self) -> tuple[bool, bytes]:
        """Whether it ended, or closed its output, and a part of that."""
        if self.process.stdout is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_LOOK_S)
            return self.process.returncode is not None, b""
        waiting = select.poll()
        waiting.register(self.process.stdout, select.POLLIN)
        if not waiting.poll(_LOOK_S * 1000):
            return False, b""
        said = os.read(self.process.stdout.fileno(), _MAX_PART_BYTES)
        return not said, said

    def how_it_ended(self) -> str:
        """Why it is no more, with its last line; empty if it ended well."""
        code = self.process.wait()
        if code == 0:
            return ""
        signalled = f"was ended by {signal.Signals(-code).name}" if code < 0 else ""
        self.log.seek(max(0, self.log.seek(0, os.SEEK_END) - _LAST_WORDS))
        last = self.log.read().decode(errors="replace").strip().rpartition("\n")[2]
        how = signalled or f"ended with status {code}"
        return f"its process {how}" + (f": {last}" if last else "")

    def end(self) -> None:
        """End it with what it started, and say why in `why`."""
        if not self.why:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(_LOOK_S)
        if self.process.poll() is None:  # all that it started ends with it, and its launcher then
            with contextlib.suppress(OSError):
                os.kill(self.pid, signal.SIGKILL)
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process.wait()
        self.why = self.why or self.how_it_ended()


@dataclass(frozen=True, slots=True, kw_only=True)
class Confined:
    """A directory that programs run in, one after the other, as the user of their occasion.

    `file_bytes`: how large the files may become that they write. `keep`: what they read besides
    copies.
    """

    sandbox: Sandbox
    folder: Path
    occasion: Occasion
    file_bytes: int = 1 << 40
    keep: tuple[Path, ...] = ()

    @classmethod
    @contextlib.contextmanager
    def beside_copy(
        cls, path: Path, sandbox: Sandbox, occasion: Occasion, *, file_bytes: int = 1 << 40
    ) -> "Iterator[tuple[Confined, Path]]":
        """A new directory and the copy of `path` in it; gone afterwards.

        Raises:
            UnsupportedModelError: It cannot be read.
        """
        prefix = f"headrace-{occasion.name.lower()}-"
        with tempfile.TemporaryDirectory(prefix=prefix) as folder:
            made = cls(
                sandbox=sandbox, folder=Path(folder), occasion=occasion, file_bytes=file_bytes
            )
            made.own.mkdir(mode=0o700)
            yield made, made.give(path)

    @property
    def own(self) -> Path:
        """The directory of the programs."""
        return self.folder / OWN

    @property
    def given(self) -> Path:
        """Where copies of what they are given lie."""
        return self.folder / _GIVEN

    def give(self, path: Path, kind: str = "model") -> Path:
        """A copy that the program may read, who may be a user that `path` is closed to.

        Raises:
            UnsupportedModelError: It cannot be read, or a link leaves it.
        """
        folder = self.given / kind
        for made in (self.given, folder):
            made.mkdir(exist_ok=True)
            made.chmod(0o755)
        try:
            return copy_files(path, folder / path.name)
        except OSError as error:
            raise UnsupportedModelError(f"{path}: {error.strerror or error}") from error
        except InvalidArgumentError as error:
            raise UnsupportedModelError(str(error)) from None

    def ask(self, name: str, request: msgspec.Struct) -> Path:
        """The file that says what to do; a link that a program left there is replaced."""
        write_atomic(self.own / name, msgspec.json.encode(request), mode=0o644, durable=False)
        return self.own / name

    @contextlib.contextmanager
    def started(self, module: str, *arguments: str, is_heard: bool = False) -> Iterator[Running]:
        """`module`, running in `own` without a network; ended with all it started afterwards.

        Args:
            is_heard: Whether its output is what `looks` gives, and not a part of its log.
        """
        report = self.folder / "isolation"
        with (self.folder / "log").open("w+b") as log:
            process = subprocess.Popen(  # noqa: S603  # ourselves
                self._command(python_module(module, *arguments), report),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE if is_heard else log,
                stderr=log,
                start_new_session=True,
                env=self.sandbox.environment.of()
                | {"HOME": str(self.own), "TMPDIR": str(self.own)},
            )
            running = Running(process=process, log=log, report=report)
            try:
                yield running
            finally:
                running.end()

    def _command(self, program: list[str], report: Path) -> list[str]:
        spec = self.sandbox.spec(
            own=[self.own],
            keep=[path for path in (self.given, *self.keep) if path.exists()],
            network=False,
            serial=self.occasion,
            report=report,
            limits={"file_bytes": self.file_bytes},
        )
        spec["attached"] = True
        # Copies of what may be secret are for root and that user, and nobody else.
        if spec["uid"] is not None:
            os.chown(self.folder, -1, spec["uid"])
            self.folder.chmod(0o710)
        return launched(spec, program)
