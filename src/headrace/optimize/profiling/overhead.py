"""Measurement of the request overhead of a replica, in blocks.

The replica reports its run times, so that the difference covers the same requests under the same
machine load.
"""

import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from headrace.engine.engine import INLINE_LIMIT_ALONE_S, INLINE_LIMIT_S
from headrace.optimize.profiling.grid import compress_samples
from headrace.optimize.profiling.messages import Overhead

BLOCK: Final = 10
_WARM: Final = 20
_MAX_BLOCKS: Final = 60
_MIN_BLOCKS: Final = 3
_MAX_PAUSE_S: Final = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaTotals:
    """Counters of a replica: answers, run seconds and event loop seconds."""

    answers: int
    answer_s: float
    """Run seconds summed over answers; a batch's run counts for each of its requests."""
    run_s: float
    loop_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestBlock:
    """A block of single or concurrent requests: latencies, and the replica's counters."""

    walls_s: list[float]
    answers: int
    run_s: float
    answer_s: float
    loop_s: float
    paused: bool = False
    """Whether there were pauses between the requests."""


def overhead_of(
    alone: Sequence[RequestBlock], together: Sequence[RequestBlock], *, way: str, max_runs: int
) -> Overhead:
    """Return the overhead as medians over blocks, which discards disturbed ones.

    Args:
        together: Blocks of concurrent requests, all sent at once; may be empty.
    """
    run_s = statistics.median(block.answer_s / block.answers for block in alone)
    limit_s = INLINE_LIMIT_S if max_runs > 1 else INLINE_LIMIT_ALONE_S
    is_inline = run_s < limit_s
    # Caches are cold after a pause and warm between consecutive requests: the event loop of a busy
    # replica costs as much as in the latter case.
    hot = [block for block in alone if not block.paused] or alone

    def loop_s(block: RequestBlock) -> float:
        return max(block.loop_s - (block.run_s if is_inline else 0.0), 0.0)

    beyond = [(sum(block.walls_s) - block.answer_s) / len(block.walls_s) for block in alone]
    wall_s = max(statistics.median(beyond), 0.0)
    one_s = min(statistics.median(loop_s(block) / block.answers for block in hot), wall_s)
    cpu_s = one_s
    if together:
        size = together[0].answers
        many_s = statistics.median(loop_s(block) for block in together)
        cpu_s = min(max((many_s - one_s) / (size - 1), 0.0), one_s)
    single = [wall_s for block in alone for wall_s in block.walls_s]
    return Overhead(
        way=way,
        count=sum(block.answers for block in (*alone, *together)),
        p50_s=statistics.median(single),
        run_s=run_s,
        wall_s=wall_s,
        wake_s=one_s - cpu_s,
        cpu_s=cpu_s,
        spread=_spread(hot) if is_inline else (),
    )


def _spread(blocks: Sequence[RequestBlock]) -> tuple[float, ...]:
    """Return the overhead of each request over its mean.

    Slower runs after pauses are not part of it: predictions draw them separately.
    """
    run_s = statistics.median(block.answer_s / block.answers for block in blocks)
    beyond = np.array([max(wall_s - run_s, 0.0) for block in blocks for wall_s in block.walls_s])
    mean = float(beyond.mean())
    return compress_samples(np.sort(beyond / mean)) if mean else ()


def request_sequentially(
    ask: Callable[[], object],
    totals: Callable[[], ReplicaTotals],
    *,
    budget_s: float,
    seed: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> list[RequestBlock]:
    """Send single requests; every other block has random pauses of about the latency.

    Args:
        ask: Sends one request and waits for its response.
        totals: Returns the replica's counters.
    """
    rng = random.Random(seed)  # noqa: S311  # pauses
    until = clock() + budget_s
    for _ in range(_WARM):
        ask()
    pause_s = 0.001

    def timed_request(*, paused: bool) -> float:
        if paused:
            sleep(min(rng.expovariate(1.0 / pause_s), _MAX_PAUSE_S))
        before = clock()
        ask()
        return clock() - before

    blocks: list[RequestBlock] = []
    while _goes_on(blocks, clock(), until=until, budget_s=budget_s):
        paused = len(blocks) % 2 == 1
        block = _block(lambda: [timed_request(paused=paused) for _ in range(BLOCK)], totals)  # noqa: B023  # called at once
        blocks += [replace(one_block, paused=paused) for one_block in block]
        if blocks:
            pause_s = statistics.fmean(blocks[-1].walls_s)
    return blocks


def request_concurrently(
    request_all: Callable[[], float],
    totals: Callable[[], ReplicaTotals],
    *,
    budget_s: float,
    clock: Callable[[], float] = time.perf_counter,
) -> list[RequestBlock]:
    """Send blocks of concurrent requests.

    Args:
        request_all: Sends all requests and returns the seconds until the last response.
        totals: Returns the replica's counters.
    """
    until = clock() + budget_s
    blocks: list[RequestBlock] = []
    while _goes_on(blocks, clock(), until=until, budget_s=budget_s):
        blocks += _block(lambda: [request_all()], totals)
    return blocks


def _goes_on(blocks: Sequence[RequestBlock], now: float, *, until: float, budget_s: float) -> bool:
    """Return whether to continue: at least a few blocks, in up to twice the time."""
    if now < until:
        return len(blocks) < _MAX_BLOCKS
    return len(blocks) < _MIN_BLOCKS and now < until + budget_s


def _block(
    ask: Callable[[], list[float]], totals: Callable[[], ReplicaTotals]
) -> list[RequestBlock]:
    """Run one block; empty if the replica counted no answers."""
    before = totals()
    walls_s = ask()
    after = totals()
    answers = after.answers - before.answers
    if answers <= 0:
        return []
    return [
        RequestBlock(
            walls_s=walls_s,
            answers=answers,
            run_s=after.run_s - before.run_s,
            answer_s=after.answer_s - before.answer_s,
            loop_s=after.loop_s - before.loop_s,
        )
    ]
