"""Grouping of waiting requests into padded runs: the cut that takes the least time."""

import math
from typing import Final

from headrace.engine.ticket import Ticket

USUAL_OVERHEAD: Final = 16.0
"""What a run costs beside its elements, in elements, where it was not measured: about what a core
can compute while it reads a model's weights from memory once."""
_HOPELESS: Final = 8.0
"""Padding of so many overheads is cheaper in two runs: groups beyond are not looked at."""


def cheapest_group(
    tickets: list[Ticket], *, limit: int, max_ratio: float, overhead: float
) -> list[Ticket]:
    """The batch of the first of `tickets` in the cut of all of them that takes the least time.

    A run is taken to cost `overhead` plus its rows times its longest row. In the order of lengths
    the best cut into runs is found by dynamic programming over its end (Bellman, 1957), in steps
    proportional to tickets times the rows of a run. Among equal lengths those that came first share
    the run of the first.

    Args:
        tickets: In the order in which they came; their `length`s and `rows` are looked at.
        limit: Rows of a batch; one ticket may have more, alone.
        max_ratio: Padded over real size of a batch, at most.
        overhead: In elements, that is rows times length.
    """
    head = tickets[0]
    indices = range(len(tickets))
    order = sorted(indices, key=lambda i: _place(i, tickets[i].length, head.length))
    ordered = [tickets[i] for i in order]
    starts = _cheapest_starts(ordered, limit=limit, max_ratio=max_ratio, overhead=overhead)
    head_rank = order.index(0)
    end = len(ordered)
    while starts[end] > head_rank:
        end = starts[end]
    return ordered[starts[end] : end]


def _place(index: int, length: int, head_length: int) -> tuple[int, int]:
    """By length; of equal ones those that came first are nearer to the head."""
    return (length, index) if length >= head_length else (length, -index)


def _cheapest_starts(
    ordered: list[Ticket], *, limit: int, max_ratio: float, overhead: float
) -> list[int]:
    """For each end, where the last run of the cheapest cut up to it begins."""
    costs = [0.0]
    starts = [0]
    for end in range(1, len(ordered) + 1):
        longest = ordered[end - 1].length
        rows = real = 0
        best = math.inf
        best_start = end - 1
        for start in range(end - 1, -1, -1):
            ticket = ordered[start]
            rows += ticket.rows
            real += ticket.rows * ticket.length
            size = rows * longest
            is_alone = start == end - 1
            if not is_alone and (rows > limit or size - real > _HOPELESS * overhead):
                break
            if not is_alone and size > real * max_ratio:
                continue
            cost = costs[start] + overhead + size
            if cost < best:
                best = cost
                best_start = start
        costs.append(best)
        starts.append(best_start)
    return starts
