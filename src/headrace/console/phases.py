"""Where does a request's time go inside the replicas? Means since they started, by version.

They come from Triton's statistics, which count every phase; quantiles are the gateway's to tell.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

_NS_PER_S: Final = 1e9


class Sum(msgspec.Struct, frozen=True):
    """How often, and how long in all."""

    count: int = 0
    ns: int = 0

    @property
    def mean_s(self) -> float | None:
        """In seconds; None if there was none."""
        return self.ns / self.count / _NS_PER_S if self.count else None


class PhaseSums(msgspec.Struct, frozen=True):
    """The phases of requests."""

    success: Sum = Sum()
    fail: Sum = Sum()
    queue: Sum = Sum()
    compute_input: Sum = Sum()
    compute_infer: Sum = Sum()
    compute_output: Sum = Sum()


class VersionStats(msgspec.Struct, frozen=True):
    """What the replicas of a version counted."""

    name: str
    version: str
    inference_count: int = 0
    execution_count: int = 0
    inference_stats: PhaseSums = PhaseSums()


class StatsList(msgspec.Struct, frozen=True):
    """All versions of an endpoint."""

    model_stats: tuple[VersionStats, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Phases:
    """One version: rows that it answered, rows in a batch, and the mean of each phase."""

    version: str
    rows: int
    batch_rows: float | None
    queue_s: float | None
    preprocess_s: float | None
    compute_s: float | None
    postprocess_s: float | None


def phases_of(found: StatsList | None) -> Sequence[Phases]:
    """A row for each version that answered anything."""
    return [
        Phases(
            version=one.version,
            rows=one.inference_count,
            batch_rows=one.inference_count / one.execution_count if one.execution_count else None,
            queue_s=one.inference_stats.queue.mean_s,
            preprocess_s=one.inference_stats.compute_input.mean_s,
            compute_s=one.inference_stats.compute_infer.mean_s,
            postprocess_s=one.inference_stats.compute_output.mean_s,
        )
        for one in (found or StatsList()).model_stats
        if one.inference_count
    ]
