"""One search in a process of its own: `python -m headrace.optimize.search.process`.

Started confined, in a directory of its own: `request.json` says what to do, `journal.jsonl` what
was done, and `error.json` what is wrong with what was given.
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
"""Of a variable axis besides the batch, in what is timed: usual for encoders of text."""
DEFAULT_SIDE: Final = 224
"""The same for conv nets, where no data says how large images are: usual for classifiers."""


class SearchTarget(StrEnum):
    """What is to become better."""

    LATENCY = "latency"
    THROUGHPUT = "throughput"
    MEMORY = "memory"
    COST = "cost"


class SearchRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One search. Paths are those that the process sees; empty for what is not there.

    `data`: labelled examples that candidates are judged by. `teach`: others, to calibrate with and
    to learn from; without them it is calibrated with some of `data`, whose labels it is not told.
    `calibrate`: with how many examples. `max_loss`: how much of the metric may be lost, 0.01 for
    one point of accuracy. `threads`: inside one run; `rows` and `length` of the request that is
    timed, `length` None for what the examples have where they are equally long. `only`: names of
    recipes, `*` for any letters; empty for all that apply.
    """

    source: str
    runtime: str = ""
    allow_code: bool = False
    digest: str = ""
    data: str = ""
    teach: str = ""
    tokenizer: str = ""
    label: str = ""
    text: str = ""
    metric: str = ""
    output: str = ""
    calibrate: int = 256
    target: SearchTarget = SearchTarget.LATENCY
    max_loss: float = 0.01
    budget_s: float = DEFAULT_BUDGET_S
    threads: int = 1
    rows: int = 1
    length: int | None = None
    seed: int = 0
    only: tuple[str, ...] = ()
    on_other_processor: OtherProcessor = OtherProcessor.VERIFY

    @property
    def needs_batches(self) -> bool:
        """Whether the load is one of many rows: those of a request, or of requests in a queue."""
        return self.rows > 1 or self.target in {SearchTarget.THROUGHPUT, SearchTarget.COST}


REQUEST: Final = "request.json"
ERROR: Final = "error.json"
_MAX_ERROR: Final = 4000


class SearchError(msgspec.Struct, frozen=True, kw_only=True):
    """Why a search cannot be done at all."""

    code: str
    message: str
    needs_code: str = ""
    why_code: str = ""

    def error(self, names: Mapping[str, str]) -> HeadraceError:
        """As the command reports it; `names`: what paths of the process are called outside."""
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
    """Do what the working directory's request says."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(OSError):  # out of memory, this one goes first
        Path("/proc/self/oom_score_adj").write_text("1000")
    # Libraries of arithmetic would start as many threads as there are cores, beside what is timed.
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
    # As the rest of the search knows this module: in `__main__`, `SearchTarget` is another class.
    from headrace.optimize.search import process  # noqa: PLW0406

    sys.exit(process.main())
