"""What people may say, when, and what follows."""

import msgspec
import pytest

from headrace.core import FailedPreconditionError
from headrace.core.spec.rollout import AbSpec, CanarySpec, CanaryStepSpec
from headrace.rollout import machine
from headrace.rollout.state import PromotedBy, RolloutPhase, RolloutState, TrafficShares, Verb
from tests.unit.rollout.driving import BAD, BEGAN, GOOD, UNSURE, Driven

CANARY = CanarySpec(
    steps=(CanaryStepSpec(weight=10, until="verdict"), CanaryStepSpec(weight=50, until="verdict"))
)


def at_first_step() -> Driven:
    canary = Driven.of(CANARY)
    canary.looks(2)
    assert canary.state.traffic.candidate == 10
    return canary


def test_promote_skips_the_steps_but_waits_for_the_replicas() -> None:
    canary = at_first_step()

    asked = canary.tell(Verb.PROMOTE, "it fixes the outage")
    assert (asked.traffic.candidate, asked.traffic.candidate_scale) == (10, 1.0)
    assert canary.look(ready=False).traffic.candidate == 10
    assert canary.weights(3) == [10, 100]
    assert canary.state.phase is RolloutPhase.PROMOTED
    assert canary.state.reason == "promoted by hand: it fixes the outage"


def test_promote_before_the_first_replica_waits_for_all_of_them() -> None:
    canary = Driven.of(CANARY)
    canary.tell(Verb.PROMOTE)

    assert canary.look(ready=False).traffic.candidate == 0
    assert canary.weights(3) == [0, 100]


def test_promote_does_not_ask_the_metrics() -> None:
    canary = at_first_step()
    canary.tell(Verb.PROMOTE)

    assert canary.look(verdict=BAD, ready=False).promoted_by is PromotedBy.HAND
    assert canary.looks(3, verdict=BAD).phase is RolloutPhase.PROMOTED


def test_a_promotion_that_was_paused_is_over_when_the_gateway_says_so_not_with_time() -> None:
    ab = Driven.of(AbSpec(weight=50))
    ab.tell(Verb.PROMOTE)
    ab.look()
    ab.tell(Verb.PAUSE)
    ab.look()
    ab.tell(Verb.RESUME)

    assert machine.due_at(ab.state) is None
    assert ab.look(in_force=False, after=1e6).phase is RolloutPhase.PROGRESSING
    assert ab.look().phase is RolloutPhase.PROMOTED


def test_promote_still_stops_at_a_version_that_cannot_run() -> None:
    canary = at_first_step()
    canary.tell(Verb.PROMOTE)

    assert canary.look(ready=False, failed="out of memory").phase is RolloutPhase.ROLLED_BACK


def test_a_pause_keeps_the_traffic_whatever_is_proved() -> None:
    canary = at_first_step()
    canary.tell(Verb.PAUSE, "lunch")

    resting = canary.looks(5, verdict=GOOD)
    assert (resting.phase, resting.traffic.candidate) == (RolloutPhase.PAUSED, 10)
    assert resting.reason == "paused by hand: lunch"
    assert canary.tell(Verb.RESUME).phase is RolloutPhase.PROGRESSING
    assert canary.weights(10, verdict=GOOD) == [10, 50, 100]


def test_harm_is_stopped_during_a_pause_too() -> None:
    canary = at_first_step()
    canary.tell(Verb.PAUSE)

    assert canary.look(verdict=BAD).phase is RolloutPhase.ROLLED_BACK


def test_a_pause_does_not_count_towards_the_time_for_a_decision() -> None:
    canary = at_first_step()
    canary.look(after=3000.0, verdict=UNSURE)
    canary.tell(Verb.PAUSE)
    canary.look(after=50_000.0)
    canary.tell(Verb.RESUME)

    due = machine.due_at(canary.state)
    assert due is not None
    assert due - canary.now == pytest.approx(4199.75)


def test_a_pause_while_replicas_start_gives_them_their_time_again() -> None:
    canary = Driven.of(CANARY)
    canary.look(ready=False)
    canary.tell(Verb.PAUSE)
    assert canary.look(after=5000.0, ready=False).phase is RolloutPhase.PAUSED
    assert canary.tell(Verb.RESUME).phase is RolloutPhase.PREPARING

    assert canary.look(after=599.0, ready=False).phase is RolloutPhase.PREPARING
    assert canary.look().traffic.candidate == 10


