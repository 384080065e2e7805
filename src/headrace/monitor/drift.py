"""Drift detection for one model version's features, from counts to the state of each feature.

The stream of requests is cut into blocks. At the start of each block, a new bet begins that values
look as in the reference; so a drift that begins after months is detected as fast as on the first
day. The bet of block `k` has `1 / (k (k + 1))` of the whole false alarm rate, which sums to one
over an endless stream (an e-detector; Shin, Ramdas and Rinaldo, arXiv 2203.03532).

Successive rows may be dependent. The dependence is measured by the differences of neighbouring
blocks, and the evidence is that of correspondingly fewer rows (`drift_dependence`,
`drift_evidence`). Old blocks are merged and finally dropped: the stored size is bounded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import msgspec
import numpy as np

from headrace.core.spec.observe import DriftSpec
from headrace.monitor.drift_evidence import (
    VIOLATIONS,
    Distances,
    NullShares,
    Spans,
    distances,
    expected,
    fixed_band,
    log_evidence,
    nulls_of,
    ratio,
    uniform_band,
    why,
)
from headrace.monitor.drift_reference import (
    BATCH_ROWS,
    HOURS,
    MIN_ROWS,
    UNKNOWN_EFFECT,
    WINDOW,
    DriftReference,
    FeatureReference,
    Floats,
    design_effect,
    events,
    ratios,
)
from headrace.observe.features import FeatureKind, ValueCounts

BLOCK_ROWS: Final = 250
"""Rows between the starts of two bets."""
_SAMPLE_ROWS: Final = 100_000
_SHOWN_ROWS: Final = 5000
_CALM_ROWS: Final = 1000
"""Rows without a difference after which a drift has ended."""
_MERGE: Final = 8
"""Two blocks are merged when the number of later rows is at least this multiple of their rows."""
_WINDOW_PAIRS: Final = 8.0
"""Weight of the effect measured in a first window of the same requests. Unit: differences."""
_EFFECT_STEP: Final = 0.05
_HOUR_S: Final = 3600.0
_OLDEST_S: Final = 900.0


class FeatureState(StrEnum):
    """State of one feature."""

    COLLECTING = "collecting"
    """Too few values, in the live data or in the reference."""
    OK = "ok"
    DRIFTED = "drifted"


class RowBlock(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of some successive rows."""

    number: int
    """Number of the newest bet that began with or before this block; successive blocks may share
    it."""

    rows: int

    counts: list[ValueCounts]

    hours: list[int] = []
    """Rows by hour of the day (UTC); empty in files of older versions."""


class DetectedDrift(msgspec.Struct, frozen=True, kw_only=True):
    """An ongoing drift."""

    since: int
    """Number of the first block that differs."""

    found_at: float = msgspec.field(name="at")
    """Seconds since 1970."""

    found_in: int = msgspec.field(name="found")
    """Number of the newest block at that time."""


class DriftWatchState(msgspec.Struct, frozen=True, kw_only=True):
    """The persistent state of one watch."""

    blocks: list[RowBlock] = []
    next_number: int = 1
    rows: int = 0
    drifted: dict[str, DetectedDrift] = {}
    since: dict[str, int] = {}
    """First block that counts, by feature."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureReport:
    """State and evidence of one feature.

    `psi` (population stability index), `js` (Jensen-Shannon divergence, bits) and `ks`
    (Kolmogorov-Smirnov distance) are the distances of the newest `rows` from the reference; the
    true KS distance lies between `ks_low` and `ks_high`, whenever they are read. Ratios are of
    those rows. `evidence`: the common logarithm of the odds against "no drift"; at `needed` the
    feature has drifted, and `why` names what moved most. `design_effect`: rows that carry as much
    information as one independent row; 1 where rows are independent. `label`: the column's name in
    the data of the reference.
    """

    name: str
    role: str
    state: FeatureState
    rows: int

    evidence: float
    """Common logarithm of the odds against "no drift"."""

    needed: float
    """Evidence at which the feature has drifted."""

    since: float | None = None

    psi: float | None = None
    """Population stability index."""

    js: float | None = None
    """Jensen-Shannon divergence, in bits."""

    ks: float | None = None
    """Kolmogorov-Smirnov distance."""

    ks_low: float | None = None
    """Lower bound of the true distance, valid at any time."""

    ks_high: float | None = None
    """Upper bound of the true distance, valid at any time."""

    missing_ratio: float | None = None

    out_of_range_ratio: float | None = None

    type_violation_ratio: float | None = None

    design_effect: float | None = None
    """Number of rows equivalent to one independent row; 1 for independent rows."""

    why: str = ""
    """Description of the share that moved most."""

    label: str = ""
    """Column name in the data of the reference."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bets:
    """All bets on one feature."""

    numbers: Floats

    spans: Spans
    """Counts since each bet began."""

    effect: float
    """Design effect of the rows."""

    reference_effect: float
    """Design effect of the reference's rows."""


