"""Conversion of a model to ONNX in a process of its own, compared with its source.

Started confined, in a directory of its own: `request.json` says what to do, `given.npz` holds rows
to compare with, and what came of it is left as `model.onnx` and `result.json`.
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
"""What serves comes first."""
_MAX_ERROR: Final = 4000


class ConvertRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What to convert, as `convert` takes it. `runtime`: as `source_runtime` gives it.

    `describe_only`: only say what the model takes and gives.
    """

    path: str
    runtime: str
    allow_code: bool = False
    tolerance: float | None = None
    max_changed_ratio: float = MAX_CHANGED_RATIO
    no_missing: bool = False
    describe_only: bool = False


class ConvertResult(msgspec.Struct, frozen=True, kw_only=True):
    """`error` is empty if it went well. `signature`: of the source.

    `needs_code`, `why_code`: what would have run code, and what that is, as `TrialResult`.
    """

    error: str = ""
    code: str = ""
    needs_code: str = ""
    why_code: str = ""
    signature: ModelSignature | None = None
    conversion: Conversion | None = None


def main() -> int:
    """Do what the working directory's request says."""
    os.nice(_NICE)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # out of memory, this one goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    request = msgspec.json.decode(Path(REQUEST).read_bytes(), type=ConvertRequest)
    Path(RESULT).write_bytes(msgspec.json.encode(outcome(request, Path())))
    return 0


def outcome(request: ConvertRequest, folder: Path) -> ConvertResult:
    """What comes of a request; the model is left in `folder`, where given rows lie."""
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
        return ConvertResult(error=f"it needs more memory than it may take: {error}")
    except Exception as error:  # noqa: BLE001  # a converter and a library of somebody's
        return ConvertResult(error=f"{type(error).__name__}: {error}"[:_MAX_ERROR])
    return ConvertResult(signature=signature, conversion=conversion)


def _data_rows(file: Path) -> Tensors | None:
    if not file.exists():
        return None
    with np.load(file, allow_pickle=False) as loaded:
        return {name: loaded[name] for name in loaded.files}


if __name__ == "__main__":
    sys.exit(main())