def test_a_weight_that_comes_into_force_during_a_pause_is_noted() -> None:
    canary = Driven.of(CANARY)
    canary.look()
    canary.tell(Verb.PAUSE)

    assert canary.look().step_since == canary.now


def test_a_pause_by_hand_is_no_approval() -> None:
    canary = Driven.of(CanarySpec(steps=(CanaryStepSpec(weight=10, until="approval"),)))
    canary.look()
    canary.tell(Verb.PAUSE)
    canary.tell(Verb.RESUME)

    asking = canary.looks(2)
    assert asking.phase is RolloutPhase.PAUSED
    assert asking.awaits_approval
    assert asking.step == 0


@pytest.mark.parametrize(
    ("verb", "phase"),
    [(Verb.ABORT, RolloutPhase.ABORTED), (Verb.ROLLBACK, RolloutPhase.ROLLED_BACK)],
)
def test_abort_and_rollback_give_everything_back(verb: Verb, phase: RolloutPhase) -> None:
    canary = at_first_step()

    back = canary.tell(verb, "wrong model")
    assert back.phase is phase
    assert back.traffic == TrafficShares(candidate=0, candidate_scale=0.0)
    assert not back.dropped_stable
    assert back.reason.endswith("by hand: wrong model")


def test_a_promotion_can_be_rolled_back() -> None:
    canary = at_first_step()
    canary.looks(10, verdict=GOOD)
    assert canary.state.phase is RolloutPhase.PROMOTED

    back = canary.tell(Verb.ROLLBACK)
    assert back.phase is RolloutPhase.ROLLED_BACK
    assert (back.traffic.candidate, back.traffic.has_stable) == (0, True)
    assert back.dropped_stable


def test_a_refusal_says_what_is_possible() -> None:
    canary = at_first_step()
    with pytest.raises(FailedPreconditionError, match=r"possible now: promote, pause, abort, roll"):
        canary.tell(Verb.RESUME)

    canary.tell(Verb.ABORT)
    with pytest.raises(FailedPreconditionError, match=r"is aborted .*; it is over; start another"):
        canary.tell(Verb.PROMOTE)


def test_what_was_promoted_by_hand_needs_no_second_word() -> None:
    canary = at_first_step()
    canary.tell(Verb.PROMOTE)

    assert machine.allowed_verbs(canary.state) == (Verb.PAUSE, Verb.ABORT, Verb.ROLLBACK)


def test_something_newer_supersedes_what_is_not_over() -> None:
    canary = at_first_step()
    over = machine.supersede(canary.state, reason="generation 7 was applied")
    assert (over.phase, over.reason) == (RolloutPhase.SUPERSEDED, "generation 7 was applied")
    assert machine.allowed_verbs(over) == ()

    canary.tell(Verb.ABORT)
    assert machine.supersede(canary.state, reason="x").phase is RolloutPhase.ABORTED


@pytest.mark.parametrize("phase", [RolloutPhase.PROGRESSING, RolloutPhase.PAUSED])
def test_a_state_of_the_older_format_goes_on_from_its_newest_time(phase: RolloutPhase) -> None:
    """Its times were seconds since 1970, and it has none of `elapsed_s` and `entered_at`."""
    canary = at_first_step()
    canary.look(after=60.0, verdict=UNSURE)
    if phase is RolloutPhase.PAUSED:
        canary.tell(Verb.PAUSE)
    document = msgspec.to_builtins(canary.state)
    for name in ("step_since", "aimed_at", "counted_since"):
        document[name] += BEGAN
    document["since"] = BEGAN + document.pop("entered_at")
    del document["elapsed_s"]

    old = msgspec.json.decode(msgspec.json.encode(document), type=RolloutState)

    times = ("step_since", "aimed_at", "counted_since", "entered_at")
    assert [getattr(old, name) for name in times] == [getattr(canary.state, n) for n in times]
    assert old.elapsed_s == max(getattr(old, name) for name in times)
    assert old.began == BEGAN
