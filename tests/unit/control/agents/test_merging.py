from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.control.agents.counts import (
    FORGET_S,
    ComparableTotals,
    CounterAggregator,
    StoredTotals,
    totals_of,
)
from headrace.control.agents.messages import Arm
from headrace.core import InvalidArgumentError
from headrace.gateway import ArmStatistics

M1, M2 = ("m", "1"), ("m", "2")
FAST, SLOW = (0.001, 0.0001), (0.1, 0.01)


def totals(requests: int, errors: int = 0, slow: int = 0) -> ArmStatistics:
    latency = {bucket: n for bucket, n in ((FAST, requests - slow), (SLOW, slow)) if n}
    return ArmStatistics(requests=requests, errors=errors, latency=latency)


@dataclass
class Envoy:
    """Counts as Envoy does: from 0 at each start."""

    epoch: int = 0
    counted: dict[tuple[str, str], ArmStatistics] = field(default_factory=dict)

    def serve(self, arm: tuple[str, str], more: ArmStatistics) -> None:
        self.counted[arm] = more.plus(self.counted.get(arm, ArmStatistics()))

    def restart(self) -> None:
        self.epoch += 1
        self.counted = {}


def test_what_gateways_counted_is_added_up() -> None:
    found = CounterAggregator()

    found.take("a", "1", {M1: totals(5, errors=1)})
    found.take("b", "1", {M1: totals(3), M2: totals(2)})
    found.take("a", "1", {M1: totals(9, errors=1)})

    assert found.totals == {M1: totals(12, errors=1), M2: totals(2)}


def test_an_envoy_that_starts_again_counts_from_0_and_the_sum_goes_on() -> None:
    found = CounterAggregator()

    found.take("a", "1", {M1: totals(5)})
    found.take("a", "2", {M1: totals(7)})

    assert found.totals == {M1: totals(12)}


def test_what_no_longer_is_told_of_counts_no_second_time_when_it_is_again() -> None:
    found = CounterAggregator()
    found.take("a", "1", {M1: totals(5)})

    found.take("a", "1", {})
    found.take("a", "1", {M1: totals(6)})

    assert found.totals == {M1: totals(6)}


acts = st.lists(
    st.tuples(
        st.sampled_from(["serve", "report", "restart", "plane"]),
        st.sampled_from(["a", "b", "c"]),
        st.sampled_from([M1, M2]),
        st.integers(0, 20),
    ),
    max_size=40,
)


@given(acts)
def test_each_request_counts_once_if_it_was_reported_before_its_envoy_ended(
    script: list[tuple[str, str, tuple[str, str], int]],
) -> None:
    envoys = {name: Envoy() for name in "abc"}
    served: dict[tuple[str, str], ArmStatistics] = {}
    found = CounterAggregator()

    for act, name, arm, count in script:
        envoy = envoys[name]
        match act:
            case "serve":
                more = totals(count, errors=count // 3, slow=count // 2)
                envoy.serve(arm, more)
                served[arm] = more.plus(served.get(arm, ArmStatistics()))
            case "report":
                found.take(name, str(envoy.epoch), envoy.counted)
            case "restart":
                found.take(name, str(envoy.epoch), envoy.counted)
                envoy.restart()
            case _:
                found = CounterAggregator.from_stored(_through_disk(found.to_stored("e")))
    for name, envoy in envoys.items():
        found.take(name, str(envoy.epoch), envoy.counted)

    assert _without_nothing(found.totals) == _without_nothing(served)


def _through_disk(kept: StoredTotals) -> StoredTotals:
    return msgspec.json.decode(msgspec.json.encode(kept), type=StoredTotals)


def _without_nothing(
    found: dict[tuple[str, str], ArmStatistics],
) -> dict[tuple[str, str], ArmStatistics]:
    return {arm: one for arm, one in found.items() if one.requests}


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 9), st.booleans()), max_size=30))
def test_the_sum_never_falls(script: list[tuple[str, int, bool]]) -> None:
    envoys = {name: Envoy() for name in "ab"}
    found = CounterAggregator()
    last = 0

    for name, count, restarts in script:
        if restarts:
            envoys[name].restart()
        envoys[name].serve(M1, totals(count))
        found.take(name, str(envoys[name].epoch), envoys[name].counted)

        assert found.totals[M1].requests >= last
        last = found.totals[M1].requests


