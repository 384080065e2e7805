"""Drift detection of one model version from its first request, across restarts.

Features with a reference are judged. For the others, the first rows are stored until they suffice
for a reference.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from headrace.core import Array
from headrace.core.spec.observe import DriftSpec
from headrace.monitor.drift import DriftWatch, DriftWatchState, FeatureReport, FeatureState
from headrace.monitor.drift_reference import (
    WINDOW,
    DriftReference,
    FeatureReference,
    feature_reference,
)
from headrace.observe.features import INPUT, MAX_FEATURES, FeatureBins, FeatureValues, ValueCounts


class Collected(msgspec.Struct, frozen=True, kw_only=True):
    """Collected values of one feature without a reference."""

    role: str
    is_text: bool
    values: list[float | str | None]
    times: list[float] = []
    """Times of the values, in seconds since 1970; shorter in files of older versions."""


class StoredDrift(msgspec.Struct, frozen=True, kw_only=True):
    """The persistent state."""

    reference: DriftReference = DriftReference()
    memory: DriftWatchState = DriftWatchState()
    collected: dict[str, Collected] = {}


@dataclass(slots=True, kw_only=True)
class VersionDrift:
    """Drift state of one version: collects missing references and judges the other features."""

    settings: DriftSpec
    stored: StoredDrift = field(default_factory=StoredDrift)
    _watch: DriftWatch = field(init=False)
    _key: str = field(init=False)
    _reports: list[FeatureReport] | None = None

    def __post_init__(self) -> None:
        self._start(self.stored.reference, self.stored.memory)

    @property
    def reference(self) -> DriftReference:
        """Return the reference of the features that have one."""
        return self._watch.reference

    @property
    def bins(self) -> list[FeatureBins]:
        """Return the bins of the features with a reference, in its order."""
        return [feature.bins for feature in self.reference.features]

    @property
    def key(self) -> str:
        """Return a key that changes when the counted features or bins change."""
        return self._key

    @property
    def collected_rows(self) -> int:
        """Return the number of rows collected for an incomplete reference."""
        return min((len(column.values) for column in self.stored.collected.values()), default=0)

    def add(
        self,
        counts: Sequence[ValueCounts],
        values: Iterable[FeatureValues],
        *,
        now: float,
        age_s: float = 0.0,
    ) -> list[FeatureReport]:
        """Add counts of replicas by `bins`; return the features whose state changed.

        Args:
            age_s: Age of the first count.
        """
        changed = self._watch.add(counts, now=now, age_s=age_s) if counts else []
        self._collect(values, now)
        self._reports = None
        self.reports()  # computed now, not at the next call
        return changed

    def reports(self) -> list[FeatureReport]:
        """Return the report of each feature; without a reference, its number of rows."""
        if self._reports is None:
            waiting = [
                FeatureReport(
                    name=name,
                    role=column.role,
                    state=FeatureState.COLLECTING,
                    rows=len(column.values),
                    evidence=0.0,
                    needed=0.0,
                    why="has no reference yet",
                )
                for name, column in self.stored.collected.items()
            ]
            self._reports = [*self._watch.reports(), *waiting]
        return self._reports

    def keep(self) -> StoredDrift:
        """Return the state to persist."""
        self.stored = msgspec.structs.replace(
            self.stored, reference=self.reference, memory=self._watch.memory
        )
        return self.stored

    def _start(self, reference: DriftReference, memory: DriftWatchState) -> None:
        self._watch = DriftWatch(reference=reference, settings=self.settings, memory=memory)
        identity = msgspec.json.encode([self.bins, self.settings])
        self._key = hashlib.sha256(identity).hexdigest()[:16]

    def _collect(self, values: Iterable[FeatureValues], now: float) -> None:
        collected = dict(self.stored.collected)
        referenced = {bins.name for bins in self.bins}
        maximum = self.settings.window_rows
        for column in values:
            before = collected.get(column.name)
            if column.name in referenced or (before is None and len(collected) >= MAX_FEATURES):
                continue
            values_before, times = ([], []) if before is None else (before.values, before.times)
            collected[column.name] = Collected(
                role=column.role,
                is_text=column.is_text,
                values=[*values_before, *column.values][:maximum],
                times=[*times, *(now for _ in column.values)][:maximum],
            )
        self.stored = msgspec.structs.replace(self.stored, collected=collected)
        if collected and all(len(column.values) >= maximum for column in collected.values()):
            self._take_reference(now)

    def _take_reference(self, now: float) -> None:
        """Turn the collected values into references of their features."""
        collected = self.stored.collected
        features = [
            feature_reference(name, column.role, _column(column), times=_times(column))
            for name, column in collected.items()
        ]
        times = [time for column in collected.values() for time in column.times]
        previous = self.reference
        reference = DriftReference(
            features=[*previous.features, *features],
            source=previous.source if previous.features else WINDOW,
            rows=previous.rows if previous.features else self.settings.window_rows,
            created_at=previous.created_at if previous.features else now,
            covers_s=previous.covers_s
            if previous.features
            else max(times) - min(times)
            if times
            else 0.0,
        )
        memory = self._watch.memory
        more = [ValueCounts()] * len(features)
        blocks = [
            msgspec.structs.replace(block, counts=[*block.counts, *more]) for block in memory.blocks
        ]
        self.stored = msgspec.structs.replace(self.stored, collected={})
        self._start(reference, msgspec.structs.replace(memory, blocks=blocks))


def inputs_only(reference: DriftReference) -> DriftReference:
    """Return the part of a reference that another version can use: the inputs."""
    inputs: list[FeatureReference] = [
        feature for feature in reference.features if feature.bins.role == INPUT
    ]
    return msgspec.structs.replace(reference, features=inputs)


def _times(collected: Collected) -> Array | None:
    """Return the times of the values; None if an older version collected some of them."""
    is_whole = len(collected.times) == len(collected.values)
    return np.array(collected.times, dtype=np.float64) if is_whole else None


def _column(collected: Collected) -> Array:
    if collected.is_text:
        texts = np.empty(len(collected.values), dtype=np.object_)
        texts[:] = collected.values
        return texts
    numbers = [np.nan if value is None else float(value) for value in collected.values]
    return np.array(numbers, dtype=np.float64)
