"""Sandboxed search process: `python -m headrace.optimize.search.process`.

It runs in its own directory: `request.json` is the input, `journal.jsonl` the progress and result,
and `error.json` the error of invalid input.
"""

import contextlib
import os
import resource
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import (
    CodeNotAllowedError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    UnsupportedModelError,
)
from headrace.core.errors import Code
from headrace.runtimes.optimized.file import OtherProcessor

DEFAULT_BUDGET_S: Final = 180.0
DEFAULT_LENGTH: Final = 128
"""Default size of variable axes of the timed request, usual for text encoders."""
DEFAULT_SIDE: Final = 224
"""Default image side for conv nets without data, usual for classifiers."""


class SearchTarget(StrEnum):
    """Optimization target."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    MEMORY = "memory"
    COST = "cost"


class SearchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Request of a search. Paths are as the process sees them; empty for absent files."""

    source: str
    runtime: str = ""
    allow_code: bool = False
    digest: str = ""
    data: str = ""
    """Labelled evaluation examples."""
    teach: str = ""
    """Other examples for calibration and training; without them, calibration uses part of `data`
    without labels."""
    tokenizer: str = ""
    label: str = ""
    text: str = ""
    metric: str = ""
    output: str = ""
    calibrate: int = 256
    """Number of calibration examples."""
    target: SearchTarget = SearchTarget.LATENCY
    max_loss: float = 0.01
    """Tolerated loss of the metric; 0.01 is one point of accuracy."""
    budget_s: float = DEFAULT_BUDGET_S
    threads: int = 1
    """Threads per run; `rows` and `length` are of the timed request."""
    rows: int = 1
    length: int | None = None
    seed: int = 0
    only: tuple[str, ...] = ()
    """Names or glob patterns of recipes; empty for all."""
    on_other_processor: OtherProcessor = OtherProcessor.VERIFY

    @property
    def needs_batches(self) -> bool:
        """Whether the load has batches: requests of several rows, or a throughput target."""
        return self.rows > 1 or self.target in {SearchTarget.THROUGHPUT, SearchTarget.COST}


REQUEST: Final = "request.json"
ERROR: Final = "error.json"
_MAX_ERROR: Final = 4000


class SearchError(msgspec.Struct, frozen=True, kw_only=True):
    """Error of a search that cannot run."""

    code: str
    message: str
    needs_code: str = ""
    why_code: str = ""

    def error(self, names: Mapping[str, str]) -> HeadraceError:
        """Return the exception; `names` maps paths of the process to outside paths."""
        text = self.message
        for inside, outside in names.items():
            text = text.replace(inside, outside)
        if self.needs_code:
            return CodeNotAllowedError("the model", self.needs_code, self.why_code)
        match self.code:
            case Code.FAILED_PRECONDITION:
                return FailedPreconditionError(text)
            case Code.INVALID_ARGUMENT:
                return InvalidArgumentError(text)
            case _:
                return UnsupportedModelError(text)


def main() -> int:
    """Execute the request in the working directory."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # out of memory, the kernel kills this process first
        Path("/proc/self/oom_score_adj").write_text("1000")
    # Math libraries would start a thread per core and disturb the timing.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    request = msgspec.json.decode(Path(REQUEST).read_bytes(), type=SearchRequest)
    from headrace.optimize.search.work import search  # noqa: PLC0415  # after the line above

    try:
        search(request, Path())
    except CodeNotAllowedError as error:
        _leave(
            SearchError(
                code=error.code,
                message=str(error),
                needs_code=error.runtime,
                why_code=error.reason[:_MAX_ERROR],
            )
        )
        return 1
    except HeadraceError as error:
        _leave(SearchError(code=error.code, message=str(error)[:_MAX_ERROR]))
        return 1
    return 0


def _leave(error: SearchError) -> None:
    Path(ERROR).write_bytes(msgspec.json.encode(error))


if __name__ == "__main__":
    # Use the imported module: in `__main__`, `SearchTarget` is another class.
    from headrace.optimize.search import process  # noqa: PLW0406

    sys.exit(process.main())
