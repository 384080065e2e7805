"""Converts a model in a process that it may spoil, confined as an inspection is.

Not forked from the nursery: converters are large, and a push that converts may take a second more.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from headrace.control.process import python_module
from headrace.control.sandbox import Probe, Sandbox
from headrace.core import (
    Code,
    CodeNotAllowedError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    UnsupportedModelError,
)
from headrace.optimize.convert import Conversion
from headrace.optimize.convert_process import (
    GIVEN,
    MODEL,
    REQUEST,
    RESULT,
    ConvertRequest,
    ConvertResult,
)
from headrace.serving import confine
from headrace.serving.memory import resident_bytes
from headrace.serving.nursery import memory_limit_bytes

TIMEOUT_S: Final = 600.0
_LOOK_S: Final = 0.05
_SERIAL: Final = 604
"""Of the user that conversions run as under root: no replica is it before the 604th."""
_FILE_BYTES: Final = 1 << 40
_MAX_RESULT_BYTES: Final = 1 << 20
_LAST_WORDS: Final = 400


@dataclass(slots=True, kw_only=True)
class ConvertApart:
    """Converts models in processes of their own.

    `sandbox`: how they are kept apart. `timeout_s`: how long one may take. `memory_bytes`: how much
    one may take; None goes by the model's size.
    """

    sandbox: Sandbox
    timeout_s: float = TIMEOUT_S
    memory_bytes: int | None = None
    program: str = "headrace.optimize.convert_process"

    @classmethod
    def of_home(cls, home: Path) -> "ConvertApart":
        """For a command; `home` is hidden from what is converted."""
        ask = cache(lambda: Probe().result())
        return cls(sandbox=Sandbox(hide=(home.resolve(),), reports=home, abilities=ask))

    def describe(self, request: ConvertRequest) -> ModelSignature:
        """What the source takes and gives.

        Raises:
            HeadraceError: As `convert`.
        """
        asked = msgspec.structs.replace(request, describe_only=True)
        with self._ran(asked, None) as (result, _):
            assert result.signature is not None, "it went well"
            return result.signature

    @contextlib.contextmanager
    def convert(
        self, request: ConvertRequest, *, filename: str, given: Tensors | None = None
    ) -> Iterator[tuple[Path, Conversion]]:
        """The converted model, which is gone afterwards, and how it compares.

        Args:
            filename: What the model's file shall be called.
            given: Rows to compare with, as the source takes them.

        Raises:
            UnsupportedModelError: It cannot be converted, or answers too differently.
            CodeNotAllowedError: It would run code; nothing of it was run.
            InvalidArgumentError: The source does not take the rows.
            FailedPreconditionError: A package is not installed.
        """
        with tempfile.TemporaryDirectory(prefix="headrace-converted-") as mine:
            made = Path(mine) / filename
            with self._ran(request, given) as (result, folder):
                assert result.conversion is not None, "it went well"
                _take(folder / MODEL, made)
            yield made, result.conversion

    @contextlib.contextmanager
    def _ran(
        self, request: ConvertRequest, given: Tensors | None
    ) -> Iterator[tuple[ConvertResult, Path]]:
        path = Path(request.path)
        with tempfile.TemporaryDirectory(prefix="headrace-convert-") as outer:
            folder = Path(outer) / "own"  # the outer one stays ours
            folder.mkdir(mode=0o700)
            copy = readable_copy(path, Path(outer) / "source")
            here = msgspec.structs.replace(request, path=str(copy))
            (folder / REQUEST).write_bytes(msgspec.json.encode(here))
            if given is not None:
                np.savez(folder / GIVEN, allow_pickle=False, **given)
            for file in folder.iterdir():  # it may be another user
                file.chmod(0o644)
            Path(outer).chmod(0o711)
            why = self._run(copy, folder, Path(outer))
            result = _read(folder / RESULT) or ConvertResult(error=why or "it left no result")
            if result.error:
                raise _error(path, copy, result)
            yield result, folder

    def _run(self, path: Path, folder: Path, outer: Path) -> str:
        """Why the process had to be ended, or ended by itself without a result."""
        spec = self.sandbox.spec(
            own=[folder],
            keep=[path.parent],
            network=False,
            serial=_SERIAL,
            report=str(outer / "isolation"),
            limits={"file_bytes": _FILE_BYTES},
        )
        program = python_module(self.program)
        most = self.memory_bytes or memory_limit_bytes(_size_bytes(path))
        with (outer / "log").open("w+b") as log:
            process = subprocess.Popen(  # noqa: S603  # ourselves
                [sys.executable, "-I", "-S", confine.__file__, json.dumps(spec), *program],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env=os.environ | {"HOME": str(folder), "TMPDIR": str(folder)},
            )
            try:
                why = self._watch(process, most)
            finally:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)  # what it started ends with it
                code = process.wait()
            log.seek(max(0, log.seek(0, os.SEEK_END) - _LAST_WORDS))
            return why or how_it_ended(code, log.read().decode(errors="replace"))

    def _watch(self, process: subprocess.Popen[bytes], most_bytes: int) -> str:
        """Why the process has to be ended; empty once it ended by itself."""
        until = time.monotonic() + self.timeout_s
        while process.poll() is None:
            if time.monotonic() > until:
                return f"it was not converted within {self.timeout_s:g} s"
            if resident_bytes(process.pid) > most_bytes:
                return f"it took more than {most_bytes} bytes of memory while it was converted"
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_LOOK_S)
        return ""


def readable_copy(path: Path, folder: Path) -> Path:
    """A copy that anybody may read: the process may be a user that the file is closed to.

    Raises:
        UnsupportedModelError: It cannot be read.
    """
    folder.mkdir(mode=0o755)
    copy = folder / path.name
    try:
        if path.is_dir():
            shutil.copytree(path, copy)
        else:
            shutil.copyfile(path, copy)
        for made in (copy, *(copy.rglob("*") if copy.is_dir() else ())):
            made.chmod(0o755 if made.is_dir() else 0o644)
    except OSError as error:
        raise UnsupportedModelError(f"{path}: {error.strerror or error}") from error
    return copy


def _size_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def how_it_ended(code: int, said: str) -> str:
    """Why a process is no more, with its last line; empty if it ended well."""
    if code == 0:
        return ""
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
    last = said.strip().rpartition("\n")[2]
    return f"its process {how}" + (f": {last}" if last else "")


def _read(file: Path) -> ConvertResult | None:
    """What the process says came of it; it may have written anything."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            return msgspec.json.decode(stream.read(_MAX_RESULT_BYTES), type=ConvertResult)
    except (OSError, msgspec.MsgspecError):
        return None


def _take(file: Path, to: Path) -> None:
    """Copy what the process made; no link that it may have put there is followed."""
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        msg = f"the process that converted it left no model: {error.strerror}"
        raise UnsupportedModelError(msg) from None
    with os.fdopen(descriptor, "rb") as stream, to.open("xb") as made:
        shutil.copyfileobj(stream, made)


def _error(path: Path, copy: Path, result: ConvertResult) -> HeadraceError:
    if result.needs_code:
        return CodeNotAllowedError(str(path), result.needs_code, result.why_code)
    text = result.error.replace(str(copy), str(path))
    match result.code:
        case Code.FAILED_PRECONDITION:
            return FailedPreconditionError(text)
        case Code.INVALID_ARGUMENT if "rows that were given" in text:
            return InvalidArgumentError(text)
        case _:
            return UnsupportedModelError(text if str(path) in text else f"{path}: {text}")
