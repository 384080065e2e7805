"""A canary's life, and an A/B test's, which is a canary of one step."""

import math

import pytest
from msgspec.structs import replace

from headrace.core.spec.rollout import AbSpec, CanarySpec, CanaryStepSpec, OnTimeout
from headrace.rollout import machine
from headrace.rollout.outcomes import RolloutVerdict
from headrace.rollout.state import PromotedBy, RolloutFacts, RolloutPhase, TrafficShares, Verb
from tests.unit.rollout.driving import BAD, BEGAN, GOOD, UNSURE, Driven

JUDGED = CanarySpec(
    steps=(CanaryStepSpec(weight=10, until="verdict"), CanaryStepSpec(weight=50, until="verdict"))
)


def test_the_first_step_waits_for_the_new_versions_replicas() -> None:
    canary = Driven.of(JUDGED)

    waiting = canary.look(ready=False)
    assert waiting.phase is RolloutPhase.PREPARING
    assert waiting.traffic == TrafficShares(candidate=0, candidate_scale=10 / 90)

    started = canary.look()
    assert started.phase is RolloutPhase.PROGRESSING
    assert started.traffic.candidate == 10
    assert started.reason == "step 1 of 2 (10 % of the requests)"


def test_a_good_version_goes_through_all_steps_and_takes_over() -> None:
    canary = Driven.of(JUDGED)

    assert canary.weights(20, verdict=GOOD) == [0, 10, 50, 100]
    assert canary.state.phase is RolloutPhase.PROMOTED
    assert canary.state.promoted_by is PromotedBy.PLAN
    assert canary.state.traffic == TrafficShares(candidate=100, has_stable=False)
    assert canary.state.reason.endswith("passed: errors within what is tolerated")


def test_the_old_version_is_kept_until_the_last_weight_is_in_force() -> None:
    canary = Driven.of(JUDGED)
    while canary.state.traffic.candidate < 100:
        assert canary.look(verdict=GOOD).traffic.has_stable

    waiting = canary.look(verdict=GOOD, in_force=False)
    assert waiting.phase is RolloutPhase.PROGRESSING
    assert waiting.traffic.has_stable

    assert not canary.look().traffic.has_stable


def test_replicas_grow_before_the_weight_does() -> None:
    canary = Driven.of(JUDGED)
    canary.looks(2)
    trimmed_capitals = canary.look(verdict=GOOD)

    assert (
        trimmed_capitals.step,
        trimmed_capitals.traffic.candidate,
        trimmed_capitals.traffic.candidate_scale,
    ) == (1, 10, 1.0)
    assert canary.look(ready=False).traffic.candidate == 10
    assert canary.look().traffic.candidate == 50


@pytest.mark.parametrize("replicas", [1, 3, 4, 10])
@pytest.mark.parametrize("weight", [1, 5, 25, 33, 50, 70, 99, 100])
def test_a_replica_of_the_new_version_is_no_busier_than_one_of_the_old(
    weight: int, replicas: int
) -> None:
    scale = Driven.of(CanarySpec(steps=(CanaryStepSpec(weight=weight),))).state.traffic
    copies = math.ceil(replicas * scale.candidate_scale)

    assert 1 <= copies <= replicas
    assert copies == replicas or weight / copies <= (100 - weight) / replicas + 1e-9


def test_both_arms_of_a_baseline_have_what_their_share_needs() -> None:
    steps = (CanaryStepSpec(weight=25),)

    traffic = Driven.of(CanarySpec(steps=steps, baseline=True)).state.traffic

    assert (traffic.candidate_scale, traffic.has_baseline) == (0.25, True)


def test_a_step_needs_samples_of_its_own() -> None:
    canary = Driven.of(JUDGED)
    canary.looks(2)

    assert canary.look(verdict=GOOD, samples=199).step == 0
    assert canary.look(verdict=GOOD, samples=200).step == 1


def test_a_verdict_from_before_the_weight_came_into_force_is_not_the_steps() -> None:
    canary = Driven.of(JUDGED)
    canary.look()
    in_force = canary.look(verdict=GOOD)
    assert (in_force.step, in_force.step_since) == (0, canary.now)

    facts = RolloutFacts(
        now=canary.now + 0.9,
        in_force=True,
        verdict=GOOD,
        judged_at=canary.now,
        step_samples=1000,
    )
    assert machine.advance(in_force, facts).step == 0
    newer = replace(facts, judged_at=canary.now + 0.5)
    assert machine.advance(in_force, newer).step == 1


def test_a_pause_begins_when_the_weight_is_in_force() -> None:
    canary = Driven.of(CanarySpec(steps=(CanaryStepSpec(weight=10, pause_s=60.0),)))
    canary.look()
    canary.look(after=300.0, in_force=False)
    assert machine.due_at(canary.state) is None

    canary.look()
    assert machine.due_at(canary.state) == canary.now + 60.0
    assert canary.look(after=59.0).step == 0
    assert canary.look(after=1.0).step == 1


