"""How did a rollout's evidence come about, in one document for people and programs? Pure."""

from dataclasses import dataclass

from headrace.control.state.records import RolloutRecord
from headrace.rollout.sequences import MetricSequence, Sequences


@dataclass(frozen=True, slots=True, kw_only=True)
class IntervalPoint:
    """A metric's numbers at one time: `at` in seconds since 1970, the rest in the metric's unit.

    As `MetricStatus` has them. Null: not known then, or without bound.
    """

    at: float
    effect: float | None
    low: float | None
    high: float | None
    margin: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SequenceView:
    """A metric's confidence sequence, the oldest point first.

    `low` and `high` of all points together hold at all times at once with the confidence that the
    rollout's verdict tells. A metric that a fixed threshold decided is there twice, in two units.
    """

    metric: str
    unit: str
    points: tuple[IntervalPoint, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutEvidence:
    """How a rollout's metrics were over its life.

    At most 120 points a metric, `step_s` seconds apart at least; the newest may be closer.
    """

    id: str
    endpoint: str
    step_s: float
    metrics: tuple[SequenceView, ...]


def rollout_evidence(record: RolloutRecord, sequences: Sequences) -> RolloutEvidence:
    """The document of a rollout's confidence sequences."""
    return RolloutEvidence(
        id=record.id,
        endpoint=record.endpoint,
        step_s=sequences.step_s,
        metrics=tuple(_metric(sequences, one) for one in sequences.metrics),
    )


def _metric(sequences: Sequences, one: MetricSequence) -> SequenceView:
    return SequenceView(
        metric=one.metric,
        unit=one.unit,
        points=tuple(
            IntervalPoint(
                at=point.at,
                effect=point.effect,
                low=point.low,
                high=point.high,
                margin=point.margin,
            )
            for point in sequences.points(one)
        ),
    )
