"""Times engines with batches of several sizes, and tells which is to run which."""

import contextlib
import time
from collections.abc import Mapping
from functools import partial
from typing import Final

from headrace.core import Tensors
from headrace.optimize.recipes.trees import differences
from headrace.optimize.search.by_size import SIZES, choose, said
from headrace.optimize.search.journal import Mixed
from headrace.optimize.search.plan import Step
from headrace.optimize.search.requests import batch_of
from headrace.optimize.search.run import Run
from headrace.optimize.timing import Contender, Timing, TimingSettings, summarize
from headrace.runtimes import Model

_SETTINGS: Final = TimingSettings(blocks=8, window_s=0.06, warmup_s=0.05)
_MOST_S: Final = 4.0
"""For one size of batch."""
_COMPARED_ROWS: Final = 4096


def mix(run: Run, step: Step) -> None:
    """Find out whether two engines are better than one, and whether they answer alike."""
    materials = run.materials
    inputs = materials.examples.inputs
    choices: list[tuple[str, int | None]] = []
    notes: list[str] = []
    with contextlib.ExitStack() as stack:
        models = {name: stack.enter_context(run.loaded(name)) for name in step.names}
        timings = _timings(run, step, models) if materials.signature.batched else {}
        if timings:
            many = batch_of(inputs, min(len(inputs), _COMPARED_ROWS))
            choices, notes = choose(
                timings,
                step.names,
                lambda one, other: differences(models[one], models[other], many),
            )
    run.record(
        Mixed(
            at_s=run.now_s(),
            members=tuple(choices),
            said=said(choices) if len(choices) > 1 else "",
            notes=tuple(notes),
        )
    )


def _timings(run: Run, step: Step, models: Mapping[str, Model]) -> dict[int, Mapping[str, Timing]]:
    """By rows of a batch, those of all engines; sizes for which there was no time are missing."""
    first = step.names[0]
    for_each_s = min(max(step.until_s - run.now_s(), 1.0) / len(SIZES), _MOST_S)
    found: dict[int, Mapping[str, Timing]] = {}
    for rows in SIZES:
        request = batch_of(run.materials.examples.inputs, rows)
        contenders = [
            Contender(name=name, run=partial(_once, model, request))
            for name, model in models.items()
        ]
        windows = run.measure(contenders, _SETTINGS, group="", until=time.monotonic() + for_each_s)
        if any(window.name == first and window.readings for window in windows):
            found[rows] = summarize(windows, baseline=first, rng=run.rng)
    return found


def _once(model: Model, request: Tensors) -> None:
    model.run(request)
