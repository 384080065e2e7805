"""Deaths of replicas decide by a valid test, count once, and never hold up a promotion."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core.spec.rollout import AbSpec, BlueGreenSpec, CanarySpec, MetricsSpec, ShadowSpec
from headrace.rollout.crashes import Crashes, ReplicaDeaths
from headrace.rollout.evidence import RolloutEvidenceState, metrics_in_use
from headrace.rollout.judge_fixed import Budget
from headrace.rollout.outcomes import Names, Outcome
from headrace.rollout.readings import ArmCounts, Increment
from tests.unit.rollout.test_simulate import at_most

BUDGET = Budget(back=0.01, on=0.05)


def arms(baseline: int, candidate: int, *, ready: tuple[int, int] = (1, 1)) -> list[ReplicaDeaths]:
    """All deaths are of the first replica of each arm."""
    return [
        ReplicaDeaths(
            name=f"{is_candidate}-{i}",
            is_candidate=is_candidate,
            deaths=deaths if i == 0 else 0,
            is_ready=True,
            reason="ended by signal 9",
        )
        for is_candidate, deaths, count in (
            (False, baseline, ready[0]),
            (True, candidate, ready[1]),
        )
        for i in range(count)
    ]


def begun(*, before: tuple[int, int] = (0, 0), ready: tuple[int, int] = (1, 1)) -> Crashes:
    crashes = Crashes()
    crashes.note(arms(*before, ready=ready), share=0.5)
    return crashes


def needed(share: float) -> int:
    """How many deaths of the candidate, and none of the baseline, decide."""
    crashes = begun()
    for deaths in range(1, 100):
        crashes.note(arms(0, deaths), share=share)
        if crashes.judge(budget=BUDGET, names=Names()).outcome is Outcome.ROLL_BACK:
            return deaths
    raise AssertionError("never")


@pytest.mark.parametrize(("share", "deaths"), [(0.01, 2), (0.05, 2), (0.1, 3), (0.25, 4), (0.5, 8)])
def test_few_deaths_of_the_candidate_alone_decide(share: float, deaths: int) -> None:
    assert needed(share) == deaths


@pytest.mark.parametrize("share", [0.05, 0.2, 0.5])
def test_versions_that_die_with_their_requests_are_rolled_back_at_most_as_often_as_allowed(
    share: float,
) -> None:
    rng, runs, level = np.random.default_rng(4), 2000, 0.05
    wrong = 0
    for _ in range(runs):
        crashes, deaths = begun(), [0, 0]
        for is_candidate in rng.random(40) < share:
            deaths[int(is_candidate)] += 1
            crashes.note(arms(*deaths), share=share)
            if crashes.log_evidence() >= -math.log(level):
                wrong += 1
                break
    assert wrong / runs <= at_most(level, runs)


@pytest.mark.parametrize("ready", [(1, 1), (3, 1), (1, 3)])
def test_versions_that_die_with_time_are_not_rolled_back_once_the_baseline_has_died(
    ready: tuple[int, int],
) -> None:
    """Each replica dies as often as any other, while the candidate has a twentieth of requests."""
    rng, runs, level = np.random.default_rng(5), 2000, 0.05
    wrong = 0
    for _ in range(runs):
        crashes, deaths = begun(before=(1, 0), ready=ready), [1, 0]
        for is_candidate in rng.random(40) < ready[1] / sum(ready):
            deaths[int(is_candidate)] += 1
            crashes.note(arms(*deaths, ready=ready), share=0.05)
            if crashes.log_evidence() >= -math.log(level):
                wrong += 1
                break
    assert wrong / runs <= at_most(level, runs)


def test_death_of_all_replicas_at_once_condemns_nobody() -> None:
    """The machine went down and came back: the baseline's death is taken first."""
    crashes = begun(ready=(2, 2))
    for reboots in range(1, 20):
        crashes.note(arms(reboots, reboots, ready=(2, 2)), share=0.05)
    assert crashes.log_evidence() < 0.0


