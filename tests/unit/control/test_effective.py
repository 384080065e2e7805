import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.desired.target import BASELINE, ReplicaTargets, effective, in_force
from headrace.control.model.desired import (
    DesiredArm,
    DesiredEndpoint,
    DesiredState,
    make_revision,
)
from headrace.control.model.records import RolloutRecord
from headrace.control.rollouts.observation import RolloutWatch
from headrace.core import EndpointName, ReplicaSettings
from headrace.core.spec.rollout import CanarySpec, StickySpec
from headrace.core.spec.scale import AutoscaleSpec
from headrace.core.spec.upstream import UpstreamSpec
from headrace.gateway import MirrorTarget
from headrace.rollout.state import RolloutPhase, RolloutState, TrafficShares

NAME = EndpointName("digits")


def arm(version: str, weight: int = 100, replicas: int = 1) -> DesiredArm:
    settings = ReplicaSettings(model_name=NAME, model_version=version, path=f"/m/{version}")
    revision = make_revision(endpoint=NAME, model=f"digits:{version}", settings=settings)
    return DesiredArm(revision=revision, weight=weight, replicas=replicas)


def endpoint(*arms: DesiredArm, generation: int = 1) -> DesiredEndpoint:
    return DesiredEndpoint(name=NAME, timeout_s=30.0, arms=arms, generation=generation)


def rollout(
    traffic: TrafficShares,
    *,
    phase: RolloutPhase = RolloutPhase.PROGRESSING,
    source: DesiredEndpoint | None = None,
    target: DesiredEndpoint | None = None,
) -> RolloutRecord:
    state = RolloutState(settings=CanarySpec(), phase=phase, began=0.0, since=0.0, traffic=traffic)
    return RolloutRecord(
        id="r1",
        endpoint=NAME,
        created=0.0,
        source=source or endpoint(arm("1")),
        target=target or endpoint(arm("2", replicas=4), generation=2),
        state=state,
    )


def weights(found: DesiredEndpoint) -> dict[str, int]:
    return {arm.key: arm.weight for arm in found.arms}


def test_a_canary_comes_first_so_that_a_sticky_caller_stays_with_it() -> None:
    record = rollout(TrafficShares(candidate=10, candidate_scale=0.1))

    found = in_force(record.target, record)

    assert [arm.key for arm in found.arms] == ["2", "1"]
    assert weights(found) == {"2": 10, "1": 90}
    assert found.split_id == "r1"


def test_a_candidate_has_as_many_copies_as_its_share_needs() -> None:
    record = rollout(TrafficShares(candidate=26, candidate_scale=0.26))

    found = in_force(record.target, record)

    candidate = found.arm("2")
    assert candidate is not None
    assert candidate.replicas == 2


def test_a_baseline_is_fresh_copies_of_the_old_version_beside_the_candidate() -> None:
    traffic = TrafficShares(candidate=20, baseline=20, has_baseline=True, candidate_scale=0.2)
    record = rollout(traffic)

    found = in_force(record.target, record)

    candidate, baseline, stable = found.arms
    assert weights(found) == {"2": 20, "1~baseline": 20, "1": 60}
    assert baseline.role == BASELINE
    assert baseline.revision.settings == stable.revision.settings
    assert baseline.revision.id != stable.revision.id
    assert baseline.replicas == candidate.replicas


def test_a_way_back_waits_for_no_new_copy_of_the_old_version() -> None:
    source = endpoint(arm("1", replicas=3))
    record = rollout(TrafficShares(candidate=50, candidate_scale=0.5), source=source)

    stable = in_force(record.target, record).arm("1")

    assert stable is not None
    assert stable.replicas == 3
    assert stable.required == 1


@pytest.mark.parametrize(
    "phase", [RolloutPhase.ROLLED_BACK, RolloutPhase.ABORTED, RolloutPhase.REPORTED]
)
def test_a_rollout_taken_back_leaves_the_old_version_alone(phase: RolloutPhase) -> None:
    record = rollout(TrafficShares(), phase=phase)

    found = in_force(record.target, record)

    assert weights(found) == {"1": 100}
    assert found.split_id == ""


def test_a_way_back_after_the_promotion_waits_for_all_copies_of_the_old_version() -> None:
    source = endpoint(arm("1", replicas=3))
    record = rollout(TrafficShares(), phase=RolloutPhase.ROLLED_BACK, source=source)
    state = msgspec.structs.replace(record.state, dropped_stable=True)

    stable = in_force(record.target, msgspec.structs.replace(record, state=state)).arm("1")

    assert stable is not None
    assert stable.replicas == 3
    assert stable.required is None