@given(st.permutations(["a", "b", "c"]))
def test_the_order_in_which_gateways_report_does_not_matter(order: list[str]) -> None:
    counted = {"a": {M1: totals(4)}, "b": {M1: totals(6), M2: totals(1)}, "c": {M2: totals(2)}}
    found = CounterAggregator()

    for name in order:
        found.take(name, "1", counted[name])

    assert found.totals == {M1: totals(10), M2: totals(3)}


def test_a_difference_and_its_beginning_make_the_end_again() -> None:
    before, now = totals(5, errors=2, slow=1), totals(9, errors=3, slow=4)

    assert before.plus(now.since(before)) == now
    assert before.since(now) == before, "less than before was counted anew"


SPLITS = {"v1": {"m": 50}, "v2": {"m": 90}, "v3": {"m": 90}}


def evidence() -> ComparableTotals:
    return ComparableTotals(split_of=lambda version, name: SPLITS.get(version, {}).get(name))


def test_evidence_is_of_intervals_over_which_the_newest_split_was_in_force() -> None:
    found = evidence()

    found.take("a", "1", {M1: totals(100)}, version="v2", newest="v2")
    found.take("a", "1", {M1: totals(130)}, version="v2", newest="v2")
    found.take("a", "1", {M1: totals(140)}, version="v3", newest="v3")

    assert found.totals == {M1: totals(40)}, "v3 splits as v2 did"


def test_what_a_gateway_that_is_behind_sends_is_no_evidence() -> None:
    found = evidence()

    found.take("a", "1", {M1: totals(10)}, version="v1", newest="v2")
    found.take("a", "1", {M1: totals(20)}, version="v1", newest="v2")
    found.take("a", "1", {M1: totals(30)}, version="v2", newest="v2")
    found.take("a", "1", {M1: totals(35)}, version="v2", newest="v2")

    assert found.totals == {M1: totals(5)}


def test_what_was_counted_while_a_gateway_was_away_is_no_evidence() -> None:
    found = evidence()

    found.take("a", "1", {M1: totals(10)}, version="v2", newest="v2")
    found.forget("a")
    found.take("a", "1", {M1: totals(90)}, version="v2", newest="v2")
    found.take("a", "2", {M1: totals(3)}, version="v2", newest="v2")

    assert found.totals == {M1: ArmStatistics()}


def test_a_version_that_nobody_remembers_is_no_evidence() -> None:
    found = evidence()

    found.take("a", "1", {M1: totals(10)}, version="old", newest="unknown")
    found.take("a", "1", {M1: totals(20)}, version="old", newest="unknown")

    assert found.totals == {M1: ArmStatistics()}


@given(
    st.builds(
        ArmStatistics,
        requests=st.integers(50, 90),
        errors=st.integers(0, 20),
        rejections=st.integers(0, 20),
        abandoned=st.integers(0, 10),
        latency=st.dictionaries(
            st.tuples(st.floats(0, 10), st.floats(0.001, 1)), st.integers(0, 99), max_size=5
        ),
        per_token=st.dictionaries(st.just((0.02, 0.001)), st.integers(0, 99)),
        output_tokens=st.dictionaries(st.just((24.0, 1.0)), st.integers(0, 99)),
    )
)
def test_totals_travel_unchanged(found: ArmStatistics) -> None:
    there = msgspec.json.decode(msgspec.json.encode(Arm.of(M1, found)), type=Arm)

    assert totals_of([there]) == {M1: found}


