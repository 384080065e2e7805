"""Queue that selects the waiting requests that run together next. The caller passes the time."""

import math
from collections import deque
from collections.abc import Callable
from typing import Final

from headrace.core.priorities import DEFAULT_LEVEL, LEVELS
from headrace.engine.grouping import USUAL_OVERHEAD, cheapest_group
from headrace.engine.ticket import Ticket

_LOOK_AHEAD: Final = 128
"""Waiting requests that are considered for one length group; bounds the work of `take`."""


def level_of(priority: int, floor: int = 0) -> int:
    """Return the level of a request's `priority`; 0 means the default, too large means the last.

    A caller with a `floor` has that level by default and may choose a lower level, never a higher
    one.
    """
    if priority <= 0:
        return floor or DEFAULT_LEVEL
    return max(min(priority, LEVELS), floor)


class BatchQueue:
    """Waiting requests, ordered by priority and then by arrival.

    A batch has requests of one group. With `max_padding_ratio` a batch may mix lengths while its
    padded size stays below that ratio of its real size; without it, lengths are equal.
    """

    def __init__(
        self,
        *,
        max_size: int,
        max_queue_delay_s: float = 0.0,
        max_padding_ratio: float | None = None,
    ) -> None:
        self.max_size = max_size
        self.size = 0
        self.rows = 0
        self._max_queue_delay_s = max_queue_delay_s
        self._max_padding_ratio = max_padding_ratio
        self._levels: list[deque[Ticket]] = [deque() for _ in range(LEVELS + 1)]
        self._level_rows = [0] * (LEVELS + 1)
        self._earliest = math.inf

    @property
    def head_length(self) -> int:
        """Return the length of the request that runs next; 1 if the queue is empty."""
        return next((level[0].length for level in self._levels if level), 1)

    @property
    def is_full(self) -> bool:
        """Whether the next `push` would exceed `max_size`."""
        return self.size >= self.max_size

    def waited_s(self, now: float) -> float:
        """Return the summed waiting time of all queued requests; iterates over them."""
        return sum(now - ticket.received_at for level in self._levels for ticket in level)

    def push(self, ticket: Ticket) -> None:
        """Add `ticket`; the caller must have checked `is_full`."""
        assert self.size < self.max_size
        self._levels[ticket.level].append(ticket)
        self._level_rows[ticket.level] += ticket.rows
        self.size += 1
        self.rows += ticket.rows
        if ticket.deadline < self._earliest:  # noqa: PLR1730  # a third of the cost of `min`
            self._earliest = ticket.deadline

    def remove(self, ticket: Ticket) -> bool:
        """Remove one ticket, for example because its caller left; False if it is not queued."""
        try:
            self._levels[ticket.level].remove(ticket)
        except ValueError:
            return False
        self._forget(ticket)
        return True

    def rows_ahead(self, level: int) -> int:
        """Return the number of rows that would run before a new request of `level`."""
        return sum(self._level_rows[: level + 1])

    def has_below(self, level: int) -> bool:
        """Whether a request of a lower priority than `level` is queued."""
        return any(self._levels[level + 1 :])

    def shed(self) -> Ticket:
        """Remove the newest ticket of the lowest priority in the queue; `size` must not be 0."""
        ticket = next(level for level in reversed(self._levels) if level).pop()
        self._forget(ticket)
        return ticket

    def expires_at(self) -> float:
        """Return a time before which no queued deadline passes; infinity without deadlines."""
        return self._earliest

    def expire(self, now: float) -> list[Ticket]:
        """Remove and return every ticket whose deadline has passed."""
        if now < self._earliest:
            return []
        expired = []
        earliest = math.inf
        for index, level in enumerate(self._levels):
            late = [ticket for ticket in level if ticket.deadline <= now]
            if late:
                expired += late
                level = self._levels[index] = deque(t for t in level if t.deadline > now)  # noqa: PLW2901  # the level itself is replaced
            earliest = min(earliest, min((ticket.deadline for ticket in level), default=math.inf))
        self._earliest = earliest
        for ticket in expired:
            self._forget(ticket)
        return expired

    def due_at(self, limit_for: Callable[[int], int]) -> float | None:
        """Return the monotonic time at which the next batch is due; None if the queue is empty.

        Args:
            limit_for: As in `take`.
        """
        if self.size == 0:
            return None
        heads = [level[0] for level in self._levels if level]
        oldest = min(ticket.queued_at for ticket in heads)
        full = self.rows >= limit_for(heads[0].length)
        return oldest if full else oldest + self._max_queue_delay_s

    def take(
        self,
        limit_for: Callable[[int], int],
        overhead_for: Callable[[int], float] = lambda _: USUAL_OVERHEAD,
    ) -> list[Ticket]:
        """Remove and return the next batch; empty if the queue is empty.

        It always includes the first ticket in line, alone if that is larger than the limit.

        Args:
            limit_for: Returns the largest number of rows worth running together at a length.
            overhead_for: Returns the fixed cost of a run at a length, in elements.
        """
        if self.size == 0:
            return []
        levels = [level for level in self._levels if level]
        head = levels[0][0]
        limit = limit_for(head.length)
        if head.group is None:
            batch = _take_in_order(levels, limit)
        else:
            batch = self._take_compatible(levels[0], limit, overhead_for)
        level_rows = self._level_rows
        rows = 0
        for ticket in batch:
            rows += ticket.rows
            level_rows[ticket.level] -= ticket.rows
        self.rows -= rows
        self.size -= len(batch)
        if self.size == 0:
            self._earliest = math.inf
        return batch

    def _forget(self, ticket: Ticket) -> None:
        """Subtract a removed ticket from the counts."""
        self.size -= 1
        self.rows -= ticket.rows
        self._level_rows[ticket.level] -= ticket.rows

    def _take_compatible(
        self, level: deque[Ticket], limit: int, overhead_for: Callable[[int], float]
    ) -> list[Ticket]:
        """Return the head and the tickets of its group whose length is near enough."""
        head = level[0]
        waiting = [level[i] for i in range(min(len(level), _LOOK_AHEAD))]
        group = [ticket for ticket in waiting if ticket.group == head.group]
        if self._max_padding_ratio is None or all(t.length == head.length for t in group):
            batch = _fill(group, limit)
        else:
            batch = cheapest_group(
                group,
                limit=limit,
                max_ratio=self._max_padding_ratio,
                overhead=overhead_for(head.length),
            )
        if len(batch) == 1:
            level.popleft()
        else:
            taken = set(map(id, batch))
            rest = [ticket for ticket in level if id(ticket) not in taken]
            level.clear()
            level.extend(rest)
        return batch


def _take_in_order(levels: list[deque[Ticket]], limit: int) -> list[Ticket]:
    """Return as many tickets from the front as fit, higher levels first; always with the head."""
    batch = [levels[0].popleft()]
    rows = batch[0].rows
    for level in levels:
        while level:
            rows += level[0].rows
            if rows > limit:
                return batch
            batch.append(level.popleft())
    return batch


def _fill(group: list[Ticket], limit: int) -> list[Ticket]:
    batch = [group[0]]
    rows = group[0].rows
    for ticket in group[1:]:
        if rows + ticket.rows > limit:
            break
        batch.append(ticket)
        rows += ticket.rows
    return batch
