"""What does a model alone answer in time, if requests come as they do to a server?

One thread, no server. Whenever the model is free it takes from what has arrived by then; it knows
nothing of what will come.
"""

import heapq
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, Protocol

import numpy as np

from bench.load.open_loop import Outcome

Array = np.ndarray[Any, Any]

SPIN_S: Final = 0.002
"""Shorter waits are spent awake: a sleep ends late."""


class Clock(Protocol):
    """Monotonic time, and a wait that may end late."""

    def monotonic(self) -> float: ...
    def sleep(self, seconds: float, /) -> None: ...


class Waiting(NamedTuple):
    """A row, and when it arrived."""

    at: float
    tokens: Array


def rows_of(way: str) -> int:
    """The most rows of a batch: 1 of `one`, N of `sorted:N`.

    Raises:
        ValueError: It is neither.
    """
    kind, _, size = way.partition(":")
    if way == "one":
        return 1
    if kind == "sorted" and size.isdecimal() and int(size):
        return int(size)
    msg = f"{way!r} is no way to batch: one or sorted:N"
    raise ValueError(msg)


def take(waiting: list[Waiting], most: int) -> list[Waiting]:
    """Take out the one that came first and those nearest to its length, `most` in all."""
    first = len(waiting[0].tokens)
    nearest = heapq.nsmallest(
        most - 1, range(1, len(waiting)), key=lambda at: abs(len(waiting[at].tokens) - first)
    )
    chosen = {0, *nearest}
    batch = [waiting[at] for at in sorted(chosen)]
    waiting[:] = [one for at, one in enumerate(waiting) if at not in chosen]
    return batch


def replay(
    times: Sequence[float],
    rows: Sequence[Array],
    run: Callable[[Sequence[Array]], object],
    *,
    most: int,
    clock: Clock = time,
) -> Outcome:
    """Run what arrives at `times` (seconds from now), the rows in turn; latencies from then."""
    start = clock.monotonic()
    due = deque(Waiting(start + at, rows[n % len(rows)]) for n, at in enumerate(times))
    waiting: list[Waiting] = []
    latencies_s: list[float] = []
    while due or waiting:
        if not waiting:
            wait_until(due[0].at, clock)
        now = clock.monotonic()
        while due and due[0].at <= now:
            waiting.append(due.popleft())
        batch = take(waiting, most)
        run([one.tokens for one in batch])
        done = clock.monotonic()
        latencies_s += [done - one.at for one in batch]
    # Nothing is sent, so nothing leaves late.
    lags_s = [0.0] * len(times)
    statuses = Counter({200: len(times)})
    return Outcome(statuses=statuses, latencies_s=latencies_s, lags_s=lags_s)


def wait_until(at: float, clock: Clock) -> None:
    """Sleep, and spend the last of it awake."""
    left = at - clock.monotonic()
    if left > SPIN_S:
        clock.sleep(left - SPIN_S)
    while clock.monotonic() < at:
        pass
