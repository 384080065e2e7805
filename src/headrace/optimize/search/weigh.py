"""Memory that a candidate takes, measured in a process that holds nothing else."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from headrace.core import RuntimeFailedError, Tensors
from headrace.core.processes import resident_bytes
from headrace.optimize.child import run_in_child
from headrace.runtimes import LoadOptions, load_model
from headrace.runtimes.tuning import Tuning

_TIMEOUT_S: Final = 120.0
_RUNS: Final = 3


class Weight(NamedTuple):
    """`memory_bytes`: resident above an interpreter that has loaded no model."""

    memory_bytes: int
    load_s: float


def weigh(path: Path, runtime: str, tuning: Tuning, *, threads: int, request: Tensors) -> Weight:
    """What a candidate takes once it has loaded and run.

    Raises:
        RuntimeFailedError: Its process ended, or was not done in time.
    """
    options = LoadOptions(device="cpu", intra_op_threads=threads, tuning=tuning)
    return run_in_child(
        *(_weighed, path, runtime, options, request),
        returns=Weight,
        raises=RuntimeFailedError,
        deadline=time.monotonic() + _TIMEOUT_S,
    )


def _weighed(
    _: Callable[[str], None], path: Path, runtime: str, options: LoadOptions, request: Tensors
) -> Weight:
    before, started = resident_bytes(), time.perf_counter()
    model = load_model(path, runtime, options)
    load_s = time.perf_counter() - started
    for _run in range(_RUNS):
        model.run(request)
    return Weight(resident_bytes() - before, load_s)
