"""Streams of rows in this process, and a watch over them."""

from collections.abc import Iterable

import numpy as np

from headrace.core import Array
from headrace.core.spec.observe import DriftSpec
from headrace.monitor.drift import DriftWatch, FeatureReport, FeatureState
from headrace.monitor.drift_reference import (
    DATA,
    WINDOW,
    DriftReference,
    FeatureReference,
    feature_reference,
)
from headrace.observe.features import count_columns

DAY_S = 86_400.0


def a_watch(columns: Iterable[Array], **settings: float) -> DriftWatch:
    """A watch of inputs `x[0]`, `x[1]`, ... whose first window these values are."""
    own = DriftSpec(**settings)  # type: ignore[arg-type]  # whole numbers come as such
    return DriftWatch(reference=window_of(np.stack(list(columns), axis=1)), settings=own)


def see(watch: DriftWatch, table: Array, *, step: int = 100) -> list[FeatureReport]:
    """Let a watch see rows, `[rows, features]`, so many at a time; every change it told."""
    bins = [one.bins for one in watch.reference.features]
    changes: list[FeatureReport] = []
    for begin in range(0, len(table), step):
        counts = count_columns(table[begin : begin + step], bins)
        changes += watch.add(counts, now=float(begin))
    return changes


def states(watch: DriftWatch) -> dict[str, FeatureState]:
    return {one.name: one.state for one in watch.reports()}


def normal(rows: int, features: int = 1, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, features))


def autoregressive(
    rows: int, coefficient: float, random: np.random.Generator, *, features: int = 1
) -> Array:
    """AR(1) rows of variance 1, `[rows, features]`; independent ones where `coefficient` is 0."""
    noise = random.normal(size=(rows, features))
    table = np.empty_like(noise)
    table[0] = noise[0]
    for row in range(1, rows):
        table[row] = coefficient * table[row - 1] + noise[row] * (1 - coefficient**2) ** 0.5
    return table


def swing(times: Array, height: float) -> Array:
    """What the hour of the day adds, `[rows, 1]`; highest at 6 in the morning."""
    moved: Array = height * np.sin(2 * np.pi * times / DAY_S)[:, None]
    return moved


def window_of(table: Array) -> DriftReference:
    """The reference that first requests make, 25 a second."""
    times = np.arange(len(table)) / 25.0
    return DriftReference(features=_features(table, times), source=WINDOW, rows=len(table))


def data_of(table: Array, times: Array | None = None) -> DriftReference:
    """The reference that given data make."""
    return DriftReference(features=_features(table, times), source=DATA, rows=len(table))


def _features(table: Array, times: Array | None) -> list[FeatureReference]:
    return [
        feature_reference(f"x[{i}]", "input", column, times=times)
        for i, column in enumerate(table.T)
    ]


def rows_until_named(
    reference: DriftReference, table: Array, times: Array | None = None, *, step: int = 50
) -> int | None:
    """Rows until a watch that is looked at every `step` rows names a feature; None for never."""
    watch = DriftWatch(reference=reference, settings=DriftSpec())
    bins = [one.bins for one in reference.features]
    times = np.arange(len(table)) / 25.0 if times is None else times
    for end in range(step, len(table) + 1, step):
        if watch.add(count_columns(table[end - step : end], bins), now=float(times[end - 1])):
            return end
    return None
