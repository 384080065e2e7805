"""The documents that the management API answers with: rollouts and conditions."""

import math
from dataclasses import asdict

import msgspec
import pytest

from headrace.control.api.endpoints import ConditionLog
from headrace.control.model.desired import DesiredArm, DesiredEndpoint, make_revision
from headrace.control.model.records import RolloutRecord
from headrace.control.reconcile.conditions import EndpointCondition, conditions_of
from headrace.control.reconcile.status import EndpointStatus, ReplicaStatus, RevisionStatus
from headrace.control.rollouts.status import rollout_status
from headrace.core import EndpointName, ReplicaSettings
from headrace.core.spec.rollout import (
    AbSpec,
    BlueGreenSpec,
    CanarySpec,
    CanaryStepSpec,
    RolloutSpec,
    ShadowSpec,
)
from headrace.rollout.outcomes import MetricVerdict, Outcome, RolloutVerdict
from headrace.rollout.state import RolloutPhase, RolloutState, TrafficShares


def endpoint(*versions: tuple[str, int]) -> DesiredEndpoint:
    arms = tuple(
        DesiredArm(
            revision=make_revision(
                endpoint=EndpointName("m"),
                model=f"m:{version}",
                settings=ReplicaSettings(model_name="m", model_version=version, path="/m"),
            ),
            weight=weight,
            replicas=1,
        )
        for version, weight in versions
    )
    return DesiredEndpoint(name=EndpointName("m"), timeout_s=None, arms=arms)


VERDICT = RolloutVerdict(
    outcome=Outcome.ROLL_BACK,
    at=1010.0,
    explanation="errors: too many",
    metrics=(
        MetricVerdict(
            metric="errors",
            outcome=Outcome.ROLL_BACK,
            reason="too many",
            unit="ratio difference",
            baseline=0.001,
            candidate=0.05,
            effect=0.049,
            low=0.03,
            high=0.07,
            margin=0.005,
            alpha=0.0125,
            samples=(900, 100),
        ),
        MetricVerdict(
            metric="latency",
            outcome=Outcome.WAIT,
            reason="too few",
            high=math.inf,
            samples=(890, 110),
        ),
    ),
)


def record(
    phase: RolloutPhase = RolloutPhase.PROGRESSING,
    *,
    settings: RolloutSpec | None = None,
    verdict: RolloutVerdict | None = VERDICT,
    reason: str = "",
) -> RolloutRecord:
    return RolloutRecord(
        id="r7",
        endpoint="m",
        created=1000.0,
        source=endpoint(("3", 90), ("2", 10)),
        target=endpoint(("4", 100)),
        actor="ann@laptop",
        state=RolloutState(
            settings=settings or CanarySpec(steps=(CanaryStepSpec(weight=5, until="verdict"),)),
            phase=phase,
            began=1000.0,
            since=1001.0,
            reason=reason,
            verdict=verdict,
            traffic=TrafficShares(candidate=5, baseline=5),
        ),
    )


def test_a_rollout_is_told_with_versions_weights_and_every_number() -> None:
    status = rollout_status(record())

    assert (status.id, status.endpoint, status.strategy, status.phase) == (
        *("r7", "m", "canary"),
        "progressing",
    )
    assert (status.from_version, status.to_version, status.from_model, status.to_model) == (
        *("3", "4", "m:3"),
        "m:4",
    )
    assert (status.weight, status.baseline_weight, status.step, len(status.steps)) == (5, 5, 0, 1)
    assert (status.began, status.since, status.actor) == (1000.0, 1001.0, "ann@laptop")
    assert status.verdict is not None
    assert asdict(status.verdict.metrics[0]) == msgspec.to_builtins(VERDICT.metrics[0]) | {
        "samples": (900, 100)
    }
    assert status.steps[0].until == "verdict"


def test_requests_are_those_that_were_counted_else_the_verdicts_samples() -> None:
    summary = {"baseline_requests": 5000, "candidate_requests": 300, "mean_distance": math.inf}
    counted = rollout_status(record(), counted=summary)

    assert asdict(counted.requests) == {"baseline": 5000, "candidate": 300}
    assert counted.counted == {"baseline_requests": 5000, "candidate_requests": 300}
    assert asdict(rollout_status(record()).requests) == {"baseline": 900, "candidate": 110}
    assert asdict(rollout_status(record(verdict=None)).requests) == {"baseline": 0, "candidate": 0}


def test_what_has_no_bound_is_null_in_json() -> None:
    verdict = rollout_status(record()).verdict

    assert verdict is not None
    assert verdict.metrics[1].high is None
    assert rollout_status(record(verdict=None)).verdict is None


@pytest.mark.parametrize(
    ("settings", "name", "steps"),
    [
        (CanarySpec(), "canary", 3),
        (BlueGreenSpec(), "blue-green", 0),
        (AbSpec(), "ab", 0),
        (ShadowSpec(), "shadow", 0),
    ],
)
def test_every_strategy_has_its_name(settings: RolloutSpec, name: str, steps: int) -> None:
    status = rollout_status(record(settings=settings))

    assert (status.strategy, len(status.steps)) == (name, steps)


