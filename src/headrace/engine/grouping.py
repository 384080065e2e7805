"""Grouping of waiting requests into padded runs with the least total time."""

import math
from typing import Final

from headrace.engine.ticket import Ticket

USUAL_OVERHEAD: Final = 16.0
"""Fixed cost of a run in elements, where it was not measured: about what a core computes while it
reads a model's weights from memory once.
"""
_HOPELESS: Final = 8.0
"""Padding beyond this many overheads is cheaper as two runs: larger groups are not considered."""


def cheapest_group(
    tickets: list[Ticket], *, limit: int, max_ratio: float, overhead: float
) -> list[Ticket]:
    """Return the batch of the first ticket in the partition of `tickets` that takes the least time.

    The cost of a run is `overhead` plus its rows times its longest row. With tickets sorted by
    length, the best partition into runs is found by dynamic programming over its end (Bellman,
    1957), in steps proportional to tickets times the rows of a run. Among equal lengths, earlier
    tickets share the run of the first.

    Args:
        tickets: In order of arrival; `length` and `rows` are read.
        limit: Rows of a batch; one ticket may have more, alone.
        max_ratio: Largest ratio of a batch's padded size to its real size.
        overhead: Fixed cost of a run in elements (rows times length).
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
    """Return the sort key: length; among equal lengths, earlier tickets are nearer to the head."""
    return (length, index) if length >= head_length else (length, -index)


def _cheapest_starts(
    ordered: list[Ticket], *, limit: int, max_ratio: float, overhead: float
) -> list[int]:
    """Return, for each end, the start of the last run of the cheapest partition up to it."""
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
