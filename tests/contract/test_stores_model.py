"""Whatever is done in whatever order, a store answers like the few lists that it stands for."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import delete, update

from headrace.control.model.desired import DesiredEndpoint, DesiredState
from headrace.control.model.records import (
    Assignment,
    EndpointGeneration,
    Event,
    Feedback,
    RolloutRecord,
    UnitReward,
)
from headrace.control.state import open_store
from headrace.control.state.database import Database
from headrace.control.state.store import Bounds
from headrace.control.state.tables import COUNTERS, METADATA, STATE
from headrace.core import ConflictError
from headrace.rollout.state import RolloutPhase
from tests.contract.states import POOL, endpoint, event, rollout, state

BOUNDS = Bounds(events=5, generations=3, rollouts=2)
NAMES = ("a", "b", "c")
names = st.sampled_from(NAMES)
ids = st.sampled_from([f"q{i}" for i in range(6)])
times = st.integers(min_value=0, max_value=9).map(float)


@dataclass
class Answer:
    """What is known of one request."""

    at: float
    assignment: Assignment | None = None
    reward: float | None = None


@dataclass
class Model:
    """What a store stands for, in lists."""

    state: DesiredState = field(default_factory=DesiredState)
    history: dict[str, list[EndpointGeneration]] = field(default_factory=dict)
    rollouts: list[RolloutRecord] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    rewards: dict[str, dict[tuple[str, str], tuple[int, float]]] = field(
        default_factory=lambda: defaultdict(dict)
    )

    def count(self, assignment: Assignment, reward: float) -> None:
        units = self.rewards[assignment.rollout]
        key = (assignment.unit, assignment.arm)
        count, total = units.get(key, (0, 0.0))
        units[key] = (count + 1, total + reward)

    def newest(self) -> dict[str, RolloutRecord]:
        return {record.endpoint: record for record in self.rollouts}

    def forget(self, before: float) -> None:
        self.answers = {q: a for q, a in self.answers.items() if a.at >= before}
        for name in NAMES:
            self.history[name] = self.history.get(name, [])[: BOUNDS.generations]
            mine = [e for e in self.events if e.endpoint == name][: -BOUNDS.events]
            self.events = [e for e in self.events if e not in mine]
        for record in self.rollouts:
            if record.state.phase.is_over and record is not self.newest()[record.endpoint]:
                self.rewards.pop(record.id, None)
        self._forget_rollouts()

    def _forget_rollouts(self) -> None:
        gone = [
            record
            for name in NAMES
            for record in [r for r in self.rollouts if r.endpoint == name][: -BOUNDS.rollouts]
            if record.state.phase.is_over
        ]
        self.rollouts = [record for record in self.rollouts if record not in gone]
        for record in gone:
            self.rewards.pop(record.id, None)
            self.answers = {
                q: a
                for q, a in self.answers.items()
                if a.assignment is None or a.assignment.rollout != record.id
            }


class StoreMachine(RuleBasedStateMachine):
    """Does the same to a store and to the model."""

    url: str

    def __init__(self) -> None:
        super().__init__()
        empty(self.url)
        self.store = open_store(self.url)
        self.model = Model()
        self.last: dict[str, int] = {}
        self.begun = 0
        self.last_event = 0

    def teardown(self) -> None:
        self.store.close()

    @rule()
    def start_again(self) -> None:
        self.store.close()
        self.store = open_store(self.url)

    @rule(
        order=st.lists(names, unique=True),
        changed=st.sets(names),
        with_pool=st.booleans(),
        at=times,
    )
    def save(self, order: list[str], changed: set[str], with_pool: bool, at: float) -> None:  # noqa: FBT001  # drawn
        before = self.model.state
        wanted = tuple(self._wanted(name, changed) for name in order)
        after = msgspec.structs.replace(
            state(before.generation + 1, *wanted), pools=(POOL,) if with_pool else ()
        )
        self.store.save.blocking(after, timestamp=at, reason="applied", actor="ann")

        for one in wanted:
            if one != before.endpoint(one.name):
                self._remember(one.name, one.generation, after.entry(one.name), one, at)
        for old in before.endpoints:
            if old.name not in order:
                self._remember(old.name, old.generation + 1, None, None, at)
        self.model.state = after

    def _wanted(self, name: str, changed: set[str]) -> DesiredEndpoint:
        found = self.model.state.endpoint(name)
        if found is not None and name not in changed:
            return found
        number = self.last.get(name, 0) + 1
        return endpoint(name, number, version=str(number))

    def _remember(
        self,
        name: str,
        generation: int,
        document: dict[str, object] | None,
        pinned: DesiredEndpoint | None,
        at: float,
    ) -> None:
        entry = EndpointGeneration(
            name=name,
            generation=generation,
            at=at,
            reason="applied",
            actor="ann",
            document=document,
            endpoint=pinned,
        )
        self.model.history.setdefault(name, []).insert(0, entry)
        self.last[name] = generation

    @rule(away=st.sampled_from([-2, -1, 0, 2]))
    def save_what_does_not_follow(self, away: int) -> None:
        wrong = state(self.model.state.generation + away, endpoint("a", 99))
        must_conflict(lambda: self.store.save.blocking(wrong, timestamp=0.0, reason="late"))

    @precondition(lambda self: self.last)
    @rule()
    def save_a_generation_that_was_there(self) -> None:
        name, last = max(self.last.items())
        old = endpoint(name, max(last - 1, 0), version="old")
        wrong = state(self.model.state.generation + 1, old)
        must_conflict(lambda: self.store.save.blocking(wrong, timestamp=0.0, reason="late"))

    @rule(of=names, phase=st.sampled_from([RolloutPhase.PROGRESSING, RolloutPhase.PROMOTED]))
    def begin_rollout(self, of: str, phase: RolloutPhase) -> None:
        self.begun += 1
        record = rollout(f"r{self.begun}", of, phase=phase)
        self.model.rollouts.append(self.store.save_rollout.blocking(record))

        assert self.model.rollouts[-1] == msgspec.structs.replace(record, revision=1)

    @precondition(lambda self: self.model.rollouts)
    @rule(data=st.data(), evidence=st.binary(max_size=9), phase=st.sampled_from(RolloutPhase))
    def advance_rollout(self, data: st.DataObject, evidence: bytes, phase: RolloutPhase) -> None:
        number = data.draw(st.integers(0, len(self.model.rollouts) - 1))
        old = self.model.rollouts[number]
        moved = msgspec.structs.replace(old.state, phase=phase)
        record = msgspec.structs.replace(old, evidence=evidence, state=moved)
        happened = event(old.endpoint, phase)
        self.model.rollouts[number] = self.store.save_rollout.blocking(record, events=[happened])
        self._note([happened])

        must_conflict(lambda: self.store.save_rollout.blocking(old, events=[happened]))

    @rule(of=st.lists(names, max_size=4))
    def add_events(self, of: list[str]) -> None:
        added = [event(name, str(i), at=float(i)) for i, name in enumerate(of)]
        told = self.store.add_events.blocking(added)
        self._note(added)

        assert told == (self.model.events[-len(added) :] if added else [])

    def _note(self, events: list[Event]) -> None:
        for one in events:
            self.last_event += 1
            self.model.events.append(msgspec.structs.replace(one, id=self.last_event))

    @precondition(lambda self: self.model.rollouts)
    @rule(data=st.data(), requests=st.lists(ids, max_size=4), unit=st.sampled_from("uv"), at=times)
    def assign(self, data: st.DataObject, requests: list[str], unit: str, at: float) -> None:
        of = data.draw(st.sampled_from([record.id for record in self.model.rollouts]))
        batch = [
            Assignment(request_id=q, rollout=of, arm=arm, unit=unit, at=at)
            for q, arm in zip(requests, "1212", strict=False)
        ]
        self.store.add_assignments.blocking(batch)

        for one in batch:
            answer = self.model.answers.setdefault(one.request_id, Answer(at))
            if answer.assignment is None:
                answer.at, answer.assignment = at, one
                if answer.reward is not None:
                    self.model.count(one, answer.reward)

    @rule(request=ids, reward=st.integers(-4, 4).map(lambda n: n / 4), at=times)
    def reward(self, request: str, reward: float, at: float) -> None:
        (told,) = self.store.add_feedback.blocking(
            Feedback(request_id=request, reward=reward, at=at)
        )

        answer = self.model.answers.setdefault(request, Answer(at))
        if answer.reward is not None:
            assert told == "duplicate"
            return
        answer.reward = reward
        assert told == ("waiting" if answer.assignment is None else "taken")
        if answer.assignment is not None:
            self.model.count(answer.assignment, reward)

    @rule(at=times)
    def forget(self, at: float) -> None:
        self.store.forget_before.blocking(at, bounds=BOUNDS)
        self.model.forget(at)

    @invariant()
    def answers_the_same(self) -> None:
        store, model = self.store, self.model
        assert store.load.blocking() == model.state
        assert store.last_generations.blocking() == self.last
        assert store.rollouts.blocking() == model.rollouts[::-1]
        assert store.newest_rollouts.blocking() == model.newest()
        assert store.events.blocking() == model.events
        for name in NAMES:
            assert store.history.blocking(name) == model.history.get(name, [])
            mine = [e for e in model.events if e.endpoint == name]
            assert store.events.blocking(endpoint=name, limit=2, newest=True) == mine[-2:]

    @invariant()
    def counts_the_same(self) -> None:
        for number in range(1, self.begun + 1):
            units = self.model.rewards.get(f"r{number}", {})
            expected = [
                UnitReward(unit=unit, arm=arm, count=count, total=total)
                for (unit, arm), (count, total) in sorted(units.items())
            ]
            assert self.store.rewards.blocking(f"r{number}") == expected


def must_conflict(act: Callable[[], object]) -> None:
    try:
        act()
    except ConflictError:
        return
    raise AssertionError("it was stored")


def empty(url: str) -> None:
    """Leave the database as a first start makes it."""
    open_store(url).close()
    database = Database(url)
    with database.writing("begin anew") as connection:
        for table in reversed(METADATA.sorted_tables):
            if table not in {STATE, COUNTERS}:
                connection.execute(delete(table))
        nothing = {"generation": 0, "spec": "{}", "pools": "[]", "endpoints": "[]"}
        connection.execute(update(STATE).values(nothing))
        connection.execute(update(COUNTERS).values(value=0))
    database.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    "url",
    ["sqlite", pytest.param("postgres", marks=[pytest.mark.e2e, pytest.mark.long])],
    indirect=True,
)
def test_a_store_answers_like_its_model(url: str) -> None:
    class Machine(StoreMachine):
        pass

    Machine.url = url
    profile = settings.get_profile(settings.get_current_profile_name())
    run_state_machine_as_test(
        Machine,
        settings=settings(
            profile, max_examples=max(10, profile.max_examples // 10), stateful_step_count=20
        ),
    )
