"""What holds for every rollout, whatever is seen, said and killed."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from msgspec.structs import replace

from headrace.core.spec.rollout import (
    AbSpec,
    BlueGreenSpec,
    CanarySpec,
    CanaryStepSpec,
    RolloutSpec,
    ShadowSpec,
    Until,
)
from headrace.rollout import machine
from headrace.rollout.state import PromotedBy, RolloutFacts, RolloutPhase, RolloutState, Verb
from tests.unit.rollout.driving import BAD, BEGAN, GOOD, UNSURE

seconds = st.sampled_from([0.0, 0.5, 5.0, 60.0]) | st.floats(0, 1e4)
common: dict[str, st.SearchStrategy[Any]] = {
    "min_samples": st.just(100),
    "max_duration_s": st.sampled_from([5.0, 3600.0]),
    "on_timeout": st.sampled_from([None, "rollback", "pause", "promote"]),
    "ready_timeout_s": st.sampled_from([3.0, 600.0]),
}


@st.composite
def canaries(draw: st.DrawFn) -> CanarySpec:
    baseline = draw(st.booleans())
    weights = sorted(draw(st.lists(st.integers(1, 50 if baseline else 100), max_size=4)))
    until: st.SearchStrategy[Until | None] = st.sampled_from([None, "verdict", "approval"])
    steps = tuple(
        CanaryStepSpec(weight=weight, pause_s=draw(seconds), until=draw(until))
        for weight in weights
    )
    return draw(st.builds(CanarySpec, steps=st.just(steps), baseline=st.just(baseline), **common))


rollouts: st.SearchStrategy[RolloutSpec] = st.one_of(
    canaries(),
    st.builds(BlueGreenSpec, preview_s=seconds, approval=st.booleans(), keep_s=seconds, **common),
    st.builds(AbSpec, weight=st.integers(1, 99), **common),
    st.builds(ShadowSpec, mirror_percent=st.integers(1, 100), promotes=st.booleans(), **common),
)
steps_of_time = st.sampled_from([0.0, 0.1, 1.0, 1.0, 1.0, 7.0, 1e5])
verdicts = st.sampled_from([GOOD, GOOD, UNSURE, BAD])


def stays(state: RolloutState, facts: RolloutFacts) -> bool:
    """Whether nothing but the time moves on."""
    return replace(machine.advance(state, facts), elapsed_s=state.elapsed_s) == state


@st.composite
def looks(draw: st.DrawFn, now: float) -> RolloutFacts:
    return RolloutFacts(
        now=now,
        candidate_ready=draw(st.booleans()),
        candidate_failed=draw(st.sampled_from(["", "", "", "", "no memory"])),
        in_force=draw(st.booleans()),
        verdict=draw(st.none() | verdicts),
        judged_at=now,
        step_samples=draw(st.sampled_from([0, 99, 100, 5000])),
        insufficient_traffic=draw(st.sampled_from(["", "too few requests"])),
    )


class AnyRollout(RuleBasedStateMachine):
    """Facts and verbs in any order; every change is checked against the state before it."""

    state: RolloutState
    now: float
    acknowledged: bool

    @initialize(settings=rollouts)
    def begin(self, settings: RolloutSpec) -> None:
        self.now = 0.0
        self.state = machine.begin(settings, started=BEGAN)
        self.acknowledged = False

    @rule(after=steps_of_time, data=st.data())
    def look(self, after: float, data: st.DataObject) -> None:
        self.now += after
        facts = data.draw(looks(self.now))
        before = self.state
        if facts.in_force and facts.now != before.aimed_at:
            self.acknowledged = True
        after_it = machine.advance(before, facts)

        assert machine.advance(after_it, facts) == after_it
        if before.phase.is_over:
            assert after_it == before
        self._check_change(before, after_it)
        if after_it.traffic.candidate > before.traffic.candidate:
            assert facts.candidate_ready
            skips = after_it.promoted_by is PromotedBy.HAND
            assert skips or before.traffic.candidate == 0 or self.acknowledged
        self._take(after_it)

    @rule(after=steps_of_time)
    def look_at_a_healthy_system(self, after: float) -> None:
        self.now += after
        facts = RolloutFacts(
            now=self.now,
            candidate_ready=True,
            in_force=True,
            verdict=GOOD,
            judged_at=self.now,
            step_samples=5000,
        )
        self.acknowledged |= facts.now != self.state.aimed_at
        changed = machine.advance(self.state, facts)

        assert machine.advance(changed, facts) == changed
        self._check_change(self.state, changed)
        self._take(changed)

    @rule(verb=st.sampled_from(Verb), after=steps_of_time)
    def tell(self, verb: Verb, after: float) -> None:
        self.now += after
        if verb not in machine.allowed_verbs(self.state):
            return
        told = machine.command(self.state, verb, now=self.now)

        assert told != self.state
        assert told.traffic.candidate in {self.state.traffic.candidate, 0}
        self._check_change(self.state, told)
        self._take(told)

    @rule()
    def restart(self) -> None:
        stored = msgspec.json.decode(msgspec.json.encode(self.state), type=RolloutState)

        assert stored == self.state
        self.state = stored

    def _take(self, state: RolloutState) -> None:
        if state.traffic.candidate != self.state.traffic.candidate:
            self.acknowledged = False
        self.state = state

    def _check_change(self, before: RolloutState, after: RolloutState) -> None:
        gives_back = after.phase in {
            RolloutPhase.ROLLED_BACK,
            RolloutPhase.ABORTED,
            RolloutPhase.REPORTED,
        }
        if not gives_back:
            assert after.traffic.candidate >= before.traffic.candidate
            assert after.traffic.candidate_scale >= before.traffic.candidate_scale
        if before.traffic.has_stable and not after.traffic.has_stable:
            assert before.traffic.candidate == 100
            assert after.phase is RolloutPhase.PROMOTED

    @invariant()
    def weights_sum_to_100(self) -> None:
        traffic = self.state.traffic
        assert min(traffic.candidate, traffic.baseline, traffic.stable) >= 0
        assert traffic.candidate + traffic.baseline + traffic.stable == 100
        assert traffic.baseline in {0, traffic.candidate}
        assert traffic.has_baseline or traffic.baseline == 0
        assert traffic.has_stable or traffic.candidate == 100

    @invariant()
    def nobody_gets_more_than_its_replicas_are_for(self) -> None:
        assert self.state.traffic.candidate <= 100 * self.state.traffic.candidate_scale + 1e-9

    @invariant()
    def what_is_over_has_one_version_only(self) -> None:
        weight = self.state.traffic.candidate
        if self.state.phase is RolloutPhase.PROMOTED:
            assert weight == 100
        elif self.state.phase.is_over:
            assert weight == 0
            assert self.state.traffic.mirror_percent == 0

    @invariant()
    def a_pause_knows_its_way_back(self) -> None:
        is_paused = self.state.phase is RolloutPhase.PAUSED
        assert (self.state.resumes_at_phase is not None) == is_paused
        assert is_paused or not self.state.awaits_approval

    @invariant()
    def there_is_a_reason(self) -> None:
        assert self.state.reason

    @invariant()
    def time_alone_acts_when_it_is_due_and_not_before(self) -> None:
        due = machine.due_at(self.state)
        if due is None:
            assert stays(self.state, RolloutFacts(now=self.now + 1e7))
            return
        assert stays(self.state, RolloutFacts(now=due - 0.001))
        assert not stays(self.state, RolloutFacts(now=due))


TestAnyRollout = AnyRollout.TestCase


@given(rollouts, st.lists(st.booleans(), max_size=30))
def test_a_control_plane_killed_at_any_look_loses_nothing(
    settings: RolloutSpec, kills: list[bool]
) -> None:
    undisturbed = killed = machine.begin(settings, started=BEGAN)
    for number, kill in enumerate(kills, start=1):
        facts = RolloutFacts(
            now=number,
            candidate_ready=True,
            in_force=True,
            verdict=GOOD,
            judged_at=number,
            step_samples=1000,
        )
        undisturbed = machine.advance(undisturbed, facts)
        killed = machine.advance(killed, facts)
        if kill:
            killed = msgspec.msgpack.decode(msgspec.msgpack.encode(killed), type=RolloutState)

    assert killed == undisturbed


@given(rollouts)
def test_a_good_version_that_everybody_approves_ends_well(settings: RolloutSpec) -> None:
    patient = replace(settings, max_duration_s=1e9)
    state = machine.begin(patient, started=BEGAN)
    for look in range(1, 60):
        now = look * 20_000.0
        facts = RolloutFacts(
            now=now,
            candidate_ready=True,
            in_force=True,
            verdict=GOOD,
            judged_at=now,
            step_samples=1000,
        )
        state = machine.advance(state, facts)
        if state.awaits_approval:
            state = machine.command(state, Verb.RESUME, now=now)

    only_reports = isinstance(settings, ShadowSpec) and not settings.promotes
    assert state.phase is (RolloutPhase.REPORTED if only_reports else RolloutPhase.PROMOTED)
