import pytest
from msgspec import structs

from headrace.control.desired.target import BASELINE
from headrace.control.model.observed import Replica, ReplicaPhase
from headrace.control.model.records import Assignment
from headrace.control.rollouts.observation import CANDIDATE, LiveRollout, batch_of
from headrace.core.spec.rollout import ShadowSpec, StickySpec
from headrace.gateway import EndpointRoute, MirrorTarget, RevisionTarget
from headrace.rollout.state import TrafficShares
from tests.unit.control.test_effective import arm, endpoint, rollout

REPLICA = Replica(
    name="digits-1-1",
    serial=1,
    endpoint="digits",
    version="1",
    revision_id="digits:1",
    address="unix:/run/digits",
    phase=ReplicaPhase.READY,
    since=0.0,
)


def sent(unit: str, arm: str) -> Assignment:
    return Assignment(request_id=f"{unit} to {arm}", rollout="r1", arm=arm, unit=unit, at=0.0)


def test_batch_has_each_caller_s_requests_and_the_arm_of_the_first() -> None:
    calls = [("ann", BASELINE), ("bob", CANDIDATE), ("ann", CANDIDATE), ("ann", BASELINE)]

    batch = batch_of([sent(*call) for call in calls], share=0.1, positions={"m-1": (7, 4)})

    assert batch.requests == {"ann": 3, "bob": 1}
    assert batch.of_candidate == {"bob"}
    assert (batch.share, batch.positions) == (0.1, {"m-1": (7, 4)})


@pytest.mark.parametrize(("addresses", "reached"), [((), False), (("unix:/new",), True)])
def test_a_preview_is_in_force_once_the_gateway_reaches_it(
    *, addresses: tuple[str, ...], reached: bool
) -> None:
    desired = endpoint(arm("1", weight=100), arm("2", weight=0))
    route = EndpointRoute(
        name=desired.name,
        timeout_s=30.0,
        arms=(
            RevisionTarget(version="1", weight=100, replicas=("unix:/old",)),
            RevisionTarget(version="2", weight=0, replicas=addresses),
        ),
    )

    view = LiveRollout(
        record=rollout(TrafficShares()), endpoint=desired, route=route, replicas=(), hosted={}
    )

    assert view.in_force is reached


@pytest.mark.parametrize(
    ("per_s", "answer_bytes", "percent"),
    [
        (0.0, 0.0, 100),
        (100.0, 300.0, 100),
        (4000.0, 300.0, 25),
        (100.0, 1 << 16, 16),
        (1e6, 1e9, 1),
    ],
)
def test_a_shadow_is_compared_by_a_share_that_is_smaller_where_answers_are_many_or_large(
    per_s: float, answer_bytes: float, percent: int
) -> None:
    state = structs.replace(rollout(TrafficShares(mirror_percent=50)).state, settings=ShadowSpec())
    record = structs.replace(rollout(TrafficShares()), state=state)
    view = LiveRollout(record=record, endpoint=record.source, route=None, replicas=(), hosted={})

    asked = view.observe(REPLICA, per_s, answer_bytes)

    assert (asked.key, asked.answers_percent, asked.pairs) == (record.id, percent, True)


@pytest.mark.parametrize(
    ("counts_copies", "addresses", "split", "weights"),
    [
        (True, ("unix:/new",), (25, 100), (25, 100)),
        (True, (), None, (25, 100)),
        (False, ("unix:/new",), (0, 100), (0, 100)),
    ],
)
def test_a_shadow_whose_copies_are_counted_has_their_share_of_the_requests(
    *,
    counts_copies: bool,
    addresses: tuple[str, ...],
    split: tuple[int, int] | None,
    weights: tuple[int, int],
) -> None:
    mirror = MirrorTarget(key="2", percent=25)
    desired = structs.replace(endpoint(arm("1", weight=100), arm("2", weight=0)), mirror=mirror)
    route = EndpointRoute(
        name=desired.name,
        timeout_s=30.0,
        arms=(
            RevisionTarget(version="1", weight=100, replicas=("unix:/old",)),
            RevisionTarget(version="2", weight=0, replicas=addresses),
        ),
        mirror=mirror,
    )
    settings = ShadowSpec(mirror_percent=25, counts_copies=counts_copies)
    record = rollout(TrafficShares(mirror_percent=25))
    record = structs.replace(record, state=structs.replace(record.state, settings=settings))
    view = LiveRollout(record=record, endpoint=desired, route=route, replicas=(), hosted={})

    assert (view.split(), view.weights) == (split, weights)
    assert view.needs_answers is not counts_copies
    assert view.observe(REPLICA, 10.0).pairs is not counts_copies


def test_of_a_split_by_a_key_only_the_callers_are_kept() -> None:
    desired = structs.replace(endpoint(arm("1")), sticky=StickySpec(header="x-user"))
    record = rollout(TrafficShares(candidate=10))
    view = LiveRollout(record=record, endpoint=desired, route=None, replicas=(), hosted={})

    asked = view.observe(REPLICA, 10.0, 100.0)

    assert not asked.pairs
    assert asked.answers_percent == 100