def test_a_step_with_nothing_to_wait_for_ends_as_soon_as_it_is_in_force() -> None:
    canary = Driven.of(CanarySpec(steps=(CanaryStepSpec(weight=10), CanaryStepSpec(weight=20))))

    assert canary.weights(20) == [0, 10, 20, 100]


def test_two_steps_of_one_weight_are_held_one_after_the_other() -> None:
    twice = (CanaryStepSpec(weight=10, pause_s=30.0), CanaryStepSpec(weight=10, pause_s=30.0))
    canary = Driven.of(CanarySpec(steps=twice))
    canary.looks(2)

    canary.look(after=30.0)
    assert canary.look().step == 1
    assert canary.look(after=29.0).step == 1
    assert canary.look(after=1.0).step == 2


def test_no_steps_mean_all_at_once() -> None:
    canary = Driven.of(CanarySpec(steps=()))

    assert canary.state.traffic.candidate_scale == 1.0
    assert canary.weights(5) == [0, 100]
    assert canary.state.phase is RolloutPhase.PROMOTED


def test_a_bad_verdict_gives_everything_back_at_any_step() -> None:
    canary = Driven.of(JUDGED)
    canary.looks(5, verdict=GOOD)
    assert canary.state.traffic.candidate == 50

    back = canary.look(verdict=BAD)
    assert back.phase is RolloutPhase.ROLLED_BACK
    assert back.traffic == TrafficShares(candidate=0, candidate_scale=0.0, has_stable=True)
    assert back.reason == "errors: 5 % fail, 0 % before"
    assert back.verdict == replace(BAD, at=BEGAN + canary.now)


def test_a_bad_verdict_wins_while_replicas_for_the_promotion_start() -> None:
    canary = Driven.of(CanarySpec(steps=(CanaryStepSpec(weight=10),)))
    canary.looks(2)
    assert canary.state.promoted_by is PromotedBy.PLAN

    assert canary.look(verdict=BAD).phase is RolloutPhase.ROLLED_BACK


def test_a_version_that_cannot_be_loaded_never_gets_a_request() -> None:
    canary = Driven.of(JUDGED)

    back = canary.look(ready=False, failed="no such operator: Foo")
    assert back.phase is RolloutPhase.ROLLED_BACK
    assert back.reason == "the new version cannot run: no such operator: Foo"


@pytest.mark.parametrize("looks", [0, 3])
def test_replicas_that_are_not_ready_in_time_end_the_rollout(looks: int) -> None:
    canary = Driven.of(JUDGED)
    canary.looks(looks, verdict=GOOD)
    assert machine.due_at(canary.state) == canary.now + 600.0

    assert not canary.look(after=599.9, ready=False).phase.is_over
    back = canary.look(after=0.1, ready=False)
    assert back.phase is RolloutPhase.ROLLED_BACK
    assert back.reason == "the new version's replicas were not ready within 600 s"


def test_a_baseline_of_equal_size_goes_along_until_the_promotion() -> None:
    steps = (CanaryStepSpec(weight=10, until="verdict"), CanaryStepSpec(weight=50, until="verdict"))
    canary = Driven.of(CanarySpec(steps=steps, baseline=True))
    seen = []
    while not canary.state.phase.is_over:
        traffic = canary.look(verdict=GOOD).traffic
        seen.append((traffic.candidate, traffic.baseline, traffic.stable, traffic.has_baseline))

    assert list(dict.fromkeys(seen)) == [
        (10, 10, 80, True),
        (50, 50, 0, True),
        (100, 0, 0, True),
        (100, 0, 0, False),
    ]


@pytest.mark.parametrize(
    ("verdict", "samples", "missing"),
    [
        (None, 0, "nothing was counted"),
        (UNSURE, 1000, "errors: 40 requests do not tell"),
        (GOOD, 10, "fewer than 200 requests per version in this step"),
    ],
)
def test_without_a_decision_in_time_it_is_rolled_back(
    verdict: RolloutVerdict | None, samples: int, missing: str
) -> None:
    canary = Driven.of(JUDGED)
    canary.looks(2)
    assert machine.due_at(canary.state) == canary.now + 7200.0

    assert not canary.look(after=7199.0, verdict=verdict, samples=samples).phase.is_over
    back = canary.look(verdict=verdict, samples=samples)
    assert back.phase is RolloutPhase.ROLLED_BACK
    assert back.reason == f"not enough evidence within 7200 s: {missing}"


def test_too_few_requests_to_decide_pause_it_with_the_advice() -> None:
    canary = Driven.of(JUDGED)
    canary.looks(2)
    why = "0.4 requests/s take 3 h: raise max_duration_s"

    waiting = canary.look(after=7200.0, verdict=UNSURE, insufficient_traffic=why)

    assert (waiting.phase, waiting.traffic.candidate) == (RolloutPhase.PAUSED, 10)
    assert waiting.reason.endswith(f"do not tell; {why}, or resume for as long again")
    canary.tell(Verb.RESUME)
    assert canary.look(after=7199.0, verdict=UNSURE).phase is RolloutPhase.PROGRESSING
    assert canary.look(verdict=UNSURE).phase is RolloutPhase.ROLLED_BACK


