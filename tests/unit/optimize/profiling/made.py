"""What a measurement might have found, made up."""

from functools import cache

import msgspec

from headrace.core import PaddingSpec
from headrace.optimize.profiling.document import Profile, conclude
from headrace.optimize.profiling.grid import cell_of
from headrace.optimize.profiling.messages import GridCell, Loaded, Measured, Overhead, Setting
from headrace.optimize.profiling.recommend import Requirements
from headrace.runtimes.optimized.file import Processor

HERE = Processor(name="Chip", features=("avx2", "avx512f"))
OVERHEAD = Overhead(
    way="made up", count=1, p50_s=0.0, run_s=0.0, wall_s=0.0003, wake_s=0.0001, cpu_s=0.00005
)


def cell(
    rows: int = 1,
    run_s: float = 0.010,
    *,
    runs: int = 1,
    threads: int = 1,
    length: int = 32,
) -> GridCell:
    """Runs that all take the same time."""
    setting = Setting(threads=threads, runs=runs, rows=rows, length=length)
    return cell_of(setting, [run_s] * 20, elapsed_s=run_s * 20 / runs)


def measured(
    *cells: GridCell,
    batched: bool = True,
    concurrent: bool = True,
    padding: PaddingSpec | None = None,
) -> Measured:
    """A measurement of these cells."""
    return Measured(
        loaded=Loaded(
            runtime="onnx",
            load_s=0.1,
            batched=batched,
            concurrent=concurrent,
            length=cells[0].length,
            lengths=tuple(sorted({one.length for one in cells})),
            padding=padding,
        ),
        cells=cells,
        complete=True,
    )


DEFAULT = measured(cell(1, 0.010), cell(4, 0.020))


def profile(
    found: Measured | None = None,
    *,
    processor: Processor = HERE,
    cores: int = 1,
    at: str = "2026-11-27T10:00:00+00:00",
    requirements: Requirements = Requirements(),  # noqa: B008  # frozen
) -> Profile:
    """The profile of a model that takes 10 ms for one row and 20 ms for four."""
    made = _concluded(msgspec.json.encode(found or DEFAULT), requirements)
    return msgspec.structs.replace(made, processor=processor, cores=cores, created_at=at)


@cache
def _concluded(found: bytes, requirements: Requirements) -> Profile:
    return conclude(
        msgspec.json.decode(found, type=Measured),
        OVERHEAD,
        requirements,
        model="m:1",
        digest="sha256:" + "a" * 64,
        processor=HERE,
        cores=1,
        created_at="",
        headrace="1.0",
        requests=1_000,
    )
