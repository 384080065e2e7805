"""Observation of one running rollout: its arms, replicas, route and readings."""

import hashlib
import logging
from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from typing import Final

import msgspec

from headrace.control.desired.target import BASELINE, TargetState
from headrace.control.model.desired import DesiredArm, DesiredEndpoint
from headrace.control.model.observed import MANY_FAILURES, Replica, ReplicaPhase
from headrace.control.model.records import Assignment, RolloutRecord, UnitBatch
from headrace.control.reconcile.pools import hosted_replicas
from headrace.control.reconcile.status import is_routed_as_desired
from headrace.control.rollouts.evidence import (
    IntervalCounter,
    Pairing,
    Predictions,
    RolloutReading,
    Split,
)
from headrace.core import FailedPreconditionError
from headrace.core.spec.rollout import (
    DisagreementSpec,
    ShadowSpec,
    compares_answers,
    needs_assignments,
)
from headrace.gateway import ArmStatistics, EndpointRoute, RoutedRequest, arm_of
from headrace.rollout.crashes import ReplicaDeaths
from headrace.rollout.evidence import RolloutEvidenceState
from headrace.rollout.outcomes import Names, RolloutVerdict
from headrace.rollout.readings import RewardSums, UnitTally
from headrace.serving.telemetry.report import Observe, RecordedAnswer, ReplicaReport

_LOG: Final = logging.getLogger("headrace.control")
CANDIDATE: Final = "candidate"
_ANSWERS_PER_S: Final = 1000.0
_ANSWER_BYTES_PER_S: Final = 1 << 20
"""Limit of one replica's answers, so that a minute of them fits into the memory of pairing."""
_LONGEST_GAP_S: Final = 10.0


