"""Which settings are measured, in which order, and when is a larger batch worth it? Pure."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.optimize.profiling.messages import Cell, ProfileRequest
from headrace.optimize.profiling.timing import Setting

LENGTHS: Final = (16, 32, 64, 128, 256)
"""Sizes of variable dimensions that are measured where the model takes them."""
_MAIN_LENGTH: Final = 32
_WORSE: Final = 1.3
"""Larger batches are not tried once time per row exceeds this multiple of the best."""
_FLAT: Final = 0.95
"""A batch is better than a smaller one if it takes less than this share of its time per row."""
_LEAST_SIZES: Final = 4
"""So many are tried in any case where there is time: 1, 2, 4 and 8 rows."""
_OF_BUDGET: Final = 0.04
"""No single run may take more than this share of the whole time."""
_FEW_ROWS: Final = 4
_MIN_WINDOW_S: Final = 0.05
MAX_WINDOW_S: Final = 4.0


def doubling(most: int) -> tuple[int, ...]:
    """1, 2, 4, ... and `most` itself."""
    found = [1]
    while found[-1] * 2 <= most:
        found.append(found[-1] * 2)
    return tuple(found) if found[-1] == most else (*found, most)


def main_length(lengths: Sequence[int], wanted: Sequence[int]) -> int:
    """The length that all of the grid is measured at: the first that was asked for, or a usual one.

    Args:
        lengths: Those with which the model runs; not empty.
        wanted: Those that were asked for.
    """
    if wanted:
        return wanted[0]
    return min(lengths, key=lambda length: (abs(length - _MAIN_LENGTH), length))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What to measure, beyond the batch sizes, which depend on what is found.

    `rows`: ascending. `runs`: at once, with one thread inside each. `threads`: inside one run.
    """

    rows: tuple[int, ...]
    runs: tuple[int, ...]
    threads: tuple[int, ...]
    lengths: tuple[int, ...]
    length: int


def plan_of(
    request: ProfileRequest, *, batched: bool, concurrent: bool, lengths: Sequence[int], length: int
) -> Plan:
    """The plan for a model that takes these `lengths`."""
    cores = request.cores
    rows = tuple(sorted(set(request.rows))) if request.rows else doubling(request.max_rows)
    runs = tuple(sorted(set(request.runs))) if request.runs else doubling(cores)
    threads = tuple(sorted(set(request.threads))) if request.threads else doubling(cores)
    return Plan(
        rows=rows if batched else (1,),
        runs=runs if concurrent else (1,),
        threads=threads,
        lengths=tuple(one for one in lengths if one != length),
        length=length,
    )


def is_worth_more(cells: Sequence[Cell], *, budget_s: float) -> bool:
    """Whether a batch twice as large may be better than these, in ascending order of rows."""
    if not cells:
        return True
    if cells[-1].p50_s * 2 > budget_s * _OF_BUDGET:
        return False
    # Fast runs are those that nobody disturbed: they tell sizes apart on a busy machine, too.
    row_s = [cell.samples_s[len(cell.samples_s) // 10] / cell.rows for cell in cells]
    if len(cells) < _LEAST_SIZES:
        return True
    if row_s[-1] > min(row_s) * _WORSE:
        return False
    return min(row_s[-2:]) < min(row_s[:-2]) * _FLAT


def best_rows(cells: Iterable[Cell]) -> int:
    """The smallest batch that is nearly the best by rows in a second; 1 if there are none."""
    rates = {cell.rows: cell.rows_per_s for cell in cells}
    if not rates:
        return 1
    best = max(rates.values())
    return min(rows for rows, rate in rates.items() if rate >= best * _FLAT)


def remaining(plan: Plan, rows: Sequence[int], best: int, *, cores: int) -> list[Setting]:
    """What is measured once it is known which batches are worth it, the most important first.

    That is runs at once, then threads, then other lengths, of which the long ones take the longest.

    Args:
        rows: The batch sizes that were measured one at a time, ascending.
        best: The best of these.
    """
    most = max(plan.runs)
    found = [
        Setting(threads=1, runs=runs, rows=r, length=plan.length)
        for runs in reversed(plan.runs)
        for r in rows
        if runs > 1
    ]
    few = tuple(dict.fromkeys((1, *(r for r in rows if r == _FEW_ROWS), best)))
    found += [
        Setting(threads=threads, runs=runs, rows=r, length=plan.length)
        for threads in plan.threads
        for runs in dict.fromkeys((1, max(1, min(cores // threads, most))))
        for r in few
        if threads > 1
    ]
    found += [
        Setting(threads=1, runs=runs, rows=r, length=length)
        for length in sorted(plan.lengths)
        for runs in dict.fromkeys((1, most))
        for r in dict.fromkeys((1, best))
    ]
    return found


def in_rounds(cells: Iterable[Cell], plan: Plan, best: int) -> list[Cell]:
    """The cells that predictions rest on, which are measured again and again.

    That is one run at a time, and as many as there may be, of the batches that a replica forms: up
    to the best, and one step further, which it tries now and then.
    """
    most = max(plan.runs)
    largest = best * 2 if best > 1 else _FEW_ROWS
    here = [
        cell
        for cell in cells
        if cell.threads == 1 and cell.length == plan.length and cell.runs in {1, most}
    ]
    least = min((cell.rows for cell in here), default=1)
    return [cell for cell in here if cell.rows <= max(largest, least)]


def window_s(*, left_s: float, settings_left: int, most_s: float = MAX_WINDOW_S) -> float:
    """How long one setting is measured, so that all that are left get their turn."""
    return min(max(left_s / max(settings_left, 1), _MIN_WINDOW_S), most_s)
