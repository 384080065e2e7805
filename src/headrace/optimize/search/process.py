"""`python -m headrace.optimize.search.process`: one search, in a process that candidates may spoil.

Started confined, in a directory of its own: `request.json` says what to do, `journal.jsonl` what
was done, and `error.json` what is wrong with what was given.
"""

import contextlib
import os
import resource
import sys
from collections.abc import Mapping
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
from headrace.optimize.search.asked import SearchRequest

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
    sys.exit(main())