def test_a_rollout_of_settings_alone_names_the_same_version_twice() -> None:
    same = msgspec.structs.replace(
        record(), source=endpoint(("3", 100)), target=endpoint(("3", 100))
    )
    empty = msgspec.structs.replace(record(), source=endpoint(), target=endpoint())

    assert rollout_status(same).from_version == rollout_status(same).to_version == "3"
    assert rollout_status(empty).to_version == ""


def replica(state: str) -> ReplicaStatus:
    return ReplicaStatus(
        name="m-1", state=state, pid=1, address="", restarts=0, reason="", rss_bytes=None
    )


def seen(*states: str, wanted: int, ready: bool = True, failed: bool = False) -> EndpointStatus:
    revision = RevisionStatus(
        version="1",
        model="m:1",
        weight=100,
        desired_weight=100,
        desired_replicas=wanted,
        replicas=tuple(replica(state) for state in states),
    )
    return EndpointStatus(
        name="m",
        ready=ready,
        failed=failed,
        url="",
        revisions=(revision,),
        message="" if ready else "0 of 1 replicas ready",
    )


def named(found: tuple[EndpointCondition, ...]) -> dict[str, tuple[bool, str]]:
    return {condition.type: (condition.status, condition.reason) for condition in found}


def test_an_endpoint_without_a_rollout_is_ready_and_scaled() -> None:
    found = named(conditions_of(seen("ready", wanted=1), None, now=5.0))

    assert found == {
        "Ready": (True, "Serving"),
        "Progressing": (False, "NoRollout"),
        "RolledBack": (False, "NoRollout"),
        "Scaled": (True, "AtTarget"),
        "AnswersIndependent": (True, "NotReported"),
    }


@pytest.mark.parametrize(
    ("states", "wanted", "scaled"),
    [
        (("ready", "starting"), 2, (False, "ScalingUp")),
        (("ready", "draining"), 1, (False, "ScalingDown")),
        ((), 0, (True, "AtZero")),
        (("ready", "ready"), 2, (True, "AtTarget")),
    ],
)
def test_replicas_under_way_are_told(
    states: tuple[str, ...], wanted: int, scaled: tuple[bool, str]
) -> None:
    found = named(conditions_of(seen(*states, wanted=wanted), None, now=5.0))

    assert found["Scaled"] == scaled


@pytest.mark.parametrize(
    ("phase", "progressing", "rolled_back"),
    [
        (RolloutPhase.PREPARING, True, False),
        (RolloutPhase.PAUSED, True, False),
        (RolloutPhase.KEEPING, True, False),
        (RolloutPhase.PROMOTED, False, False),
        (RolloutPhase.ROLLED_BACK, False, True),
        (RolloutPhase.ABORTED, False, True),
        (RolloutPhase.REPORTED, False, False),
    ],
)
def test_a_rollout_shows_in_the_conditions_since_its_phase_began(
    phase: RolloutPhase, *, progressing: bool, rolled_back: bool
) -> None:
    given = record(phase, reason="errors: too many")
    found = {c.type: c for c in conditions_of(seen("ready", wanted=1), given, now=5000.0)}

    assert found["Progressing"].status is progressing
    assert found["RolledBack"].status is rolled_back
    assert found["RolledBack"].since == found["Progressing"].since == 1001.0
    assert ("errors: too many" in found["RolledBack"].message) is rolled_back
    assert found["RolledBack"].reason == "".join(map(str.capitalize, phase.value.split("_")))


def test_not_ready_says_whether_somebody_has_to_help() -> None:
    starting = conditions_of(seen(wanted=1, ready=False), None, now=5.0)
    failed = conditions_of(seen(wanted=1, ready=False, failed=True), None, now=5.0)

    assert named(starting)["Ready"] == (False, "Starting")
    assert named(failed)["Ready"] == (False, "Failed")
    assert starting[0].message == "0 of 1 replicas ready"


def test_a_condition_keeps_its_time_while_it_stays_the_same() -> None:
    log = ConditionLog()
    first = log.noted("m", conditions_of(seen("ready", wanted=1), None, now=1.0))
    second = log.noted("m", conditions_of(seen("ready", wanted=1), None, now=2.0))
    down = log.noted("m", conditions_of(seen(wanted=1, ready=False), None, now=3.0))
    log.keep_only(["other"])
    anew = log.noted("m", conditions_of(seen(wanted=1, ready=False), None, now=4.0))

    assert [found[0].since for found in (first, second, down, anew)] == [1.0, 1.0, 3.0, 4.0]
    assert [found[1].since for found in (first, second, down)] == [1.0, 1.0, 1.0]


def test_a_message_may_change_without_a_new_time() -> None:
    log = ConditionLog()
    log.noted("m", conditions_of(seen("ready", wanted=2, ready=False), None, now=1.0))
    later = log.noted("m", conditions_of(seen("ready", "ready", wanted=3), None, now=2.0))

    assert later[3].since == 1.0
    assert later[3].message == "2 of 3 replicas ready"