@dataclass(slots=True, kw_only=True)
class RolloutWatch:
    """All counts of one rollout, and how long it was observed.

    `saved_at` and `_ticked_at` are monotonic, `judged_at` is on the scale of `elapsed_s`.
    """

    evidence: RolloutEvidenceState
    counter: IntervalCounter
    pairing: Pairing
    names: Names
    saved_at: float
    elapsed_s: float = 0.0
    verdict: RolloutVerdict | None = None
    judged_at: float = 0.0
    units: UnitTally | None = None
    """Stored sums by caller; None until they were read."""
    positions: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Process and read position of each replica's answers."""
    rewards: tuple[RewardSums, RewardSums] | None = None
    _ticked_at: float = 0.0
    rewards_due: float = 0.0
    has_failed: bool = False
    """Whether the candidate crashes repeatedly."""

    @classmethod
    def over(cls, record: RolloutRecord, now: float, *, logs_arms: bool) -> "RolloutWatch":
        """Return the watch of a rollout that begins or continues at monotonic `now`.

        Args:
            logs_arms: Whether all requests pass a gateway whose log of arms can be read.
        """
        settings = record.state.settings
        evidence = _evidence_of(record)
        arms = (*record.source.arms, *record.target.arms)
        if any(arm.revision.upstream for arm in arms):
            evidence.leave_out("predictions", "an upstream server does not report its answers")
            evidence.leave_out("crashes", "the processes of an upstream server are not observed")
        if any(arm.revision.generates for arm in arms):
            for compared in ("predictions", "disagreement"):
                evidence.leave_out(compared, "the texts of a language model are not compared")
        if not logs_arms and any(arm.revision.is_silent for arm in arms):
            reason = "gateways on other hosts do not report which version answers a request"
            evidence.leave_out("reward", reason)
        if any(arm.revision.pool for arm in arms):
            evidence.leave_out("crashes", "the processes of a pool serve several versions")
        metric = settings.metrics.disagreement or DisagreementSpec()
        # Names of the two arms for people.
        old = " and ".join(arm.key for arm in record.source.arms)
        return cls(
            evidence=evidence,
            counter=IntervalCounter(warmup_s=settings.warmup_s),
            pairing=Pairing(metric=metric),
            names=Names(
                baseline=f"version {old}", candidate=f"version {record.target.arms[0].key}"
            ),
            saved_at=now,
            elapsed_s=record.state.elapsed_s,
            _ticked_at=now,
        )

    def elapsed(self, now: float) -> float:
        """Return the seconds for which the rollout was observed until monotonic `now`.

        A gap between two readings counts a few seconds at most, because a stopped process or a
        sleeping machine observes nothing.
        """
        self.elapsed_s += min(max(now - self._ticked_at, 0.0), _LONGEST_GAP_S)
        self._ticked_at = now
        return self.elapsed_s

    def judge(self, timestamp: float) -> None:
        """Compute the verdict from all counts at `timestamp` (Unix time), and add its intervals."""
        self.verdict = self.evidence.verdict(timestamp, self.names)
        self.judged_at = self.elapsed_s
        self.evidence.note(self.verdict)

    def note_predictions(self, reports: Iterable[ReplicaReport]) -> None:
        """Ignore predictions if the model's output cannot be counted."""
        for report in reports:
            counted = report.predictions
            if counted is not None and not counted.kind and counted.skipped:
                reason = f"output '{counted.output}' is neither a class nor a score"
                self.evidence.leave_out("predictions", reason)

    def after(self, replica: Replica) -> int:
        """Return the position from which a replica's answers are read."""
        process, cursor = self.positions.get(replica.name, (replica.process, 0))
        return cursor if process == replica.process else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveRollout:
    """A rollout with its current arms, replicas and route."""

    record: RolloutRecord
    endpoint: DesiredEndpoint
    route: EndpointRoute | None
    replicas: Sequence[Replica]
    hosted: Mapping[str, frozenset[str]]
    """Revisions that each replica of a pool serves."""

    @classmethod
    def of(cls, record: RolloutRecord, target_state: TargetState) -> "LiveRollout | None":
        """Return the view of `record`; None if its endpoint is gone."""
        reconciler = target_state.reconciler
        endpoint = target_state.effective_endpoint(record.endpoint)
        if endpoint is None:
            return None
        routes = reconciler.publication.routes
        return cls(
            record=record,
            endpoint=endpoint,
            route=next((r for r in routes if r.name == record.endpoint), None),
            replicas=[
                *(
                    replica
                    for replica in reconciler.replicas.values()
                    if replica.endpoint == record.endpoint and not replica.is_leaving
                ),
                *hosted_replicas(endpoint, reconciler.replicas.values(), reconciler.hosted),
            ],
            hosted=reconciler.hosted,
        )

    @property
    def candidate(self) -> DesiredArm | None:
        """Arm of the new version."""
        return self.endpoint.arm(self.record.target.arms[0].key)

    @property
    def comparison(self) -> list[DesiredArm]:
        """Arms that the candidate is compared with: the baseline if any, else the old ones."""
        fresh = [arm for arm in self.endpoint.arms if arm.role == BASELINE]
        return fresh or [arm for arm in self.endpoint.arms if arm is not self.candidate]

    @property
    def in_force(self) -> bool:
        """Whether the gateway acknowledged the route that the rollout requests.

        The candidate must be reachable even without a share: a preview calls it by name.
        """
        if self.route is None or not is_routed_as_desired(self.endpoint, self.route):
            return False
        candidate = self.candidate
        if candidate is None or self.route.held:
            return True
        return any(arm.is_live for arm in self.route.arms if arm.key == candidate.key)

    def is_ready(self, healthy: Mapping[str, bool]) -> bool:
        """Whether all replicas that the new split needs were ready.

        Args:
            healthy: Health by arm key, of arms that are upstreams.
        """
        fresh = [arm for arm in self.endpoint.arms if arm is self.candidate or arm.role == BASELINE]
        return all(self._arm_is_ready(arm, healthy) for arm in fresh)

    def _arm_is_ready(self, arm: DesiredArm, healthy: Mapping[str, bool]) -> bool:
        if arm.revision.upstream is not None:
            return healthy.get(arm.key, False)
        if arm.revision.pool:
            return any(arm.revision.id in ids for ids in self.hosted.values())
        own = self._replicas_of(arm)
        ready = [replica for replica in own if replica.phase is ReplicaPhase.READY]
        return bool(ready) and sum(replica.was_ready for replica in own) >= arm.replicas

    @property
    def failure(self) -> str:
        """Reason why the candidate cannot become ready or crashes; empty otherwise."""
        arm = self.candidate
        for replica in self._replicas_of(arm) if arm else ():
            gave_up = replica.failures >= MANY_FAILURES and replica.phase is not ReplicaPhase.READY
            if replica.cannot_load or gave_up:
                return f"{replica.name}: {replica.reason}"
        return ""

    def is_candidate(self, replica: Replica) -> bool:
        """Whether `replica` runs the new version."""
        arm = self.candidate
        return arm is not None and replica.revision_id == arm.revision.id

    def split(self) -> Split | None:
        """Return the weights of candidate and comparison in force; None while others are requested.

        Also None while an arm with a weight cannot answer, because the others get its share.
        """
        return self.weights if self.in_force and all(self._is_alive()) else None

    @property
    def weights(self) -> Split | None:
        """The requested weights, dead arms included; None until the gateway acknowledged them.

        A candidate whose copies are counted has their share of the requests as its weight.
        """
        arm, route = self.candidate, self.route
        if arm is None or route is None or route.held or route.split_id != self.endpoint.split_id:
            return None
        if {a.key: a.weight for a in route.arms} != {a.key: a.weight for a in self.endpoint.arms}:
            return None
        return self._copied or arm.weight, sum(other.weight for other in self.comparison)

    @property
    def _copied(self) -> int:
        """Percent of the requests whose copies are counted as the candidate's."""
        settings, mirror = self.record.state.settings, self.endpoint.mirror
        counts_copies = isinstance(settings, ShadowSpec) and settings.counts_copies
        return mirror.percent if mirror is not None and counts_copies else 0

    def _is_alive(self) -> tuple[bool, bool]:
        """Return whether candidate and comparison can answer the requests of their weights."""
        arms = self.route.arms if self.route is not None else ()
        key = self.candidate.key if self.candidate is not None else ""
        dead = {
            arm.key
            for arm in arms
            if (arm.weight or (self._copied and arm.key == key)) and not arm.is_live
        }
        return key not in dead, not dead - {key}

    def reading(
        self,
        *,
        now: float,
        epoch: str,
        totals: Mapping[tuple[str, str], ArmStatistics],
        reports: Mapping[str, ReplicaReport],
    ) -> RolloutReading:
        """Return the counts of the gateway and the replicas, combined by arm."""
        name, arm = self.record.endpoint, self.candidate
        return RolloutReading(
            time_s=now,
            epoch=epoch,
            split=self.split(),
            lost=None if all(self._is_alive()) else self.weights,
            is_alive=self._is_alive(),
            step_since=self.record.state.step_since,
            step=self.record.state.step,
            is_sticky=self.endpoint.sticky is not None,
            candidate=totals.get((name, arm.key), ArmStatistics()) if arm else ArmStatistics(),
            baseline=reduce(
                ArmStatistics.plus,
                (totals.get((name, a.key), ArmStatistics()) for a in self.comparison),
                ArmStatistics(),
            ),
            predictions=self._predictions(reports),
            all_told=all(replica.name in reports for replica in self.answering),
            heard=self._heard(reports),
        )

    def deaths(self) -> list[ReplicaDeaths]:
        """Return the crashes of each replica of the two arms."""
        return [
            ReplicaDeaths(
                name=replica.name,
                is_candidate=self.is_candidate(replica),
                deaths=replica.deaths,
                is_ready=replica.phase is ReplicaPhase.READY,
                reason=replica.death_reason,
            )
            for replica in self.replicas
            if self.is_counted(replica) and not replica.query
        ]

    def observe(
        self, replica: Replica, received_per_s: float, answer_bytes: float = 0.0
    ) -> Observe:
        """Return what a replica of this endpoint must observe.

        Args:
            answer_bytes: Mean size of its recorded answers in bytes; 0 while unknown.
        """
        settings = self.record.state.settings
        predictions, disagreement = settings.metrics.predictions, settings.metrics.disagreement
        is_shadow = compares_answers(settings)
        looked_at = disagreement if is_shadow else predictions
        return Observe(
            key=self.record.id,
            predictions=predictions is not None and not is_shadow and self.is_counted(replica),
            output=looked_at.output if looked_at else "",
            answers_percent=self._answers_percent(received_per_s, answer_bytes),
            pairs=is_shadow,
        )

    @property
    def answering(self) -> list[Replica]:
        """The ready replicas of the two compared arms."""
        return [r for r in self.replicas if r.phase is ReplicaPhase.READY and self.is_counted(r)]

    def is_counted(self, replica: Replica) -> bool:
        """Whether the replica belongs to one of the two compared arms."""
        arms = (self.candidate, *self.comparison)
        return any(arm is not None and replica.revision_id == arm.revision.id for arm in arms)

    @property
    def needs_answers(self) -> bool:
        """Whether single answers are read, and not only their counts."""
        settings = self.record.state.settings
        return (
            compares_answers(settings) or self.needs_assignments or self.endpoint.sticky is not None
        )

    @property
    def needs_assignments(self) -> bool:
        """Whether the arm of each request is stored for later feedback."""
        return needs_assignments(self.record.state.settings)

    @property
    def logs_arms(self) -> bool:
        """Whether the gateway logs the arm of each request, because an arm does not report it."""
        arms = self.endpoint.arms
        return self.endpoint.mirror is None and any(arm.revision.is_silent for arm in arms)

    def routed(self, requests: Iterable[RoutedRequest]) -> Iterable[tuple[bool, RoutedRequest]]:
        """Yield each request to the two arms by the weights in force; whether to the candidate."""
        arms = {
            (self.endpoint.name, arm.key): arm is self.candidate
            for arm in (self.candidate, *self.comparison)
            if arm is not None
        }
        split = self.record.id, self.route.logged_weights if self.route is not None else ""
        for request in requests:
            arm = arm_of(request.cluster or "")
            if arm in arms and (request.split_id, request.weights) == split:
                yield arms[arm], request

    def assignments(
        self, answers: Iterable[tuple[bool, RecordedAnswer | RoutedRequest]], now: float
    ) -> list[Assignment]:
        """Return the assignments of requests, of which some are the candidate's."""
        return [
            Assignment(
                request_id=answer.answer_id,
                rollout=self.record.id,
                arm=CANDIDATE if is_candidate else BASELINE,
                unit=unit_digest(self.record.id, answer.unit or answer.answer_id),
                at=now,
            )
            # Failed ones too: assignment is independent of outcome.
            for is_candidate, answer in answers
        ]

    def _answers_percent(self, received_per_s: float, answer_bytes: float) -> int:
        """Return the percentage of answers to record: all for feedback, else what pairing can take.

        The size of answers affects the percentage of all answers, never a single answer.
        """
        if not self.needs_answers:
            return 0
        if self.needs_assignments:
            return 100
        per_s = min(_ANSWERS_PER_S, _ANSWER_BYTES_PER_S / max(answer_bytes, 1.0))
        return max(1, min(100, int(100 * per_s / max(received_per_s, 1.0))))

    def _heard(self, reports: Mapping[str, ReplicaReport]) -> frozenset[tuple[str, int]] | None:
        arms = [arm for arm in (self.candidate, *self.comparison) if arm is not None]
        if any(arm.revision.upstream is not None for arm in arms):
            return None  # upstreams do not report their callers
        is_notified = all(
            (report := reports.get(replica.name)) is not None
            and _observed_key(report) == self.record.id
            for replica in self.answering
        )
        return frozenset((r.name, r.process) for r in self.answering) if is_notified else None

    def _predictions(self, reports: Mapping[str, ReplicaReport]) -> dict[str, Predictions]:
        predictions = {}
        for replica in self.replicas:
            report = reports.get(replica.name)
            if report is None or report.predictions is None or not self.is_counted(replica):
                continue
            if _observed_key(report) != self.record.id:
                continue
            predictions[replica.name] = Predictions(
                is_candidate=self.is_candidate(replica),
                kind=report.predictions.kind,
                counts=report.predictions.counts,
            )
        return predictions

    def _replicas_of(self, arm: DesiredArm) -> list[Replica]:
        return [replica for replica in self.replicas if replica.revision_id == arm.revision.id]


