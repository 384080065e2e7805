"""Blue-green: a preview at full size, one switch, a way back; and shadows, which never switch."""

import pytest

from headrace.core.spec.rollout import (
    BlueGreenSpec,
    ErrorsSpec,
    LatencySpec,
    MetricsSpec,
    RolloutSpec,
    ShadowSpec,
    judged_by,
)
from headrace.rollout import machine
from headrace.rollout.outcomes import RolloutVerdict
from headrace.rollout.stages import judgement_text
from headrace.rollout.state import PromotedBy, RolloutPhase, TrafficShares, Verb
from tests.unit.rollout.driving import BAD, GOOD, UNSURE, Driven


def test_the_preview_is_at_full_size_and_gets_no_request() -> None:
    switch = Driven.of(BlueGreenSpec(preview_s=60.0))
    assert switch.look(ready=False).phase is RolloutPhase.PREPARING

    preview = switch.look()
    assert preview.phase is RolloutPhase.PROGRESSING
    assert preview.traffic == TrafficShares(candidate=0, candidate_scale=1.0)
    switch.look()
    assert machine.due_at(switch.state) == switch.now + 60.0
    assert switch.look(after=59.0).traffic.candidate == 0


def test_all_requests_switch_at_once_and_the_old_version_is_kept() -> None:
    switch = Driven.of(BlueGreenSpec(keep_s=600.0))

    assert switch.weights(5) == [0, 100]
    assert switch.state.phase is RolloutPhase.KEEPING
    assert switch.state.traffic == TrafficShares(candidate=100, has_stable=True)
    assert switch.state.step_since is not None
    assert machine.due_at(switch.state) == switch.state.step_since + 600.0


def test_the_old_version_goes_when_it_was_not_needed_for_long_enough() -> None:
    switch = Driven.of(BlueGreenSpec(keep_s=600.0))
    switch.looks(5)
    left_s = (machine.due_at(switch.state) or 0.0) - switch.now

    assert switch.look(after=left_s - 0.5, verdict=UNSURE).phase is RolloutPhase.KEEPING
    done = switch.look(after=0.5, verdict=UNSURE)
    assert done.phase is RolloutPhase.PROMOTED
    assert not done.traffic.has_stable


def test_keeping_for_no_time_promotes_with_the_switch() -> None:
    switch = Driven.of(BlueGreenSpec(keep_s=0.0))

    assert switch.looks(5).phase is RolloutPhase.PROMOTED


@pytest.mark.parametrize("verdict", [BAD, None])
def test_a_threshold_or_a_person_switches_back_in_one_look(verdict: RolloutVerdict | None) -> None:
    switch = Driven.of(BlueGreenSpec())
    switch.looks(5)

    back = switch.look(verdict=verdict) if verdict else switch.tell(Verb.ROLLBACK, "slow pages")
    assert back.phase is RolloutPhase.ROLLED_BACK
    assert back.traffic == TrafficShares(candidate=0, candidate_scale=0.0, has_stable=True)


def test_a_version_that_dies_after_the_switch_is_switched_back() -> None:
    switch = Driven.of(BlueGreenSpec())
    switch.looks(5)

    assert switch.look(failed="out of memory").phase is RolloutPhase.ROLLED_BACK


def test_metrics_are_watched_after_a_switch_by_hand() -> None:
    switch = Driven.of(BlueGreenSpec(approval=True))
    switch.looks(3)
    assert switch.state.phase is RolloutPhase.PAUSED

    switch.tell(Verb.PROMOTE)
    assert switch.looks(2).phase is RolloutPhase.KEEPING
    assert switch.look(verdict=BAD).phase is RolloutPhase.ROLLED_BACK


def test_an_approved_preview_is_switched() -> None:
    switch = Driven.of(BlueGreenSpec(approval=True))
    switch.looks(3)

    assert switch.tell(Verb.RESUME, "looks fine").promoted_by is PromotedBy.PLAN
    assert switch.weights(3) == [0, 100]


