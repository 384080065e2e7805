"""How does a model's first inference go? Run once on made-up inputs, and timed."""

import time
from collections.abc import Callable
from typing import Final

from headrace.core import VARIABLE, FirstRun, HeadraceError, Tensors, example_inputs
from headrace.runtimes.base import Model
from headrace.runtimes.probe import VARIABLE_SIZES

_SLOW_S: Final = 1.0
"""A run that took so long is not repeated for a better figure."""


def made_up_inputs(model: Model, *, rows: int = 1, variable: int = 1) -> Tensors:
    """Inputs that mean something to a model, if it knows such, else ones that fit its signature.

    A model may have a method `example_inputs(rows=, variable=)`, as what takes pictures has.
    """
    example = getattr(model, "example_inputs", None)
    if example is None:
        return example_inputs(model.signature, rows=rows, variable=variable)
    found: Tensors = example(rows=rows, variable=variable)
    return found


def first_run(model: Model, clock: Callable[[], float] = time.perf_counter) -> FirstRun:
    """One inference of one row. A model that fails on made-up inputs may do well on real ones."""

    def timed(inputs: Tensors) -> float:
        started = clock()
        model.run(inputs)
        return clock() - started

    signature = model.signature
    shapes = (spec.shape[1:] if signature.batched else spec.shape for spec in signature.inputs)
    sizes = VARIABLE_SIZES if any(VARIABLE in shape for shape in shapes) else VARIABLE_SIZES[:1]
    error = ""
    for size in sizes:
        inputs = made_up_inputs(model, variable=size)
        try:
            run_s = timed(inputs)
            # What a library sets up once is no part of an inference.
            return FirstRun(run_s=run_s if run_s > _SLOW_S else timed(inputs))
        except HeadraceError as failed:
            error = error or str(failed)
    return FirstRun(error=error)
