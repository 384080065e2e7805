"""How soon is a drift found, and how often is one seen where there is none? By playing it.

Made-up features in virtual time: normal values, of which the first one drifts by a number of
standard deviations. Nothing here is measured on a machine, so the same seed gives the same table.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median
from typing import Final

import numpy as np

from headrace.core.drift_settings import DriftSettings
from headrace.monitor.drift import Watch
from headrace.monitor.drift_reference import Reference, feature_reference
from headrace.observe.feature_counts import count_column
from headrace.observe.features import INPUT

STEP_ROWS: Final = 50
"""How often is looked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is played: `shift` in standard deviations, which begins after `clean_rows`."""

    shift: float
    reference_rows: int = 2000
    features: int = 10
    clean_rows: int = 0
    most_rows: int = 20_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of all streams: how many named the drifted feature, and after how many rows; and others.

    `within`: rows in which 95 % of the streams found it; None where fewer did.
    """

    plan: Plan
    streams: int
    found: int
    median_rows: float | None
    within: int | None
    wrong: int


def play(plan: Plan, settings: DriftSettings, *, streams: int, seed: int = 0) -> Outcome:
    """Play so many streams, watched all the time."""
    rows: list[int] = []
    wrong = 0
    for stream in range(streams):
        found, is_wrong = _one(plan, settings, np.random.default_rng([seed, stream]))
        wrong += is_wrong
        if found is not None:
            rows.append(found)
    needed = -(-streams * 95 // 100)
    return Outcome(
        plan=plan,
        streams=streams,
        found=len(rows),
        median_rows=median(rows) if rows else None,
        within=sorted(rows)[needed - 1] if len(rows) >= needed else None,
        wrong=wrong,
    )


def _one(
    plan: Plan, settings: DriftSettings, random: np.random.Generator
) -> tuple[int | None, bool]:
    """Rows after which the drift was found, None for never; and whether another was named."""
    names = [f"x[{i}]" for i in range(plan.features)]
    reference = Reference(
        features=[
            feature_reference(name, INPUT, random.normal(size=plan.reference_rows))
            for name in names
        ],
        rows=plan.reference_rows,
    )
    watch = Watch(reference=reference, settings=settings)
    drifted = {names[0]} if plan.shift else set()
    is_wrong = False
    for seen, table in _stream(plan, random):
        counts = [count_column(table[:, i], one.bins) for i, one in enumerate(reference.features)]
        named = {one.name for one in watch.add(counts, now=float(seen))}
        is_early = seen <= plan.clean_rows
        is_wrong = is_wrong or bool(named - drifted) or (is_early and bool(named))
        if named & drifted and not is_early:
            return seen - plan.clean_rows, is_wrong
    return None, is_wrong


def _stream(
    plan: Plan, random: np.random.Generator
) -> Iterator[tuple[int, "np.ndarray[tuple[int, int], np.dtype[np.float64]]"]]:
    """Rows so far, and the newest ones, `[rows, features]`."""
    for begin in range(0, plan.clean_rows + plan.most_rows, STEP_ROWS):
        table = random.normal(size=(STEP_ROWS, plan.features))
        if begin >= plan.clean_rows:
            table[:, 0] += plan.shift
        yield begin + STEP_ROWS, table
