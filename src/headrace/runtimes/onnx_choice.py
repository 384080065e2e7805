"""Is OpenVINO faster than the CPU's own provider for this model? Measured, since neither always is.

Both run on the same cores. OpenVINO takes half the time for some networks, and ten times as long
for those that are small, where each run's overhead is all there is.
"""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from headrace.core import HeadraceError, Tensors
from headrace.core.devices import ON_CPU, DeviceUse

Run = Callable[[Tensors], Tensors]

BUDGET_S: Final = 0.2
"""For the runs of each; one run is made in any case."""
_WORTH: Final = 0.9
"""What is not faster by so much is not worth its memory."""


def is_worth_it(
    special: Run, plain: Run, inputs: Tensors, *, clock: Callable[[], float] = time.perf_counter
) -> tuple[bool, str]:
    """Whether `special` is clearly faster than `plain`, and how long each took, in words.

    A model that does not run on made-up inputs cannot be measured: then `special` stays.
    """
    try:
        special_s, plain_s = (_best_s(run, inputs, clock) for run in (special, plain))
    except HeadraceError as error:
        return True, f"it could not be measured: {error}"
    said = (
        f"it takes {special_s * 1e6:.0f} µs for a row, the CPU's own provider {plain_s * 1e6:.0f}"
    )
    return special_s < _WORTH * plain_s, said


def without(use: DeviceUse, name: str, why: str) -> DeviceUse:
    """`use` on the CPU, where `name` was tried and is not worth it."""
    return replace(use, used=ON_CPU, unused={**use.unused, name: why})


def _best_s(run: Run, inputs: Tensors, clock: Callable[[], float]) -> float:
    """The shortest of some runs: whatever disturbs one makes it longer."""
    run(inputs)  # what is set up once
    best = float("inf")
    until = clock() + BUDGET_S
    while True:
        started = clock()
        run(inputs)
        ended = clock()
        best = min(best, ended - started)
        if ended >= until:
            return best
