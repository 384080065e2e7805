"""Data of an optimization report: candidates, settings, evidence and chart points.

Figures that were not measured are None. A ratio is 0 to 1: a cut of 0.6 is 60 % less time than the
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
    """Results of one candidate.

    Times are of single requests with hot caches; for `cold_p50_s` the caches are evicted before
    each call.
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
    """Time saved against the baseline, in the same blocks."""
    cut_ci_ratio: Interval | None = None
    accuracy: float | None = None
    """Score in the report's metric, on labels."""
    accuracy_loss: float | None = None
    """The baseline's score minus this one's, on the same `n` examples. `lost` and `gained` count
    examples that only one of both answers correctly; `p_value` is of no difference.
    """
    accuracy_loss_ci: Interval | None = None
    p_value: float | None = None
    lost: int | None = None
    gained: int | None = None
    n: int | None = None
    agreement_ratio: float | None = None
    """Share of examples with the baseline's answer."""
    size_bytes: int | None = None
    memory_bytes: int | None = None
    """Additional resident memory of the loaded and warm model."""
    load_s: float | None = None
    """Load time in that process."""
    cost_per_million: float | None = None
    """Cost of a million requests, in the user's currency."""
    reason: str = ""
    """Reason of the choice, rejection or build failure."""
    recipe: dict[str, str] = {}
    build_s: float | None = None
    disturbed: bool = False
    """Whether too many windows were disturbed by other processes to exclude them."""
    unbatched: str = ""
    """Cost and reason of lost batching; empty if batching works."""
    batch_cut_ratio: float | None = None
    """`cut_ratio` for a batch that the baseline runs at once and this candidate row by row."""


class MeasurementSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Measurement conditions and the target."""

    threads: int = 1
    batch: int = 1
    length: int | None = None
    """Sequence length, if the model takes sequences."""
    shape: str = ""
    """Description of the request's inputs."""
    target: str = "latency"
    """Optimization target."""
    max_loss: float = 0.01
    """Largest tolerated loss of the metric."""
    confidence: float = 0.95
    blocks: int | None = None
    """Blocks in which each candidate was timed once."""


class QualityEvidence(msgspec.Struct, frozen=True, kw_only=True):
    """Evidence of the quality evaluation."""

    n: int = 0
    """Labelled examples; without any, `why_weaker` explains the consequence."""
    metric: str = "accuracy"
    """Quality metric, `accuracy` by default."""
    source: str = ""
    smallest_loss: float | None = None
    """Smallest loss that the examples can detect."""
    calibration_n: int = 0
    calibration_sha256: str = ""
    """Digest of the `calibration_n` calibration examples."""
    why_weaker: str = ""

    @property
    def is_labelled(self) -> bool:
        """Whether answers were compared with labels, not only with the baseline's."""
        return self.n > 0


class OptimizeReport(msgspec.Struct, frozen=True, kw_only=True):
    """Complete result of an optimization."""

    model: str
    model_digest: str = ""
    """Digest of the model's files."""
    model_class: str = "other"
    processor: Processor
    versions: dict[str, str] = {}
    settings: MeasurementSettings = MeasurementSettings()
    data: QualityEvidence = QualityEvidence()
    baseline: CandidateReport
    """Reference of all time savings."""
    chosen: CandidateReport
    """Best accepted candidate; the baseline if nothing is better."""
    references: list[CandidateReport] = []
    """Other ways to run the unchanged model, such as its own framework."""
    candidates: list[CandidateReport] = []
    """Other accepted candidates."""
    rejected: list[CandidateReport] = []
    """Rejected candidates, and recipes that failed to build."""
    notes: list[str] = []
    """Caveats for the reader."""
    elapsed_s: float | None = None
    created_at: str = msgspec.field(name="at", default="")
    version: str = ""
    """Registry version of the chosen candidate."""

    @property
    def is_changed(self) -> bool:
        """Whether a candidate better than the baseline was found."""
        return self.chosen.name != self.baseline.name

    def accepted(self) -> Iterator[CandidateReport]:
        """Yield the baseline, references, the chosen and the other accepted candidates, each once.

        The others come by ascending latency.
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
    """Status of a candidate, which is also its style in the chart."""

    BASELINE = "baseline"
    REFERENCE = "reference"
    CHOSEN = "chosen"
    PASSED = "passed"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class NumberedCandidate:
    """Candidate with its number in chart and tables."""

    number: int
    kind: CandidateKind
    candidate: CandidateReport


@dataclass(frozen=True, slots=True, kw_only=True)
class QualityPoint:
    """Chart point of a candidate with known latency and quality."""

    numbered: NumberedCandidate
    latency_s: float
    latency_ci_s: Interval | None
    quality: float
    """Metric score, or the agreement ratio without labels."""
    quality_ci: Interval | None
    size_bytes: int | None

    @property
    def is_accepted(self) -> bool:
        """Whether the candidate is accepted."""
        return self.numbered.kind is not CandidateKind.REJECTED


def numbered(report: OptimizeReport) -> list[NumberedCandidate]:
    """Number all candidates from 1: accepted ones, then rejected ones."""
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
    """Return the chart points."""
    drawable = []
    for entry in numbered(report):
        candidate = entry.candidate
        latency_s, quality = candidate.p50_s, _quality(candidate, report)
        if latency_s is None or quality is None:
            continue
        if not _SHORTEST_S <= latency_s <= _LARGEST or not abs(quality) <= _LARGEST:
            continue  # not a measured figure
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


def _within(bounds: Interval | None, minimum: float) -> Interval | None:
    """Return an interval if it fits the chart."""
    if bounds is None or not minimum <= bounds[0] <= bounds[1] <= _LARGEST:
        return None
    return bounds


def front(accepted_points: Sequence[QualityPoint]) -> list[QualityPoint]:
    """Return the Pareto front of accepted candidates, by latency."""
    best: list[QualityPoint] = []
    for point in sorted(accepted_points, key=lambda p: (p.latency_s, -p.quality)):
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
    """Return the quality interval from the paired loss interval.

    An interval of its accuracy alone would be many times as wide, and show less about which of the
    two is better.
    """
    bounds, base = candidate.accuracy_loss_ci, report.baseline.accuracy
    if not report.data.is_labelled or bounds is None or base is None:
        return None
    return base - bounds[1], base - bounds[0]
