"""Conversion of a model in a sandboxed process.

It is not forked from the fork server: converters are large, and 1 s more is acceptable.
"""

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from headrace.control.local.sandbox import Sandbox, SandboxPurpose
from headrace.control.sandboxed.run import (
    SandboxedRun,
    SandboxLimits,
    error_of,
    open_result,
    read_result,
)
from headrace.core import (
    Code,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    UnsupportedModelError,
)
from headrace.optimize.convert.convert import Conversion
from headrace.optimize.convert.process import (
    GIVEN,
    MODEL,
    REQUEST,
    RESULT,
    ConvertRequest,
    ConvertResult,
)
from headrace.serving.memory import memory_limit_bytes, size_bytes

TIMEOUT_S: Final = 600.0
_PROGRAM: Final = "headrace.optimize.convert.process"


def source_signature(sandbox: Sandbox, request: ConvertRequest) -> ModelSignature:
    """Return the inputs and outputs of a conversion's source.

    Raises:
        HeadraceError: Same errors as `converted_model`.
    """
    request = msgspec.structs.replace(request, describe_only=True)
    with _ran(sandbox, request) as (result, _):
        assert result.signature is not None, "it went well"
        return result.signature


@contextlib.contextmanager
def converted_model(
    sandbox: Sandbox,
    request: ConvertRequest,
    *,
    filename: str,
    rows: Tensors | None = None,
    timeout_s: float = TIMEOUT_S,
    memory_bytes: int | None = None,
    program: str = _PROGRAM,
) -> Iterator[tuple[Path, Conversion]]:
    """Yield the converted model, which is removed afterwards, and its comparison with the source.

    Args:
        filename: The name of the model's file.
        rows: Rows to compare with, in the source's input format.
        memory_bytes: Memory limit of the process; None derives it from the model's size.

    Raises:
        UnsupportedModelError: It cannot be converted, or its answers differ too much.
        CodeNotAllowedError: It would run code; none of it was run.
        InvalidArgumentError: The source does not take the rows.
        FailedPreconditionError: A package is not installed.
    """
    ran = _ran(
        *(sandbox, request, rows), timeout_s=timeout_s, memory_bytes=memory_bytes, program=program
    )
    with tempfile.TemporaryDirectory(prefix="headrace-converted-") as directory:
        model = Path(directory) / filename
        with ran as (result, own):
            assert result.conversion is not None, "it went well"
            try:  # do not follow links that the program left
                with open_result(own / MODEL) as stream, model.open("xb") as file:
                    shutil.copyfileobj(stream, file)
            except OSError as error:
                msg = f"the process that converted it left no model: {error.strerror}"
                raise UnsupportedModelError(msg) from None
        yield model, result.conversion


@contextlib.contextmanager
def _ran(
    sandbox: Sandbox,
    request: ConvertRequest,
    rows: Tensors | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    memory_bytes: int | None = None,
    program: str = _PROGRAM,
) -> Iterator[tuple[ConvertResult, Path]]:
    """Yield a successful result and the directory of the process's files."""
    path = Path(request.path)
    with SandboxedRun.next_to_copy(path, sandbox, SandboxPurpose.CONVERSION) as (run, copy):
        run.write_request(REQUEST, msgspec.structs.replace(request, path=str(copy)))
        if rows is not None:
            np.savez(run.own / GIVEN, allow_pickle=False, **rows)
            (run.own / GIVEN).chmod(0o644)  # the program may run as another user
        limits = SandboxLimits(
            timeout_s=timeout_s,
            timeout_reason=f"it was not converted within {timeout_s:g} s",
            memory_bytes=memory_bytes or memory_limit_bytes(size_bytes(copy)),
            activity=" while it was converted",
        )
        with run.started(program) as running:
            for _ in running.watch(limits):
                pass
        result = read_result(run.own / RESULT, ConvertResult)
        result = result or ConvertResult(error=running.reason or "it left no result")
        if result.code == Code.INVALID_ARGUMENT and "the given rows" in result.error:
            raise InvalidArgumentError(result.error.replace(str(copy), str(path)))
        if result.error:
            raise error_of(result, path, copy)
        yield result, run.own
