"""Would another engine be faster for larger batches? Asked of trees, where it often is."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from headrace.optimize.by_batch import Choice, choose_by_batch, why_not_mixed
from headrace.optimize.compare import Comparison
from headrace.optimize.timing import Timing

SIZES: Final = (1, 8, 32, 128, 1024)


@dataclass(frozen=True, slots=True)
class Seconds:
    """A measured time, as `choose_by_batch` takes it."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, timing: Timing) -> "Seconds":
        """A contender's median."""
        low, high = timing.p50_ci_s or (timing.p50_s, timing.p50_s)
        return cls(timing.p50_s, low, high)


def choose(
    timings: Mapping[int, Mapping[str, Timing]],
    names: Sequence[str],
    compared: Callable[[str, str], Comparison],
) -> tuple[list[Choice], list[str]]:
    """Which engine runs which batches, and what to say of those that may not be mixed. Pure.

    Args:
        timings: By rows of a batch, of those that were timed together.
        names: The engines, the preferred one first.
        compared: How far apart two engines' answers are.
    """
    measured = {
        name: {rows: Seconds.of(found[name]) for rows, found in timings.items() if name in found}
        for name in names
    }
    measured = {name: times for name, times in measured.items() if times}
    notes, unlike = [], set()
    known = list(measured)
    for place, one in enumerate(known):
        for other in known[place + 1 :]:
            if why := why_not_mixed(compared(one, other)):
                unlike.add(frozenset((one, other)))
                notes.append(f"{one} and {other} do not share a model: {why}")
    return choose_by_batch(measured, unlike=unlike), notes


def said(choices: Sequence[Choice]) -> str:
    """Which engine runs which batches, for people."""
    parts = []
    for name, up_to in choices:
        parts.append(f"{name} for larger ones" if up_to is None else f"{name} up to {up_to} rows")
    return "by the batch's size: " + ", ".join(parts)