@given(
    totals=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12),
    restarts=st.sets(st.integers(0, 11)),
    looks=st.integers(1, 3),
)
def test_each_death_counts_once_whoever_looks_and_however_often(
    totals: list[tuple[int, int]], restarts: set[int], looks: int
) -> None:
    crashes, baseline, candidate = begun(), 0, 0
    for i, (more_a, more_b) in enumerate(totals):
        baseline, candidate = baseline + more_a, candidate + more_b
        for _ in range(looks):
            crashes.note(arms(baseline, candidate), share=0.1)
        if i in restarts:
            crashes = msgspec.msgpack.decode(msgspec.msgpack.encode(crashes), type=Crashes)
    assert crashes.deaths == (baseline, candidate)


def test_deaths_before_the_rollout_are_not_its_own_but_a_replica_s_that_came_later_are() -> None:
    crashes = begun(before=(7, 0))
    assert crashes.deaths == (0, 0)
    assert crashes.has_baseline_died

    crashes.note(arms(7, 1, ready=(1, 2)), share=0.5)
    assert crashes.deaths == (0, 1)


def evidence(settings: CanarySpec | AbSpec | None = None) -> RolloutEvidenceState:
    made = RolloutEvidenceState.start(settings or CanarySpec())
    made.note_deaths(arms(0, 0), share=0.05)
    return made


def good_traffic(at: float) -> Increment:
    return Increment(
        at=at,
        duration_s=1.0,
        share=0.05,
        baseline=ArmCounts(requests=1900, errors=0),
        candidate=ArmCounts(requests=100, errors=7),
    )


def test_sentence_names_deaths_and_failed_requests() -> None:
    made = evidence()
    made.add(good_traffic(1.0))
    made.note_deaths(arms(0, 2), share=0.05)

    verdict = made.verdict(1.0, Names("version 1", "version 2"))

    assert verdict.outcome is Outcome.ROLL_BACK
    assert verdict.explanation.splitlines()[0] == (
        "crashes: 2 replica deaths of version 2 (the last ended by signal 9) against 0 replica "
        "deaths of version 1; 7 of 100 requests failed on version 2, 0 of 1,900 on version 1: it "
        "dies more often than the baseline, worse than tolerated"
    )
    assert made.summary()["candidate_deaths"] == 2
    assert made.summary()["candidate_failed"] == 7


def test_one_death_neither_promotes_nor_holds_up() -> None:
    only = MetricsSpec(rejections=None, latency=None, predictions=None)
    made = evidence(CanarySpec(metrics=only))
    made.note_deaths(arms(0, 1), share=0.05)
    assert made.verdict(1.0).outcome is Outcome.WAIT

    for second in range(60):
        made.add(msgspec.structs.replace(good_traffic(second), candidate=ArmCounts(requests=100)))
    assert made.verdict(60.0).outcome is Outcome.PROMOTE

    alone = msgspec.structs.replace(only, errors=None)
    nothing_else = evidence(CanarySpec(metrics=alone))
    nothing_else.note_deaths(arms(0, 1), share=0.05)
    assert nothing_else.verdict(1.0).outcome is Outcome.WAIT


def test_only_strategies_with_two_arms_side_by_side_judge_deaths() -> None:
    in_use = {
        type(settings): "crashes" in metrics_in_use(settings)[0]
        for settings in (CanarySpec(), AbSpec(), BlueGreenSpec(), ShadowSpec())
    }
    assert in_use == {
        CanarySpec: True,
        AbSpec: True,
        BlueGreenSpec: False,
        ShadowSpec: False,
    }


def test_evidence_of_an_earlier_version_begins_to_count_deaths() -> None:
    settings = CanarySpec()
    stored = msgspec.msgpack.decode(RolloutEvidenceState.start(settings).encode())
    del stored["crashes"]

    made = RolloutEvidenceState.decode(settings, msgspec.msgpack.encode(stored))

    assert not made.note_deaths(arms(3, 3), share=0.5)
    assert made.note_deaths(arms(3, 4), share=0.5)