def test_a_promoted_rollout_is_what_was_asked_for() -> None:
    record = rollout(TrafficShares(candidate=100, has_stable=False), phase=RolloutPhase.PROMOTED)

    assert in_force(record.target, record) == record.target


def test_a_rollout_about_an_earlier_wish_has_no_say() -> None:
    record = rollout(TrafficShares(candidate=10))
    newer = endpoint(arm("3"), generation=3)

    assert in_force(newer, record) == newer


def test_a_shadow_gets_copies_and_no_weight() -> None:
    record = rollout(TrafficShares(mirror_percent=30))

    found = in_force(record.target, record)

    assert found.mirror == MirrorTarget(key="2", percent=30)
    assert weights(found) == {"2": 0, "1": 100}


def test_each_rollout_salts_its_sticky_key() -> None:
    sticky = StickySpec(header="x-user")
    target = msgspec.structs.replace(endpoint(arm("2"), generation=2), sticky=sticky)
    record = rollout(TrafficShares(candidate=10), target=target)

    found = in_force(record.target, record)

    assert found.sticky == StickySpec(header="x-user", salt="r1")


def test_the_autoscaler_says_how_many_copies_of_each_arm_there_are() -> None:
    scaled = msgspec.structs.replace(endpoint(arm("1")), autoscale=AutoscaleSpec())
    fixed = msgspec.structs.replace(endpoint(arm("1")), name=EndpointName("fixed"))
    desired = DesiredState(generation=1, endpoints=(scaled, fixed))
    scale = ReplicaTargets(counts={("digits", "1"): 3, ("fixed", "1"): 3})

    found = effective(desired, {}, scale)

    assert [e.arms[0].replicas for e in found.endpoints] == [3, 1]


def test_an_endpoint_that_sleeps_has_no_copies() -> None:
    scaled = msgspec.structs.replace(endpoint(arm("1")), autoscale=AutoscaleSpec(min_replicas=0))
    desired = DesiredState(generation=1, endpoints=(scaled,))

    (found,) = effective(desired, {}, ReplicaTargets(zeroed=frozenset({"digits"}))).endpoints

    assert found.scaled_to_zero
    assert [arm.replicas for arm in found.arms] == [0]


@given(
    candidate=st.integers(0, 100),
    has_baseline=st.booleans(),
    stable=st.lists(st.integers(0, 100), min_size=1, max_size=5).filter(any),
    phase=st.sampled_from(list(RolloutPhase)),
)
def test_weights_sum_to_100_wherever_a_rollout_is(
    *, candidate: int, has_baseline: bool, stable: list[int], phase: RolloutPhase
) -> None:
    total = sum(stable)
    parts = [100 * weight // total for weight in stable]
    parts[0] += 100 - sum(parts)
    source = endpoint(*(arm(str(i + 10), weight) for i, weight in enumerate(parts)))
    traffic = TrafficShares(
        candidate=candidate,
        baseline=min(candidate, 100 - candidate) if has_baseline else 0,
        has_baseline=has_baseline,
    )

    found = in_force(endpoint(arm("2"), generation=2), rollout(traffic, source=source, phase=phase))

    assert sum(weights(found).values()) == 100
    assert all(weight >= 0 for weight in weights(found).values())
    assert len({arm.revision.id for arm in found.arms}) == len(found.arms)


@pytest.mark.parametrize(
    ("is_upstream", "logs_arms", "is_left_out"),
    [(False, False, False), (True, True, False), (True, False, True)],
)
def test_reward_is_left_out_only_if_nothing_tells_which_version_answered(
    *, is_upstream: bool, logs_arms: bool, is_left_out: bool
) -> None:
    new = arm("2")
    if is_upstream:
        upstream = UpstreamSpec(url="https://models.example")
        new = msgspec.structs.replace(
            new, revision=msgspec.structs.replace(new.revision, upstream=upstream)
        )
    record = rollout(TrafficShares(candidate=50), target=endpoint(new, generation=2))

    watch = RolloutWatch.over(record, 0.0, logs_arms=logs_arms)
    watch.judge(0.0)

    assert watch.verdict is not None
    text = "reward: not judged, gateways on other hosts do not report which version answers"
    assert (text in watch.verdict.explanation) == is_left_out
