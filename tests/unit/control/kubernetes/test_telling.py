import itertools

from headrace.control.kubernetes.reconciler import problem_events
from headrace.control.kubernetes.rolling import PodChange, Roll, roll_events


def changes(*names: str) -> tuple[PodChange, ...]:
    return tuple(PodChange(deployment={"metadata": {"name": name}}, actions=()) for name in names)


def test_a_problem_is_told_when_it_comes_when_it_is_another_and_when_it_is_over() -> None:
    steps = [{}, {("m", "1"): "quota"}, {("m", "1"): "quota"}, {("m", "1"): "denied"}, {}]
    told = [
        [(one.endpoint, one.reason, one.message) for one in problem_events(a, b, timestamp=1.0)]
        for a, b in itertools.pairwise(steps)
    ]

    assert told == [
        [("m", "ClusterTrouble", "version 1: quota")],
        [],
        [("m", "ClusterTrouble", "version 1: denied")],
        [("m", "ClusterTroubleEnded", "version 1: the cluster accepts the objects again")],
    ]


def test_who_waits_is_told_once_and_who_holds_them_up_by_name() -> None:
    steps = [
        Roll(),
        Roll(later=changes("b", "c"), rolling=("a",)),
        Roll(later=changes("c"), rolling=("b",)),
        Roll(later=changes("c"), rolling=("b",), held_by=("b",)),
        Roll(later=changes("c"), rolling=("b",), held_by=("b",)),
        Roll(),
    ]
    told = [
        [(one.reason, one.data["waiting"]) for one in roll_events(a, b, timestamp=1.0)]
        for a, b in itertools.pairwise(steps)
    ]

    assert told == [
        [("RollBegun", ["b", "c"])],
        [],
        [("RollHeld", ["c"])],
        [],
        [("RollDone", [])],
    ]
    (held,) = roll_events(steps[2], steps[3], timestamp=1.0)
    assert held.message.startswith("1 Deployment(s) keep the pods they have: new pods of b do")
