"""Sandboxed process that converts a model to ONNX and compares it with its source.

It runs in its own directory: `request.json` is the input, `given.npz` holds rows to compare, and
`model.onnx` and `result.json` are the output.
"""

import contextlib
import os
import resource
import sys
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from headrace.core import (
    CodeNotAllowedError,
    HeadraceError,
    ModelSignature,
    Tensors,
)
from headrace.optimize.compare import MAX_CHANGED_RATIO
from headrace.optimize.convert.convert import Conversion, convert
from headrace.optimize.sources import open_source

REQUEST: Final = "request.json"
RESULT: Final = "result.json"
GIVEN: Final = "given.npz"
MODEL: Final = "model.onnx"
_NICE: Final = 5
"""Niceness, as serving has priority."""
_MAX_ERROR: Final = 4000


class ConvertRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Request of a conversion."""

    path: str
    runtime: str
    """Name that `source_runtime` returned."""
    allow_code: bool = False
    tolerance: float | None = None
    max_changed_ratio: float = MAX_CHANGED_RATIO
    no_missing: bool = False
    describe_only: bool = False
    """Whether only the signature is wanted."""


class ConvertResult(msgspec.Struct, frozen=True, kw_only=True):
    """Result of a conversion; `error` is empty on success."""

    error: str = ""
    code: str = ""
    needs_code: str = ""
    """Runtime that would run the author's code, if the request does not allow it."""
    why_code: str = ""
    """The code that would run."""
    signature: ModelSignature | None = None
    """Signature of the source."""
    conversion: Conversion | None = None


def main() -> int:
    """Execute the request in the working directory."""
    os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # out of memory, the kernel kills this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    request = msgspec.json.decode(Path(REQUEST).read_bytes(), type=ConvertRequest)
    Path(RESULT).write_bytes(msgspec.json.encode(outcome(request, Path())))
    return 0


def outcome(request: ConvertRequest, folder: Path) -> ConvertResult:
    """Execute a request; `folder` holds the given rows, and receives the model."""
    try:
        source = open_source(Path(request.path), request.runtime, allow_code=request.allow_code)
        signature = source.model.signature
        if request.describe_only:
            return ConvertResult(signature=signature)
        conversion = convert(
            source,
            folder / MODEL,
            data_rows=_data_rows(folder / GIVEN),
            tolerance=request.tolerance,
            max_changed_ratio=request.max_changed_ratio,
            no_missing=request.no_missing,
        )
    except CodeNotAllowedError as error:
        return ConvertResult(
            error=str(error), needs_code=error.runtime, why_code=error.reason[:_MAX_ERROR]
        )
    except HeadraceError as error:
        return ConvertResult(error=str(error)[:_MAX_ERROR], code=error.code)
    except MemoryError as error:
        return ConvertResult(error=f"it exceeds its memory limit: {error}")
    except Exception as error:  # noqa: BLE001  # third-party converter and library
        return ConvertResult(error=f"{type(error).__name__}: {error}"[:_MAX_ERROR])
    return ConvertResult(signature=signature, conversion=conversion)


def _data_rows(file: Path) -> Tensors | None:
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as loaded:
        return {name: loaded[name] for name in loaded.files}


if __name__ == "__main__":
    sys.exit(main())