@pytest.mark.parametrize("is_paused", [False, True])
def test_promoting_after_the_switch_drops_the_old_version(is_paused: bool) -> None:  # noqa: FBT001  # parametrized
    switch = Driven.of(BlueGreenSpec())
    switch.looks(5)
    if is_paused:
        switch.tell(Verb.PAUSE)

    done = switch.tell(Verb.PROMOTE)
    assert done.phase is RolloutPhase.PROMOTED
    assert not done.traffic.has_stable


def test_a_paused_keeping_holds_the_old_version_beyond_its_time() -> None:
    switch = Driven.of(BlueGreenSpec(keep_s=10.0))
    switch.looks(4)
    switch.tell(Verb.PAUSE)
    assert switch.look(after=1e6).traffic.has_stable

    switch.tell(Verb.RESUME)
    assert switch.look().phase is RolloutPhase.PROMOTED


def test_a_long_keep_is_not_cut_by_the_time_for_a_decision() -> None:
    switch = Driven.of(BlueGreenSpec(keep_s=7200.0, max_duration_s=60.0))
    switch.looks(5)

    assert switch.look(after=7000.0).phase is RolloutPhase.KEEPING
    assert switch.look(after=200.0).phase is RolloutPhase.PROMOTED


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        (
            judged_by(BlueGreenSpec(), None),
            (
                "for 10 min after the switch it goes back if more than 5 % of its requests fail; "
                "nothing else is judged"
            ),
        ),
        (
            BlueGreenSpec(
                metrics=MetricsSpec(
                    errors=ErrorsSpec(max_ratio=0.001), latency=LatencySpec(max_s=0.15)
                )
            ),
            (
                "for 10 min after the switch it goes back if more than 0.1 % of its requests fail "
                "or its p99 is above 150 ms; nothing else is judged"
            ),
        ),
        (
            BlueGreenSpec(metrics=MetricsSpec()),
            (
                "for 10 min after the switch nothing is judged: only a version that dies goes back "
                "by itself"
            ),
        ),
        (BlueGreenSpec(keep_s=0.0), "nothing is judged after the switch, as keep_s is 0"),
    ],
)
def test_what_takes_a_version_back_is_said(settings: RolloutSpec, text: str) -> None:
    assert isinstance(settings, BlueGreenSpec)
    assert judgement_text(settings) == text


def test_a_shadow_gets_copies_only_and_ends_with_a_report() -> None:
    shadow = Driven.of(ShadowSpec(mirror_percent=30))
    watching = shadow.looks(5, verdict=UNSURE)
    assert watching.traffic == TrafficShares(candidate=0, mirror_percent=30, candidate_scale=0.3)

    done = shadow.look(verdict=GOOD)
    assert done.phase is RolloutPhase.REPORTED
    assert done.traffic == TrafficShares(candidate=0, candidate_scale=0.0)
    assert done.reason.endswith("passed: errors within what is tolerated")


def test_a_shadow_that_may_promote_does() -> None:
    shadow = Driven.of(ShadowSpec(promotes=True))

    assert shadow.weights(10, verdict=GOOD) == [0, 100]
    assert shadow.state.phase is RolloutPhase.PROMOTED
    assert shadow.state.traffic.mirror_percent == 0


def test_a_shadow_that_disagrees_is_rolled_back() -> None:
    shadow = Driven.of(ShadowSpec())
    shadow.looks(5, verdict=UNSURE)

    assert shadow.look(verdict=BAD).phase is RolloutPhase.ROLLED_BACK


@pytest.mark.parametrize(
    ("promotes", "phase"), [(False, RolloutPhase.REPORTED), (True, RolloutPhase.ROLLED_BACK)]
)
def test_a_shadow_without_a_verdict_in_time(promotes: bool, phase: RolloutPhase) -> None:  # noqa: FBT001  # parametrized
    shadow = Driven.of(ShadowSpec(promotes=promotes))
    shadow.looks(2)

    over = shadow.look(after=7200.0, verdict=UNSURE)
    assert over.phase is phase
    assert over.entered_at == shadow.now
    assert over.reason.startswith("not enough evidence within 7200 s")


def test_a_shadow_may_be_promoted_by_hand() -> None:
    shadow = Driven.of(ShadowSpec())
    shadow.looks(3)
    shadow.tell(Verb.PROMOTE)

    assert shadow.weights(5) == [0, 100]
    assert shadow.state.phase is RolloutPhase.PROMOTED
