import pytest

from headrace.control.counting import Counter
from headrace.control.effective import BASELINE
from headrace.control.observed import Arm, Route
from headrace.control.pairing import Pairing
from headrace.control.store import Assignment
from headrace.control.watching import CANDIDATE, View, Watch
from headrace.core.rollout_settings import CanarySettings, DisagreementMetric
from headrace.rollout.evidence import Evidence
from headrace.rollout.explain import Names
from headrace.rollout.state import Traffic
from tests.unit.control.test_effective import arm, endpoint, rollout


def a_watch() -> Watch:
    return Watch(
        evidence=Evidence.start(CanarySettings()),
        counter=Counter(warmup_s=0.0),
        pairing=Pairing(metric=DisagreementMetric()),
        names=Names(baseline="version 1", candidate="version 2"),
        saved_at=0.0,
    )


def sent(unit: str, arm: str) -> Assignment:
    return Assignment(request_id=f"{unit} to {arm}", rollout="r1", arm=arm, unit=unit, at=0.0)


def test_a_caller_counts_once_however_often_he_calls() -> None:
    watch = a_watch()

    first = watch.new_units([sent("ann", BASELINE), sent("bob", CANDIDATE), sent("ann", BASELINE)])
    second = watch.new_units([sent("ann", BASELINE), sent("cleo", BASELINE)])

    assert (first, second) == ((1, 1), (1, 0))


def test_whom_a_larger_step_moves_to_the_candidate_says_nothing_of_its_share() -> None:
    watch = a_watch()
    watch.new_units([sent(f"user {n}", BASELINE) for n in range(90)])

    moved = watch.new_units([sent(f"user {n}", CANDIDATE) for n in range(40)])

    assert moved == (0, 0)


@pytest.mark.parametrize(("addresses", "reached"), [((), False), (("unix:/new",), True)])
def test_a_preview_is_in_force_once_the_gateway_reaches_it(
    *, addresses: tuple[str, ...], reached: bool
) -> None:
    desired = endpoint(arm("1", weight=100), arm("2", weight=0))
    route = Route(
        name=desired.name,
        timeout_s=30.0,
        arms=(
            Arm(version="1", weight=100, replicas=("unix:/old",)),
            Arm(version="2", weight=0, replicas=addresses),
        ),
    )

    view = View(record=rollout(Traffic()), endpoint=desired, route=route, replicas=(), hosted={})

    assert view.in_force is reached
