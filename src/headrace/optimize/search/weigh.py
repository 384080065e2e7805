"""How much memory does a candidate take? Asked of a process that holds nothing else."""

import multiprocessing
import time
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from headrace.core import HeadraceError, RuntimeFailedError, Tensors
from headrace.runtimes import LoadOptions, load_model
from headrace.runtimes.tuning import Tuning

_TIMEOUT_S: Final = 120.0
_STATUS: Final = Path("/proc/self/status")
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
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe(duplex=False)
    told = msgspec.json.encode(tuning)
    process = spawn.Process(
        target=_weighed, args=(theirs, str(path), runtime, told, threads, request), daemon=True
    )
    process.start()
    theirs.close()
    try:
        if not ours.poll(_TIMEOUT_S):
            msg = f"its memory was not known within {_TIMEOUT_S:g} s"
            raise RuntimeFailedError(msg)
        answer = ours.recv_bytes()
    except EOFError:
        msg = "the process that was to tell its memory ended"
        raise RuntimeFailedError(msg) from None
    finally:
        process.kill()
        process.join()
        ours.close()
    found: tuple[int, float, str] = msgspec.json.decode(answer, type=tuple[int, float, str])
    if found[2]:
        raise RuntimeFailedError(found[2])
    return Weight(found[0], found[1])


def _weighed(  # noqa: PLR0917  # the arguments of a process
    answer: Connection, path: str, runtime: str, tuning: bytes, threads: int, request: Tensors
) -> None:
    before, started = _resident_bytes(), time.perf_counter()
    options = LoadOptions(
        device="cpu",
        intra_op_threads=threads,
        tuning=msgspec.json.decode(tuning, type=Tuning),
    )
    try:
        model = load_model(Path(path), runtime, options)
        load_s = time.perf_counter() - started
        for _ in range(_RUNS):
            model.run(request)
    except HeadraceError as error:
        answer.send_bytes(msgspec.json.encode((0, 0.0, str(error))))
        return
    answer.send_bytes(msgspec.json.encode((_resident_bytes() - before, load_s, "")))


def _resident_bytes() -> int:
    """Resident memory, with the weights that an engine maps from their file."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) * 1024