def _evidence_of(record: RolloutRecord) -> RolloutEvidenceState:
    """Return a rollout's stored evidence; empty if another version of Headrace stored it."""
    settings = record.state.settings
    if not record.evidence:
        return RolloutEvidenceState.start(settings)
    try:
        return RolloutEvidenceState.decode(settings, record.evidence)
    except FailedPreconditionError as error:
        extra = {"rollout": record.id, "error": str(error)}
        _LOG.warning("counting for a rollout restarts at zero", extra=extra)
        return RolloutEvidenceState.start(settings)


def _observed_key(report: ReplicaReport) -> str:
    """Return the rollout that a replica counts its predictions for; empty for none."""
    observing = report.observing
    return msgspec.json.decode(observing, type=Observe).key if observing else ""


def batch_of(
    assignments: Sequence[Assignment], *, share: float, positions: dict[str, tuple[int, int]]
) -> UnitBatch:
    """Return answers by caller. A new caller counts for the arm of its first answer.

    A caller that a later step moves to the other arm was assigned in an earlier step: only callers
    assigned now show whether the split follows its share.
    """
    arms: dict[str, str] = {}
    for assignment in assignments:
        arms.setdefault(assignment.unit, assignment.arm)
    return UnitBatch(
        share=share,
        requests=dict(Tally(assignment.unit for assignment in assignments)),
        of_candidate=frozenset(unit for unit, arm in arms.items() if arm == CANDIDATE),
        positions=positions,
    )


def unit_digest(rollout: str, unit: str) -> str:
    """Return a caller's digest for the store, which does not reveal the caller."""
    return hashlib.sha256(f"{rollout}\0{unit}".encode()).hexdigest()[:16]
