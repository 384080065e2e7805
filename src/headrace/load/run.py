"""Execution of a load plan, from the first intended send time to the result."""

import asyncio
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
import uvloop

from headrace.load.connection import open_dialler
from headrace.load.generator import Generator
from headrace.load.plan import LoadPlan, check_plan, intended_times
from headrace.load.summary import (
    PENDING,
    SUCCEEDED,
    LoadObjective,
    LoadResult,
    RunRecord,
    summarize,
)
from headrace.load.target import LoadTarget

_SHOWN: Final = 20_000
"""Limit of requests that a tick summarizes while others are due."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunTick:
    """Progress of a run; latencies and lag cover the last second and are None without requests."""

    elapsed_s: float
    """Time since the first request was due."""
    left_s: float
    """Time until the last request is due."""
    sent: int
    """Requests due so far."""
    in_flight: int
    """Unfinished requests."""
    failed: int
    """Failed requests so far."""
    p50_s: float | None
    p99_s: float | None
    lag_p99_s: float | None


def run_load(
    plan: LoadPlan,
    target: LoadTarget,
    *,
    objectives: Sequence[LoadObjective] = (),
    on_tick: Callable[[RunTick], None] | None = None,
) -> LoadResult:
    """Send `target.requests` by `plan` and return the result. Blocks.

    In the main thread, Ctrl-C ends the run early and its measurements count; a second Ctrl-C does
    not wait for requests in flight.

    Args:
        on_tick: Called once a second. Nothing is sent meanwhile, so it must be quick.

    Raises:
        InvalidArgumentError: The plan is out of bounds.
        UnavailableError: The host name does not resolve.
    """
    check_plan(plan)
    assert target.requests, "a target has requests"
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_run(plan, target, objectives, on_tick))


async def _run(
    plan: LoadPlan,
    target: LoadTarget,
    objectives: Sequence[LoadObjective],
    on_tick: Callable[[RunTick], None] | None,
) -> LoadResult:
    record = RunRecord.from_intended(intended_times(plan))
    generator = Generator(
        record,
        target.requests,
        await open_dialler(target),
        connections=plan.connections,
        timeout_s=plan.timeout_s,
        end_s=plan.total_s,
    )
    # Ctrl-C ends the run; the list gets the time of the first one.
    stopped: list[float] = []

    def stop() -> None:
        if not stopped:
            stopped.append(max(time.monotonic() - generator.started_at, 0.0))
        generator.stop()

    with suppress(ValueError, RuntimeError):  # only the main thread receives signals
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop)
    watch = None if on_tick is None else _Watch(plan, generator, on_tick)
    try:
        await generator.run(watch)
    finally:
        with suppress(ValueError, RuntimeError):
            asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
    return summarize(
        record.sample(),
        plan,
        objectives=objectives,
        stopped_at_s=stopped[0] if stopped else None,
        connections=generator.opened,
        waited=generator.waited,
    )


class _Watch:
    """Builder of a `RunTick` each second."""

    def __init__(
        self, plan: LoadPlan, generator: Generator, on_tick: Callable[[RunTick], None]
    ) -> None:
        self._plan = plan
        self._generator = generator
        self._on_tick = on_tick
        self._from = 0
        self._failed = 0
        self._counted = 0

    def __call__(self, elapsed_s: float) -> None:
        generator, record = self._generator, self._generator.record
        until = generator.taken
        begin = max(self._from, until - _SHOWN)
        code = np.array(record.code[begin:until], dtype=np.int16)
        intended = np.array(record.intended[begin:until])
        latency = np.array(record.done[begin:until]) - intended
        lag = np.array(record.handled[begin:until]) - intended
        valid = latency[code == SUCCEEDED]
        self._from = until
        # Count the requests before the first unfinished one, and no more than once.
        code = np.array(self._generator.record.code[self._counted : until], dtype=np.int16)
        pending = np.flatnonzero(code == PENDING)
        over = code if not len(pending) else code[: pending[0]]
        self._failed += int(np.count_nonzero(over > SUCCEEDED))
        self._counted += len(over)
        self._on_tick(
            RunTick(
                elapsed_s=elapsed_s,
                left_s=max(self._plan.total_s - elapsed_s, 0.0),
                sent=until,
                in_flight=generator.in_flight,
                failed=self._failed,
                p50_s=_quantile(valid, 0.5),
                p99_s=_quantile(valid, 0.99),
                lag_p99_s=_quantile(lag, 0.99),
            )
        )


def _quantile(values: np.ndarray, quantile: float) -> float | None:
    if not len(values):
        return None
    rank = min(int(quantile * len(values)), len(values) - 1)
    return float(np.partition(values, rank)[rank])
