"""`python -m headrace.optimize.profiling.worker`: measure a model, in a process that it may spoil.

Started confined, in a directory of its own, where `request.json` says what to do. What it finds it
says on standard output, a line of JSON for each; what the model prints goes to standard error.
"""

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from headrace.core import CodeNotAllowedError, HeadraceError, UnsupportedModelError
from headrace.optimize.profiling.measure import Measuring, Say
from headrace.optimize.profiling.messages import Event, Failed, ProfileRequest
from headrace.runtimes import code_of_model, detect_runtime, get_runtime, runs_code

REQUEST: Final = "request.json"
_MAX_ERROR: Final = 4000


def main() -> int:
    """Do what the working directory's request says."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    said = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    Path("/proc/self/oom_score_adj").write_text("1000")  # out of memory, this one goes first
    request = msgspec.json.decode(Path(REQUEST).read_bytes(), type=ProfileRequest)
    cores = sorted(os.sched_getaffinity(0))[: request.cores]
    os.sched_setaffinity(0, cores)

    def say(event: Event) -> None:
        said.write(msgspec.json.encode(event) + b"\n")

    profile(request, say)
    return 0


def profile(
    request: ProfileRequest, say: Say, clock: Callable[[], float] = time.perf_counter
) -> None:
    """Measure, and say what went wrong where that cannot be done."""
    path = Path(request.path)
    try:
        runtime = _checked_runtime(path, request)
        Measuring(msgspec.structs.replace(request, runtime=runtime), say, clock).run()
    except CodeNotAllowedError as error:
        say(Failed(error=str(error), needs_code=error.runtime, why_code=error.reason[:_MAX_ERROR]))
    except HeadraceError as error:
        say(Failed(error=str(error)[:_MAX_ERROR], code=error.code))
    except MemoryError as error:
        say(Failed(error=f"it needs more memory than it may take: {error}"))
    except Exception as error:  # noqa: BLE001  # a model and a library of somebody's
        say(Failed(error=f"{type(error).__name__}: {error}"[:_MAX_ERROR]))


def _checked_runtime(path: Path, request: ProfileRequest) -> str:
    """The runtime of the model.

    Raises:
        CodeNotAllowedError: It would run code, and may not.
        UnsupportedModelError: No runtime takes it.
    """
    if not path.exists():
        msg = f"{path}: no such file or directory"
        raise UnsupportedModelError(msg)
    runtime = get_runtime(request.runtime) if request.runtime else detect_runtime(path)
    if not request.allow_code and runs_code(runtime, path):
        raise CodeNotAllowedError(str(path), runtime.name, code_of_model(runtime, path))
    return runtime.name


if __name__ == "__main__":
    sys.exit(main())