@pytest.mark.parametrize("on_timeout", ["rollback", "promote"])
def test_what_its_owner_says_of_a_timeout_is_done_however_few_requests_come(
    on_timeout: OnTimeout,
) -> None:
    canary = Driven.of(CanarySpec(steps=JUDGED.steps, on_timeout=on_timeout))
    canary.looks(2)
    canary.look(after=7200.0, verdict=UNSURE, insufficient_traffic="too few")

    done = canary.looks(3)
    assert done.phase is (
        RolloutPhase.ROLLED_BACK if on_timeout == "rollback" else RolloutPhase.PROMOTED
    )


def test_without_a_decision_in_time_it_is_promoted_if_its_owner_says_so() -> None:
    canary = Driven.of(CanarySpec(steps=JUDGED.steps, on_timeout="promote"))
    canary.looks(2)
    canary.look(after=7200.0, verdict=UNSURE)
    assert canary.state.promoted_by is PromotedBy.TIME

    assert canary.weights(5) == [10, 100]
    assert "promoted, as on_timeout says" in canary.state.reason


def test_a_pause_by_time_keeps_the_traffic_and_can_be_resumed_for_as_long_again() -> None:
    canary = Driven.of(CanarySpec(steps=JUDGED.steps, on_timeout="pause"))
    canary.looks(2)
    stopped = canary.look(after=7200.0)
    assert (stopped.phase, stopped.traffic.candidate) == (RolloutPhase.PAUSED, 10)

    canary.look(after=86_400.0)
    canary.tell(Verb.RESUME)
    assert canary.look(after=7199.0).phase is RolloutPhase.PROGRESSING
    assert canary.look().phase is RolloutPhase.PAUSED


def test_time_counts_from_the_first_weight_in_force() -> None:
    canary = Driven.of(CanarySpec(steps=JUDGED.steps, ready_timeout_s=86_400.0))
    canary.look(after=80_000.0)
    canary.look(after=80_000.0)

    assert canary.state.counted_since == 160_000.0
    assert machine.due_at(canary.state) == 167_200.0


def test_all_steps_share_the_time_for_a_decision() -> None:
    canary = Driven.of(JUDGED)
    canary.looks(2)
    canary.look(after=3000.0, verdict=GOOD)
    assert canary.looks(2, verdict=UNSURE).step == 1

    assert canary.look(after=4200.0, verdict=UNSURE).phase is RolloutPhase.ROLLED_BACK


def test_once_it_is_decided_only_replicas_have_to_come_in_time() -> None:
    canary = Driven.of(CanarySpec(steps=(CanaryStepSpec(weight=10),), ready_timeout_s=7200.0))
    canary.looks(2)
    assert canary.state.promoted_by is PromotedBy.PLAN
    assert machine.due_at(canary.state) == canary.now + 7200.0

    assert canary.look(after=5000.0, ready=False).phase is RolloutPhase.PROGRESSING
    assert canary.looks(2).phase is RolloutPhase.PROMOTED


def test_facts_of_the_moment_in_which_traffic_changed_are_about_the_traffic_before() -> None:
    state = machine.begin(JUDGED, started=BEGAN)
    facts = RolloutFacts(now=5.0, candidate_ready=True, in_force=True)

    published = machine.advance(state, facts)
    assert published.traffic.candidate == 10
    assert published.step_since is None
    assert machine.advance(published, facts) == published


def test_a_step_that_waits_for_approval_is_paused() -> None:
    steps = (CanaryStepSpec(weight=10, pause_s=60.0, until="approval"), CanaryStepSpec(weight=50))
    canary = Driven.of(CanarySpec(steps=steps))
    canary.looks(2)
    assert machine.due_at(canary.state) == canary.now + 60.0

    waiting = canary.look(after=60.0)
    assert waiting.phase is RolloutPhase.PAUSED
    assert "waits for approval" in waiting.reason
    assert machine.due_at(waiting) is None
    assert canary.look(after=1e6).phase is RolloutPhase.PAUSED

    assert canary.tell(Verb.RESUME).step == 1
    assert canary.look().traffic.candidate == 50


def test_an_ab_test_holds_its_weight_until_the_reward_decides() -> None:
    test = Driven.of(AbSpec(weight=40))

    assert test.weights(50, verdict=UNSURE) == [0, 40]
    assert test.state.traffic.candidate_scale == 40 / 60
    assert test.weights(5, verdict=GOOD) == [40, 100]
    assert test.state.phase is RolloutPhase.PROMOTED
    assert test.state.reason.startswith("A/B test (40 % of the callers) passed")


def test_an_ab_test_that_is_lost_gives_everybody_back() -> None:
    test = Driven.of(AbSpec(weight=40))
    test.looks(10, verdict=UNSURE)

    assert test.look(verdict=BAD).traffic.candidate == 0
    assert test.state.phase is RolloutPhase.ROLLED_BACK
