"""Converts a model in a process that it may spoil, confined as an inspection is.

Not forked from the nursery: converters are large, and a push that converts may take a second more.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from headrace.control.confined import Bounds, Confined
from headrace.control.left_behind import error_of, open_left, read_left
from headrace.control.sandbox import Occasion, Sandbox
from headrace.core import (
    Code,
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
from headrace.serving.memory import memory_limit_bytes

TIMEOUT_S: Final = 600.0


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
        return cls(sandbox=Sandbox.of_home(home))

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
        with Confined.beside_copy(path, self.sandbox, Occasion.CONVERSION) as (place, copy):
            place.ask(REQUEST, msgspec.structs.replace(request, path=str(copy)))
            if given is not None:
                np.savez(place.own / GIVEN, allow_pickle=False, **given)
                (place.own / GIVEN).chmod(0o644)  # the program may be another user
            bounds = Bounds(
                limit_s=self.timeout_s,
                too_long=f"it was not converted within {self.timeout_s:g} s",
                memory_bytes=self.memory_bytes or memory_limit_bytes(_size_bytes(copy)),
                while_what=" while it was converted",
            )
            with place.started(self.program) as running:
                for _ in running.looks(bounds):
                    pass
            result = read_left(place.own / RESULT, ConvertResult)
            result = result or ConvertResult(error=running.why or "it left no result")
            if result.error:
                raise _error(path, copy, result)
            yield result, place.own


def _size_bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else (path,)
    return sum(file.stat().st_size for file in files if file.is_file())


def _take(file: Path, to: Path) -> None:
    """Copy what the process made; no link that it may have put there is followed."""
    try:
        stream = open_left(file)
    except OSError as error:
        msg = f"the process that converted it left no model: {error.strerror}"
        raise UnsupportedModelError(msg) from None
    with stream, to.open("xb") as made:
        shutil.copyfileobj(stream, made)


def _error(path: Path, copy: Path, result: ConvertResult) -> HeadraceError:
    if result.code == Code.INVALID_ARGUMENT and "rows that were given" in result.error:
        return InvalidArgumentError(result.error.replace(str(copy), str(path)))
    return error_of(result, path, copy)
