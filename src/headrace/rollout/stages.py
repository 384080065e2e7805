"""What is a rollout made of? Stages in order, each with its traffic, and what follows the last."""

from dataclasses import dataclass
from typing import Final

from headrace.core.spec_rollout import Until
from headrace.rollout.state import Traffic

_WHOLE: Final = 100
HELD_BACK: Final = Traffic(candidate_scale=0.0)
"""The old version alone, as before the rollout."""


def fair_scale(weight: int) -> float:
    """The part of its replicas with which the candidate is no busier than the old version.

    The old version keeps all of its replicas and loses `weight` percent of its requests. Had the
    candidate no more than its share, each of its replicas would have more to do than each of the
    old ones, and its latency would look worse than it is.
    """
    return min(weight / (_WHOLE - weight), 1.0) if weight < _WHOLE else 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Traffic that is held for `pause_s` seconds, and until what `until` names has come.

    `name` says it to people.
    """

    name: str
    traffic: Traffic
    pause_s: float = 0.0
    until: Until | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a rollout does unless something stops it.

    `keep_s`: how long the old version is kept after the candidate took over; None for not at all.
    `max_duration_s`: how long the stages may take together; None where nothing has to be proved.
    `only_reports`: whether the last stage is followed by a report instead of by the candidate.
    """

    stages: tuple[Stage, ...]
    keep_s: float | None = None
    max_duration_s: float | None = None
    only_reports: bool = False

    def traffic(self, step: int) -> Traffic:
        """What `step` aims at; the step after the last stage has the candidate take over."""
        if step < len(self.stages):
            return self.stages[step].traffic
        return Traffic(candidate=100, has_baseline=self._has_baseline)

    @property
    def start(self) -> Traffic:
        """No request for the candidate, and as many replicas as its first stage needs."""
        return Traffic(
            candidate_scale=self.traffic(0).candidate_scale, has_baseline=self._has_baseline
        )

    @property
    def _has_baseline(self) -> bool:
        return any(stage.traffic.has_baseline for stage in self.stages)
