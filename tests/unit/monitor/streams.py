"""Streams of rows in this process, and a watch over them."""

from collections.abc import Iterable

import numpy as np

from headrace.core import Array
from headrace.core.drift_settings import DriftSettings
from headrace.monitor.drift import FeatureReport, FeatureState, Watch
from headrace.monitor.drift_reference import Reference, feature_reference
from headrace.observe.feature_counts import count_columns


def a_watch(columns: Iterable[Array], **settings: float) -> Watch:
    """A watch of inputs `x[0]`, `x[1]`, ... whose reference these values are."""
    features = [feature_reference(f"x[{i}]", "input", column) for i, column in enumerate(columns)]
    told = DriftSettings(**settings)  # type: ignore[arg-type]  # whole numbers come as such
    return Watch(reference=Reference(features=features), settings=told)


def see(watch: Watch, table: Array, *, step: int = 100) -> list[FeatureReport]:
    """Let a watch see rows, `[rows, features]`, so many at a time; every change it told."""
    bins = [one.bins for one in watch.reference.features]
    changes: list[FeatureReport] = []
    for begin in range(0, len(table), step):
        counts = count_columns(table[begin : begin + step], bins)
        changes += watch.add(counts, now=float(begin))
    return changes


def states(watch: Watch) -> dict[str, FeatureState]:
    return {one.name: one.state for one in watch.reports()}


def normal(rows: int, features: int = 1, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, features))
