"""What does a profile say of a replica? Its service curve, and what it takes of a machine."""

from typing import Final

import numpy as np

from headrace.advise.capacity.nodes import Shape
from headrace.advise.capacity.service import ServiceCurve, spread_of
from headrace.optimize.profiling.document import Profile
from headrace.optimize.profiling.messages import Cell
from headrace.optimize.profiling.options import cells_of

_SLOWEST: Final = 3.0
"""A measurement whose capacity is less sure than that is no ground for a plan."""


def curve_of(profile: Profile) -> ServiceCurve:
    """As recommended: its threads, runs at once, and largest batch.

    Runs are as slow as with all places busy, and as at the low end of the capacity's 95 % interval
    where there is one: a plan is for the machine's slow hours, too.
    """
    measured, recommended = profile.measured, profile.recommendation
    loaded, overhead = measured.loaded, profile.overhead
    cells = cells_of(measured.cells, threads=recommended.intra_op_threads, length=loaded.length)
    runs = recommended.max_concurrent_runs if loaded.concurrent else 1
    level = sorted(_level(cells, runs), key=lambda cell: cell.rows)
    means = np.maximum.accumulate([cell.mean_s for cell in level])
    ratios = [sample / cell.mean_s for cell in level for sample in cell.samples_s]
    curve = ServiceCurve(
        rows=tuple(cell.rows for cell in level),
        mean_s=tuple(float(mean) for mean in means),
        spread=spread_of(ratios),
        max_rows=recommended.max_batch_size if loaded.batched else 1,
        runs=runs,
        may_inline=loaded.concurrent,
        wake_s=overhead.wake_s if overhead else 0.0,
        request_s=overhead.cpu_s if overhead else 0.0,
        fixed_s=max(0.0, overhead.wall_s - overhead.wake_s - overhead.cpu_s) if overhead else 0.0,
    )
    interval = profile.prediction.capacity_ci
    if interval is None:
        return curve
    slower = profile.prediction.capacity / max(interval[0], profile.prediction.capacity / _SLOWEST)
    return curve.slower(max(slower, 1.0))


def shape_of(profile: Profile) -> Shape:
    """Its cores, and memory after the largest batch on all of them."""
    memory = profile.measured.memory
    return Shape(
        cores=float(profile.cores),
        memory_bytes=0 if memory is None else max(memory.largest_bytes, memory.loaded_bytes),
    )


def _level(cells: list[Cell], runs: int) -> list[Cell]:
    """Those with so many runs at once, else with the next more, else with the most."""
    known = sorted({cell.runs for cell in cells})
    level = next((one for one in known if one >= runs), known[-1])
    return [cell for cell in cells if cell.runs == level]