@pytest.mark.parametrize(
    "arm",
    [
        Arm(endpoint="m", key="1", requests=-1),
        Arm(endpoint="m", key="1", requests=1, errors=2),
        Arm(endpoint="m", key="1", requests=1, lower_s=(0.1,), width_s=(), counts=(1,)),
        Arm(endpoint="m", key="1", requests=1, lower_s=(0.1,), width_s=(0.1,), counts=(-1,)),
        Arm(endpoint="m", key="1", requests=1, per_token=((0.1, -0.1, 1),)),
        Arm(endpoint="m", key="1", requests=1, output_tokens=((1.0, 1.0, -1),)),
    ],
)
def test_counts_that_contradict_themselves_are_refused(arm: Arm) -> None:
    with pytest.raises(InvalidArgumentError, match="counts of 'm'"):
        totals_of([arm])


def test_an_arm_that_left_is_forgotten_once_nothing_more_comes_of_it() -> None:
    found = CounterAggregator()
    found.take("a", "1", {M1: totals(5), M2: totals(1)})

    found.keep({M2}, now=0.0)
    found.take("a", "1", {M1: totals(6), M2: totals(1)})  # a last request ended
    found.keep({M2}, now=FORGET_S)
    assert M1 in found.totals
    found.keep({M2}, now=2 * FORGET_S - 1)
    assert M1 in found.totals
    found.keep({M2}, now=2 * FORGET_S)

    assert found.totals == {M2: totals(1)}


def test_what_a_gateway_still_tells_of_a_forgotten_arm_counts_no_second_time() -> None:
    found = CounterAggregator()
    found.take("a", "1", {M1: totals(5), M2: totals(1)})
    found.keep({M2}, now=0.0)
    found.keep({M2}, now=FORGET_S)

    found.take("a", "1", {M1: totals(5), M2: totals(2)})
    assert M1 not in found.totals
    found.keep({M1, M2}, now=FORGET_S + 1)
    found.take("a", "1", {M1: totals(8), M2: totals(2)})

    assert found.totals == {M1: totals(3), M2: totals(2)}


def test_what_is_kept_does_not_grow_with_arms_that_left() -> None:
    found = CounterAggregator()
    for number in range(100):
        arm = ("m", str(number))
        found.take("a", "1", {arm: totals(1)})
        found.take("b", "1", {arm: totals(1)})
        found.keep({arm}, now=number * FORGET_S)

    kept = _through_disk(found.to_stored("e"))
    assert len(kept.totals) <= 2
    assert max(len(one.totals) for one in kept.gateways.values()) <= 2


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["serve", "report", "change", "keep", "restart", "plane"]),
            st.sampled_from("ab"),
            st.integers(0, 3),
            st.integers(1, 9),
        ),
        max_size=60,
    )
)
def test_what_is_shown_of_arms_that_are_known_never_falls_and_counts_each_request_once(
    script: list[tuple[str, str, int, int]],
) -> None:
    envoys = {name: Envoy() for name in "ab"}
    known = {M1}
    served: dict[tuple[str, str], int] = {}
    shown: dict[tuple[str, str], int] = {}
    found, now = CounterAggregator(), 0.0
    for act, name, number, count in script:
        arm, envoy = ("m", str(number)), envoys[name]
        match act:
            case "serve" if arm in known:
                envoy.serve(arm, totals(count))
                served[arm] = served.get(arm, 0) + count
            case "report":
                found.take(name, str(envoy.epoch), envoy.counted)
            case "restart":
                found.take(name, str(envoy.epoch), envoy.counted)
                envoy.restart()
            case "change":
                known = {M1, arm}
            case "plane":
                found = CounterAggregator.from_stored(_through_disk(found.to_stored("e")))
            case _:
                now += count * FORGET_S / 5
                found.keep(known, now=now)
        for key in known & shown.keys() & found.totals.keys():
            assert found.totals[key].requests >= shown[key]
        shown = {key: one.requests for key, one in found.totals.items() if key in known}
    for name, envoy in envoys.items():
        found.take(name, str(envoy.epoch), envoy.counted)

    assert all(one.requests <= served.get(key, 0) for key, one in found.totals.items())
    if M1 in served:
        assert found.totals[M1].requests == served[M1]
