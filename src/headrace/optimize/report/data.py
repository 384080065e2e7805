"""Data of a report: candidates, circumstances, evidence, and the points of the picture.

Whatever was not measured is None. A ratio is 0 to 1: a cut of 0.6 is 60 % less time than the
baseline takes, a loss of 0.005 half a percentage point of accuracy; both may be negative.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import msgspec

from headrace.runtimes.optimized.file import Processor

Interval = tuple[float, float]


class CandidateReport(msgspec.Struct, frozen=True, kw_only=True):
    """One way to run the model.

    `p50_s` and the other times: of one request at a time, with hot caches; `cold_p50_s` where other
    work drove the model out of the caches before each call. `cut_ratio`: against the baseline, in
    the same blocks of time. `accuracy`: by the report's metric, on labels. `accuracy_loss`: the
    baseline's less this one's, on the same `n` examples; `lost` and `gained` are those that only
    one of the two answers right, `p_value` says how likely as uneven a split is if neither is
    better. `agreement_ratio`: examples with the baseline's answer. `memory_bytes`: more in the
    process once it is loaded and warm. `load_s`: until it was loaded there.
    `cost_per_million`: of requests, in the user's currency. `reason`: why it was chosen or
    rejected, or could not be built. `unbatched`: what it costs that requests share no batch any
    more, and why; empty if they do as before. `batch_cut_ratio`: as `cut_ratio`, of a batch that
    the baseline runs at once and this one row by row. `disturbed`: others used the processor in too
    many windows to leave those out.
    """

    name: str
    title: str = ""
    p50_s: float | None = None
    p50_ci_s: Interval | None = None
    p90_s: float | None = None
    p99_s: float | None = None
    cold_p50_s: float | None = None
    cold_cut_ratio: float | None = None
    cold_cut_ci_ratio: Interval | None = None
    throughput_per_s: float | None = None
    cut_ratio: float | None = None
    cut_ci_ratio: Interval | None = None
    accuracy: float | None = None
    accuracy_loss: float | None = None
    accuracy_loss_ci: Interval | None = None
    p_value: float | None = None
    lost: int | None = None
    gained: int | None = None
    n: int | None = None
    agreement_ratio: float | None = None
    size_bytes: int | None = None
    memory_bytes: int | None = None
    load_s: float | None = None
    cost_per_million: float | None = None
    reason: str = ""
    recipe: dict[str, str] = {}
    build_s: float | None = None
    disturbed: bool = False
    unbatched: str = ""
    batch_cut_ratio: float | None = None


class MeasurementSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How it was measured, and what was wanted.

    `length`: of sequences, where the model takes some. `target`: what was to be made better.
    `max_loss`: the largest loss of the metric that is tolerated. `blocks`: rounds in which each
    candidate was timed once. `shape`: of the request's inputs, for people.
    """

    threads: int = 1
    batch: int = 1
    length: int | None = None
    shape: str = ""
    target: str = "latency"
    max_loss: float = 0.01
    confidence: float = 0.95
    blocks: int | None = None


class QualityEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """What quality was judged by.

    `n`: labelled examples; 0 where there are none, and `why_weaker` says what that means. `metric`:
    `accuracy`, or another of which more is better. `smallest_loss`: the smallest loss that so many
    examples would show. `calibration_sha256`: of the examples that candidates were calibrated with,
    `calibration_n` in number.
    """

    n: int = 0
    metric: str = "accuracy"
    source: str = ""
    smallest_loss: float | None = None
    calibration_n: int = 0
    calibration_sha256: str = ""
    why_weaker: str = ""

    @property
    def is_labelled(self) -> bool:
        """Whether answers were compared with the truth, and not only with the baseline's."""
        return self.n > 0


class OptimizeReport(msgspec.Struct, frozen=True, kw_only=True):
    """The whole result.

    `baseline`: what all cuts are against. `chosen`: the best that passed; the baseline again where
    nothing better did. `references`: other ways to run the model as it was, a framework's own, say.
    `candidates`: those that passed and are not the best. `rejected`: those that did not, or could
    not be built. `model_digest`: of its files. `at`: when, in ISO 8601. `notes`: what else a reader
    has to know, and what is not proved. `version`: what the chosen one is stored as.
    """

    model: str
    model_digest: str = ""
    model_class: str = "other"
    processor: Processor
    versions: dict[str, str] = {}
    settings: MeasurementSettings = MeasurementSettings()
    data: QualityEvidence = QualityEvidence()
    baseline: CandidateReport
    chosen: CandidateReport
    references: list[CandidateReport] = []
    candidates: list[CandidateReport] = []
    rejected: list[CandidateReport] = []
    notes: list[str] = []
    elapsed_s: float | None = None
    created_at: str = msgspec.field(name="at", default="")
    version: str = ""

    @property
    def is_changed(self) -> bool:
        """Whether anything better than the baseline was found."""
        return self.chosen.name != self.baseline.name

    def accepted(self) -> Iterator[CandidateReport]:
        """The baseline, the references, the chosen one, and all others that passed; each once.

        Others come by their time, the shortest first.
        """
        others = sorted(
            self.candidates, key=lambda candidate: (candidate.p50_s is None, candidate.p50_s or 0.0)
        )
        names = set()
        for accepted in (self.baseline, *self.references, self.chosen, *others):
            if accepted.name not in names:
                names.add(accepted.name)
                yield accepted