@dataclass(slots=True, kw_only=True)
class DriftWatch:
    """Drift detector of one version's features against a reference; the caller passes the time."""

    reference: DriftReference
    settings: DriftSpec
    memory: DriftWatchState = field(default_factory=DriftWatchState)
    _evidence: dict[str, float] = field(default_factory=dict)
    _bets: dict[str, tuple[DriftWatchState, _Bets]] = field(default_factory=dict)
    _allowed: dict[str, tuple[int, NullShares]] = field(default_factory=dict)

    def _alpha_of(self, feature: FeatureReference) -> float:
        """Return a feature's part of the false alarm rate; half is for the reference's own error.

        Inputs share one half of the total rate and outputs the other.
        """
        role = feature.bins.role
        among = sum(other.bins.role == role for other in self.reference.features)
        return self.settings.alpha / (2 * among)

    def _needed(self, feature: FeatureReference) -> float:
        """Return the evidence at which a feature has drifted, as a common logarithm."""
        return math.log10(2.0 / self._alpha_of(feature))

    def add(
        self, counts: Sequence[ValueCounts], *, now: float, age_s: float = 0.0
    ) -> list[FeatureReport]:
        """Add counts since the last call; return the features whose state changed.

        Args:
            counts: Counts in the order of the reference's features.
            now: Seconds since 1970.
            age_s: Age of the first count. With a reference by hour of the day, old counts, as after
                an outage of the control plane, are skipped.
        """
        rows = max((column_counts.rows for column_counts in counts), default=0)
        if not rows or (age_s > _OLDEST_S and self.reference.is_hourly):
            return []
        self._append(rows, counts, now)
        changed: set[str] = set()
        for index, feature in enumerate(self.reference.features):
            name = feature.bins.name
            before = name in self.memory.drifted
            if before:
                self._check_end(index, feature)
            else:
                self._check_drift(index, feature, now)
            if (name in self.memory.drifted) != before:
                changed.add(name)
        return [report for report in self.reports() if report.name in changed] if changed else []

    def reports(self) -> list[FeatureReport]:
        """Return the report of each feature."""
        return [
            self._report(index, feature) for index, feature in enumerate(self.reference.features)
        ]

    def _append(self, rows: int, counts: Sequence[ValueCounts], now: float) -> None:
        memory = self.memory
        blocks = list(memory.blocks)
        next_number = memory.next_number
        number = blocks[-1].number if blocks else next_number
        since_start = sum(block.rows for block in blocks if block.number == number)
        hours = [0] * HOURS
        hours[int(now // _HOUR_S) % HOURS] = rows
        newest = RowBlock(number=number, rows=rows, counts=list(counts), hours=hours)
        if blocks and blocks[-1].rows < BATCH_ROWS:
            blocks[-1] = _merged(blocks[-1], newest)
        else:
            if not blocks or since_start >= BLOCK_ROWS:
                newest = msgspec.structs.replace(newest, number=next_number)
                next_number += 1
            blocks.append(newest)
        self.memory = msgspec.structs.replace(
            memory, blocks=_thinned(blocks), next_number=next_number, rows=memory.rows + rows
        )

    def _check_drift(self, index: int, feature: FeatureReference, now: float) -> None:
        name = feature.bins.name
        bets = self._bets_on(index, feature)
        if feature.counts.rows < MIN_ROWS or not len(bets.numbers):
            return
        evidence = log_evidence(feature, self._nulls(feature, bets), bets.spans, effect=bets.effect)
        weighed = (evidence - np.log(bets.numbers * (bets.numbers + 1))) / math.log(10)
        best = int(weighed.argmax())
        self._evidence[name] = float(weighed[best])
        if weighed[best] >= self._needed(feature):
            since = int(bets.numbers[best])
            drift = DetectedDrift(since=since, found_at=now, found_in=self.memory.next_number)
            self._remember(drifted=self.memory.drifted | {name: drift})

    def _check_end(self, index: int, feature: FeatureReference) -> None:
        name = feature.bins.name
        bets = self._bets_on(index, feature)
        later = bets.numbers >= self.memory.drifted[name].found_in
        enough = np.flatnonzero(later & (bets.spans.rows >= _CALM_ROWS))
        if not len(enough) or not self._is_calm(feature, _span(bets, enough[-1])):
            return
        self._evidence[name] = 0.0
        self._remember(
            drifted={other: drift for other, drift in self.memory.drifted.items() if other != name},
            since=self.memory.since | {name: int(bets.numbers[enough[-1]])},
        )

    def _bets_on(self, index: int, feature: FeatureReference) -> _Bets:
        """Return the bets on a feature, oldest first; cached per state of the memory."""
        name, memory = feature.bins.name, self.memory
        cached = self._bets.get(name)
        if cached is not None and cached[0] is memory:
            return cached[1]
        blocks = Spans.of(
            feature,
            [block.counts[index] for block in memory.blocks],
            [b.hours for b in memory.blocks],
        )
        effect = self._effect(feature, blocks)
        numbers = np.array([float(block.number) for block in memory.blocks])
        is_start = (np.diff(numbers, prepend=0.0) > 0) & (numbers >= memory.since.get(name, 0))
        is_timed = bool(feature.effect) and self.reference.source != WINDOW
        bets = _Bets(
            numbers=numbers[is_start],
            spans=blocks.to_the_end().only(is_start),
            effect=effect,
            # A window has a fixed length: slower variation shows only in the rows. Without times
            # nothing is measured.
            reference_effect=feature.effect if is_timed else max(feature.effect, effect),
        )
        self._bets[name] = memory, bets
        return bets

    def _effect(self, feature: FeatureReference, blocks: Spans) -> float:
        """Return the design effect of the rows compared with the reference."""
        blocks = blocks.only(blocks.valid > 0)
        reference_shares: Floats | float = 0.0
        more: Floats | float = 0.0
        if feature.hours:
            reference_shares = events(feature, expected(feature, blocks.hours).bins)
            parts = blocks.hours / np.maximum(blocks.hours.sum(axis=1), 1.0)[:, None]
            in_hour = np.maximum(np.array(feature.hours).sum(axis=1), 1)
            more = (np.diff(parts, axis=0) ** 2 / in_hour).sum(axis=1)
        ratio, rows = ratios(
            events(feature, blocks.bins), blocks.valid, expected=reference_shares, more=more
        )
        if self.reference.source == WINDOW and feature.effect:
            return design_effect(ratio, rows, prior=feature.effect, prior_pairs=_WINDOW_PAIRS)
        return design_effect(ratio, rows, prior=UNKNOWN_EFFECT)

    def _nulls(self, feature: FeatureReference, bets: _Bets) -> NullShares:
        """Return the shares that each bet allows; without hours they are equal for all spans."""
        # The effect is rounded up to steps, so that the shares are rarely recomputed.
        step = math.ceil(math.log(bets.reference_effect) / _EFFECT_STEP)
        name = feature.bins.name
        cached = self._allowed.get(name)
        if cached is not None and cached[0] == step and not feature.hours:
            return cached[1]
        nulls = nulls_of(
            feature,
            alpha=self._alpha_of(feature) / 2,
            margin=self.settings.margin,
            violations_margin=self.settings.violations_margin,
            effect=math.exp(step * _EFFECT_STEP),
            hours=bets.spans.hours if feature.hours else None,
        )
        self._allowed[name] = step, nulls
        return nulls

    def _is_calm(self, feature: FeatureReference, live: Spans) -> bool:
        distance, counts = _distance(feature, live), live.counts(0)
        wrong = [ratio(counts, kind) - ratio(feature.counts, kind) for kind in VIOLATIONS]
        margin = self.settings.violations_margin
        return (distance is None or distance.ks <= self.settings.margin) and max(wrong) <= margin

    def _remember(
        self, *, drifted: dict[str, DetectedDrift], since: dict[str, int] | None = None
    ) -> None:
        self.memory = msgspec.structs.replace(
            self.memory, drifted=drifted, since=self.memory.since if since is None else since
        )

    def _report(self, index: int, feature: FeatureReference) -> FeatureReport:
        name = feature.bins.name
        drift = self.memory.drifted.get(name)
        needed = self._needed(feature)
        bets = self._bets_on(index, feature)
        shown = np.flatnonzero(bets.numbers >= (0 if drift is None else drift.since))
        enough = shown[bets.spans.rows[shown] >= _SHOWN_ROWS]
        newest = enough[-1] if len(enough) else shown[0] if len(shown) else None
        rows = 0 if newest is None else int(bets.spans.rows[newest])
        report = FeatureReport(
            name=name,
            role=feature.bins.role,
            state=FeatureState.DRIFTED
            if drift is not None
            else FeatureState.OK
            if feature.counts.rows >= MIN_ROWS and rows >= MIN_ROWS
            else FeatureState.COLLECTING,
            rows=rows,
            # For a drift that predates a restart or a new reference, only the fact that the
            # evidence sufficed is stored.
            evidence=max(0.0, self._evidence.get(name, 0.0 if drift is None else needed)),
            needed=needed,
            since=None if drift is None else drift.found_at,
            label=feature.bins.label,
        )
        if newest is None or not rows:
            return report
        live = _span(bets, newest)
        reference_shares = expected(feature, live.hours)
        counts = live.counts(0)
        report = replace(
            report,
            missing_ratio=ratio(counts, "missing"),
            out_of_range_ratio=ratio(counts, "out_of_range"),
            type_violation_ratio=ratio(counts, "non_finite") + ratio(counts, "not_whole"),
            design_effect=bets.effect,
            why=""
            if drift is None
            else why(feature, self._nulls(feature, replace(bets, spans=live)), live),
        )
        distance = _distance(feature, live)
        if distance is None:
            return report
        chance, number = self._alpha_of(feature) / 2, bets.numbers[newest]
        width = fixed_band(float(reference_shares.rows[0]) / bets.reference_effect, chance)
        width += uniform_band(counts.valid / bets.effect, chance / (number * (number + 1)))
        return replace(
            report,
            psi=distance.psi,
            js=distance.js,
            ks=distance.ks,
            ks_low=max(0.0, distance.ks - width),
            ks_high=min(1.0, distance.ks + width),
        )


def _span(bets: _Bets, index: int) -> Spans:
    return bets.spans.only(slice(index, index + 1))


def _distance(feature: FeatureReference, live: Spans) -> Distances | None:
    """Return the distance of a span from the reference's shares for its hours."""
    reference_shares = expected(feature, live.hours)
    ordered = feature.bins.kind is FeatureKind.NUMBERS
    return distances(
        reference_shares.bins[0] * reference_shares.rows[0], live.bins[0], ordered=ordered
    )


def _merged(old: RowBlock, new: RowBlock) -> RowBlock:
    """Merge two blocks into one that begins with the older."""
    counts = [
        older.plus(newer_counts) for older, newer_counts in zip(old.counts, new.counts, strict=True)
    ]
    # If the hours of one part are unknown, the hours of the merged block are unknown.
    both = zip(old.hours, new.hours, strict=True) if old.hours and new.hours else ()
    hours = [older + newer_rows for older, newer_rows in both]
    return RowBlock(number=old.number, rows=old.rows + new.rows, counts=counts, hours=hours)


def _thinned(blocks: list[RowBlock]) -> list[RowBlock]:
    """Return the blocks with fewer old starts, without those older than the limit."""
    thinned: list[RowBlock] = []
    newer = 0
    for block in reversed(blocks):
        if thinned and newer > _SAMPLE_ROWS:
            break
        last = thinned[-1] if thinned else None
        if last is not None and (last.rows + block.rows) * _MERGE <= newer - last.rows:
            thinned[-1] = _merged(block, last)
        else:
            thinned.append(block)
        newer += block.rows
    return thinned[::-1]
