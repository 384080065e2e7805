"""Which features have drifted? Counts come in, and the state of each feature comes out.

The stream of requests is cut into blocks. At the start of each, an own bet begins that values look
as in the reference; so a drift that begins after months is found as fast as one on the first day.
The bet of block `k` may win by chance with `1 / (k (k + 1))` of the whole chance, which sums to one
over an endless stream (Shin, Ramdas and Rinaldo call such a thing an e-detector, arXiv 2203.03532).

Old blocks are merged and in the end forgotten: what is kept does not grow.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import msgspec
import numpy as np

from headrace.core.drift_settings import DriftSettings
from headrace.monitor.drift_evidence import Nulls, log_evidence, nulls_of
from headrace.monitor.drift_reference import MIN_ROWS, FeatureReference, Reference
from headrace.monitor.drift_statistics import Distances, distances, fixed_band, uniform_band
from headrace.monitor.drift_words import VIOLATIONS, ratio, why
from headrace.observe.feature_counts import FeatureCounts, FeatureKind

BLOCK_ROWS: Final = 250
_KEPT_ROWS: Final = 100_000
_SHOWN_ROWS: Final = 5000
_CALM_ROWS: Final = 1000
"""Rows without a difference after which a drift is over."""
_MERGE: Final = 8
"""Two blocks become one when what came after them is so many times as much."""


class FeatureState(StrEnum):
    """What is known of one feature."""

    COLLECTING = "collecting"
    """Too few values, here or in the reference."""
    OK = "ok"
    DRIFTED = "drifted"


class Block(msgspec.Struct, frozen=True, kw_only=True):
    """Counts of some rows that followed each other; `number` grows by one with every block."""

    number: int
    rows: int
    counts: list[FeatureCounts]


class Drifted(msgspec.Struct, frozen=True, kw_only=True):
    """A drift under way: the block that it was seen from, when it was found, in which block."""

    since: int
    at: float
    found: int


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """All that has to survive of one watch. `since`: the first block that counts, by feature."""

    blocks: list[Block] = []
    next_number: int = 1
    rows: int = 0
    drifted: dict[str, Drifted] = {}
    since: dict[str, int] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureReport:
    """What is known of one feature now.

    `evidence`: the common logarithm of the odds against "no drift"; at `needed` it has drifted.
    `ks_low` and `ks_high`: where the true distance lies, valid whenever one looks. Ratios are of
    the newest rows.
    """

    name: str
    role: str
    state: FeatureState
    rows: int
    evidence: float
    needed: float
    since: float | None = None
    psi: float | None = None
    js: float | None = None
    ks: float | None = None
    ks_low: float | None = None
    ks_high: float | None = None
    missing_ratio: float | None = None
    out_of_range_ratio: float | None = None
    type_violation_ratio: float | None = None
    why: str = ""
    label: str = ""


@dataclass(slots=True, kw_only=True)
class Watch:
    """Judges one version's features against a reference. The caller brings counts and time."""

    reference: Reference
    settings: DriftSettings
    memory: Memory = field(default_factory=Memory)
    _nulls: list[Nulls] = field(default_factory=list)
    _evidence: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        settings = self.settings
        self._nulls = [
            nulls_of(
                one,
                alpha=self._alpha_of(one) / 2,
                margin=settings.margin,
                violations_margin=settings.violations_margin,
            )
            for one in self.reference.features
        ]

    def _alpha_of(self, one: FeatureReference) -> float:
        """A feature's part of the chance; half of it is for the reference's own error.

        Inputs share one half of the whole and outputs the other, whichever are known first.
        """
        role = one.bins.role
        among = sum(other.bins.role == role for other in self.reference.features)
        return self.settings.alpha / (2 * among)

    def _needed(self, one: FeatureReference) -> float:
        """The evidence at which a feature has drifted, as a common logarithm."""
        return math.log10(2.0 / self._alpha_of(one))

    def add(self, counts: Sequence[FeatureCounts], *, now: float) -> list[FeatureReport]:
        """Take in what was counted since the last call; the features whose state changed by it.

        Args:
            counts: In the order of the reference's features.
        """
        rows = max((one.rows for one in counts), default=0)
        if not rows:
            return []
        self._append(rows, counts)
        changed: set[str] = set()
        for index, one in enumerate(self.reference.features):
            name = one.bins.name
            before = name in self.memory.drifted
            if before:
                self._look_for_end(index, one)
            else:
                self._look_for_drift(index, one, now)
            if (name in self.memory.drifted) != before:
                changed.add(name)
        return [report for report in self.reports() if report.name in changed] if changed else []

    def reports(self) -> list[FeatureReport]:
        """What is known of each feature."""
        return [self._report(index, one) for index, one in enumerate(self.reference.features)]

    def _append(self, rows: int, counts: Sequence[FeatureCounts]) -> None:
        memory = self.memory
        blocks = list(memory.blocks)
        number = memory.next_number
        if blocks and blocks[-1].rows < BLOCK_ROWS:
            blocks[-1] = _merged(blocks[-1], Block(number=0, rows=rows, counts=list(counts)))
        else:
            blocks.append(Block(number=number, rows=rows, counts=list(counts)))
            number += 1
        self.memory = msgspec.structs.replace(
            memory, blocks=_thinned(blocks), next_number=number, rows=memory.rows + rows
        )

    def _look_for_drift(self, index: int, one: FeatureReference, now: float) -> None:
        name = one.bins.name
        spans = list(self._spans(index, name))
        if one.counts.rows < MIN_ROWS or not spans:
            return
        found = log_evidence(one, self._nulls[index], [counts for _, counts in spans])
        numbers = np.array([number for number, _ in spans], dtype=float)
        weighed = (found - np.log(numbers * (numbers + 1))) / math.log(10)
        best = int(weighed.argmax())
        self._evidence[name] = float(weighed[best])
        if weighed[best] >= self._needed(one):
            drift = Drifted(since=spans[best][0], at=now, found=self.memory.next_number)
            self._remember(drifted=self.memory.drifted | {name: drift})

    def _look_for_end(self, index: int, one: FeatureReference) -> None:
        name = one.bins.name
        found = self.memory.drifted[name].found
        later = [(n, c) for n, c in self._spans(index, name) if n >= found]
        calm = next(((n, c) for n, c in later if c.rows >= _CALM_ROWS), None)
        if calm is None or not self._is_calm(one, calm[1]):
            return
        self._evidence[name] = 0.0
        self._remember(
            drifted={other: drift for other, drift in self.memory.drifted.items() if other != name},
            since=self.memory.since | {name: calm[0]},
        )

    def _is_calm(self, one: FeatureReference, counts: FeatureCounts) -> bool:
        apart = _apart(one, counts)
        wrong = [self._excess(one, counts, kind) for kind in VIOLATIONS]
        margin = self.settings.violations_margin
        return (apart is None or apart.ks <= self.settings.margin) and max(wrong) <= margin

    def _excess(self, one: FeatureReference, counts: FeatureCounts, kind: str) -> float:
        return ratio(counts, kind) - ratio(one.counts, kind)

    def _remember(
        self, *, drifted: dict[str, Drifted], since: dict[str, int] | None = None
    ) -> None:
        self.memory = msgspec.structs.replace(
            self.memory, drifted=drifted, since=self.memory.since if since is None else since
        )

    def _spans(self, index: int, name: str) -> Iterator[tuple[int, FeatureCounts]]:
        """The counts from the start of each block to now, the newest start first."""
        first = self.memory.since.get(name, 0)
        counts = FeatureCounts()
        for block in reversed(self.memory.blocks):
            if block.number < first:
                return
            counts = block.counts[index].plus(counts)
            yield block.number, counts

    def _report(self, index: int, one: FeatureReference) -> FeatureReport:
        name = one.bins.name
        drift = self.memory.drifted.get(name)
        needed = self._needed(one)
        number, counts = self._newest(index, name, 0 if drift is None else drift.since)
        made = FeatureReport(
            name=name,
            role=one.bins.role,
            state=self._state(one, counts, drift),
            rows=counts.rows,
            # Of a drift found before a restart or more references, only that it was enough is kept.
            evidence=max(0.0, self._evidence.get(name, 0.0 if drift is None else needed)),
            needed=needed,
            since=None if drift is None else drift.at,
            label=one.bins.label,
        )
        if not counts.rows:
            return made
        made = replace(
            made,
            missing_ratio=ratio(counts, "missing"),
            out_of_range_ratio=ratio(counts, "out_of_range"),
            type_violation_ratio=ratio(counts, "non_finite") + ratio(counts, "not_whole"),
            why="" if drift is None else why(one, self._nulls[index], counts),
        )
        apart = _apart(one, counts)
        if apart is None:
            return made
        chance = self._alpha_of(one) / 2
        width = fixed_band(one.counts.valid, chance)
        width += uniform_band(counts.valid, chance / (number * (number + 1)))
        return replace(
            made,
            psi=apart.psi,
            js=apart.js,
            ks=apart.ks,
            ks_low=max(0.0, apart.ks - width),
            ks_high=min(1.0, apart.ks + width),
        )

    def _state(
        self, one: FeatureReference, counts: FeatureCounts, drift: Drifted | None
    ) -> FeatureState:
        if drift is not None:
            return FeatureState.DRIFTED
        enough = one.counts.rows >= MIN_ROWS and counts.rows >= MIN_ROWS
        return FeatureState.OK if enough else FeatureState.COLLECTING

    def _newest(self, index: int, name: str, since: int) -> tuple[int, FeatureCounts]:
        """The newest rows that are enough to be shown, and the block that they begin with."""
        shown = (1, FeatureCounts())
        for number, counts in self._spans(index, name):
            if number < since:
                break
            shown = number, counts
            if counts.rows >= _SHOWN_ROWS:
                break
        return shown


def _apart(one: FeatureReference, counts: FeatureCounts) -> Distances | None:
    ordered = one.bins.kind is FeatureKind.NUMBERS
    return distances(one.counts.bins, counts.bins, ordered=ordered)


def _merged(old: Block, new: Block) -> Block:
    """Both as one, which begins where the older did."""
    counts = [one.plus(other) for one, other in zip(old.counts, new.counts, strict=True)]
    return Block(number=old.number, rows=old.rows + new.rows, counts=counts)


def _thinned(blocks: list[Block]) -> list[Block]:
    """The same with fewer starts where they are long ago, and without those before the bound."""
    kept: list[Block] = []
    newer = 0
    for block in reversed(blocks):
        if kept and newer > _KEPT_ROWS:
            break
        last = kept[-1] if kept else None
        if last is not None and (last.rows + block.rows) * _MERGE <= newer - last.rows:
            kept[-1] = _merged(block, last)
        else:
            kept.append(block)
        newer += block.rows
    return kept[::-1]