_SHORTEST_S: Final = 1e-9
_LARGEST: Final = 1e6


class CandidateKind(StrEnum):
    """What became of a candidate; its look."""

    BASELINE = "baseline"
    REFERENCE = "reference"
    CHOSEN = "chosen"
    PASSED = "passed"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedCandidate:
    """A candidate with the number by which the picture and the tables name it."""

    number: int
    kind: CandidateKind
    candidate: CandidateReport


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityPoint:
    """One whose latency and quality are known. `quality`: the metric, or the agreement."""

    numbered: NumberedCandidate
    latency_s: float
    latency_ci_s: Interval | None
    quality: float
    quality_ci: Interval | None
    size_bytes: int | None

    @property
    def is_accepted(self) -> bool:
        """Whether it may be served."""
        return self.numbered.kind is not CandidateKind.REJECTED


def numbered(report: OptimizeReport) -> list[NumberedCandidate]:
    """All candidates, counted from 1: those that may be served, then the rejected."""
    kinds = {reference.name: CandidateKind.REFERENCE for reference in report.references}
    kinds |= {report.baseline.name: CandidateKind.BASELINE}
    kinds |= {report.chosen.name: CandidateKind.CHOSEN} if report.is_changed else {}
    pairs = [
        (kinds.get(candidate.name, CandidateKind.PASSED), candidate)
        for candidate in report.accepted()
    ]
    pairs += [(CandidateKind.REJECTED, candidate) for candidate in report.rejected]
    return [
        NumberedCandidate(number=number, kind=kind, candidate=candidate)
        for number, (kind, candidate) in enumerate(pairs, start=1)
    ]


def points(report: OptimizeReport) -> list[QualityPoint]:
    """Those that can be drawn."""
    drawable = []
    for entry in numbered(report):
        candidate = entry.candidate
        latency_s, quality = candidate.p50_s, _quality(candidate, report)
        if latency_s is None or quality is None:
            continue
        if not _SHORTEST_S <= latency_s <= _LARGEST or not abs(quality) <= _LARGEST:
            continue  # no figure that was measured
        drawable.append(
            QualityPoint(
                numbered=entry,
                latency_s=latency_s,
                latency_ci_s=_within(candidate.p50_ci_s, _SHORTEST_S),
                quality=quality,
                quality_ci=_within(_quality_interval(candidate, report), -_LARGEST),
                size_bytes=candidate.size_bytes,
            )
        )
    return drawable


def _within(bounds: Interval | None, least: float) -> Interval | None:
    """An interval that can be drawn."""
    if bounds is None or not least <= bounds[0] <= bounds[1] <= _LARGEST:
        return None
    return bounds


def front(those: Sequence[QualityPoint]) -> list[QualityPoint]:
    """Accepted ones that no other accepted one beats in both time and quality, by their time."""
    best: list[QualityPoint] = []
    for point in sorted(those, key=lambda p: (p.latency_s, -p.quality)):
        if point.is_accepted and (not best or point.quality > best[-1].quality):
            best.append(point)
    return best


def _quality(candidate: CandidateReport, report: OptimizeReport) -> float | None:
    if report.data.is_labelled:
        return candidate.accuracy
    if candidate.name == report.baseline.name:
        return 1.0
    return candidate.agreement_ratio


def _quality_interval(candidate: CandidateReport, report: OptimizeReport) -> Interval | None:
    """The interval of its loss, seen from the baseline: they answered the same examples.

    An interval of its accuracy alone would be many times as wide, and say less about which of the
    two is better.
    """
    bounds, base = candidate.accuracy_loss_ci, report.baseline.accuracy
    if not report.data.is_labelled or bounds is None or base is None:
        return None
    return base - bounds[1], base - bounds[0]
