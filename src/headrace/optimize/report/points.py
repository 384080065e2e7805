"""Which candidates stand in the picture, where, and which of them are on the front? Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from headrace.optimize.report.data import CandidateReport, Interval, OptimizeReport

_SHORTEST_S: Final = 1e-9
_LARGEST: Final = 1e6


class Kind(StrEnum):
    """What became of a candidate; its look."""

    BASELINE = "baseline"
    REFERENCE = "reference"
    CHOSEN = "chosen"
    PASSED = "passed"
    REJECTED = "rejected"


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbered:
    """A candidate with the number by which the picture and the tables name it."""

    number: int
    kind: Kind
    candidate: CandidateReport


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One whose latency and quality are known. `quality`: the metric, or the agreement."""

    numbered: Numbered
    latency_s: float
    latency_ci_s: Interval | None
    quality: float
    quality_ci: Interval | None
    size_bytes: int | None

    @property
    def is_accepted(self) -> bool:
        """Whether it may be served."""
        return self.numbered.kind is not Kind.REJECTED


def numbered(report: OptimizeReport) -> list[Numbered]:
    """All candidates, counted from 1: those that may be served, then the rejected."""
    kinds = {one.name: Kind.REFERENCE for one in report.references}
    kinds |= {report.baseline.name: Kind.BASELINE}
    kinds |= {report.chosen.name: Kind.CHOSEN} if report.is_changed else {}
    pairs = [(kinds.get(one.name, Kind.PASSED), one) for one in report.accepted()]
    pairs += [(Kind.REJECTED, one) for one in report.rejected]
    return [
        Numbered(number=number, kind=kind, candidate=one)
        for number, (kind, one) in enumerate(pairs, start=1)
    ]


def points(report: OptimizeReport) -> list[Point]:
    """Those that can be drawn."""
    found = []
    for one in numbered(report):
        candidate = one.candidate
        latency_s, quality = candidate.p50_s, _quality(candidate, report)
        if latency_s is None or quality is None:
            continue
        if not _SHORTEST_S <= latency_s <= _LARGEST or not abs(quality) <= _LARGEST:
            continue  # no figure that was measured
        found.append(
            Point(
                numbered=one,
                latency_s=latency_s,
                latency_ci_s=_within(candidate.p50_ci_s, _SHORTEST_S),
                quality=quality,
                quality_ci=_within(_quality_interval(candidate, report), -_LARGEST),
                size_bytes=candidate.size_bytes,
            )
        )
    return found


def _within(bounds: Interval | None, least: float) -> Interval | None:
    """An interval that can be drawn."""
    if bounds is None or not least <= bounds[0] <= bounds[1] <= _LARGEST:
        return None
    return bounds


def front(those: Sequence[Point]) -> list[Point]:
    """Accepted ones that no other accepted one beats in both time and quality, by their time."""
    found: list[Point] = []
    for point in sorted(those, key=lambda p: (p.latency_s, -p.quality)):
        if point.is_accepted and (not found or point.quality > found[-1].quality):
            found.append(point)
    return found


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
