"""Warm-up: runs a model before it is ready, so that no caller pays for first runs."""

import logging
import time
from collections.abc import Callable
from typing import Final

from headrace.core import VARIABLE, ModelSignature
from headrace.engine.service_time import ServiceTimes
from headrace.runtimes import Model, generated_inputs

_log = logging.getLogger(__name__)

_LENGTHS: Final = (16, 64, 256)
_FALLBACK_SIZES: Final = (1, 2, 8, 32, 224)
_REPEATS: Final = 3
_WORSE: Final = 1.3
"""Larger batches are not tried once time per row exceeds this multiple of the best."""


def warm_up(
    model: Model,
    times: ServiceTimes,
    *,
    max_batch_size: int,
    budget_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> bool:
    """Run generated inputs of growing batch size and length, and record the service times.

    Returns:
        Whether the model ran at all: it may not accept generated inputs.
    """
    started = clock()
    until = started + budget_s
    ran = False
    for length in _lengths(model.signature):
        if ran and length not in _LENGTHS:
            break
        rows = 1
        best_row_s = float("inf")
        while rows <= max_batch_size and (clock() < until or not ran):
            seconds = _time_run(model, rows=rows, length=length, clock=clock, until=until)
            if seconds is None:
                break
            ran = True
            times.observe(rows=rows, length=_work(model.signature, length), seconds=seconds)
            best_row_s = min(best_row_s, seconds / rows)
            if seconds / rows > best_row_s * _WORSE:
                break
            rows *= 2
        if clock() >= until:
            break
    if not ran:
        _log.warning("the model did not run on generated inputs; it was not warmed up")
    return ran


def _lengths(signature: ModelSignature) -> tuple[int, ...]:
    """Return the sizes of the variable dimensions to measure, then alternatives."""
    return _LENGTHS + _FALLBACK_SIZES if _variable_axes(signature) else (1,)


def _variable_axes(signature: ModelSignature) -> int:
    """Return how many variable dimensions, besides the batch, the first input with any has."""
    first = 1 if signature.batched else 0
    counts = (spec.shape[first:].count(VARIABLE) for spec in signature.inputs)
    return next((count for count in counts if count), 0)


def _work(signature: ModelSignature, size: int) -> int:
    """Return a request's `length` when each of its variable dimensions is `size`."""
    return max(size ** _variable_axes(signature), 1) if signature.batched else 1


def _time_run(
    model: Model, *, rows: int, length: int, clock: Callable[[], float], until: float
) -> float | None:
    """Return the seconds of the fastest of several runs; None if the model refuses such inputs."""
    inputs = generated_inputs(model, rows=rows, variable=length)
    best = float("inf")
    for _ in range(_REPEATS):
        before = clock()
        try:
            model.run(inputs)
        except Exception as error:  # noqa: BLE001  # a plug-in call with generated inputs
            _log.debug("warm-up run failed", extra={"rows": rows, "length": length, "why": error})
            return None
        after = clock()
        best = min(best, after - before)
        if after >= until:
            break
    return best
