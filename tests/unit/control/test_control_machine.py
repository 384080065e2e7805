"""Apply, push, rollout verbs, undo, traffic and crashes in any order: what always holds."""

import asyncio
import tempfile
from collections.abc import Coroutine
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headrace.control.auth.roles import SYSTEM
from headrace.control.base.home import Home
from headrace.core import HeadraceError
from headrace.registry import Registry
from headrace.rollout.state import RolloutPhase, Verb
from tests.unit.control.conftest import inspect
from tests.unit.control.played import Plane, World

T = TypeVar("T")

PLANS = (
    None,
    {"strategy": "canary", "warmup_s": 0.0, "steps": [{"weight": 20}, {"weight": 60}]},
    {"strategy": "canary", "warmup_s": 0.0, "baseline": True},
    {"strategy": "blue-green", "keep_s": 3.0},
    {"strategy": "shadow", "max_duration_s": 5.0},
    {"strategy": "ab", "weight": 30, "max_duration_s": 5.0},
)


class ControlMachine(RuleBasedStateMachine):
    """One endpoint's life under an unruly operator on an unsteady machine."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.directory = tempfile.TemporaryDirectory()
        root = Path(self.directory.name)
        home = Home.at(root / "h")
        registry = Registry(home.root, inspect)
        for version in range(1, 4):
            path = root / f"{version}.onnx"
            path.write_bytes(b"model %d" % version)
            registry.push("digits", path)
        self.root, self.pushed = root, 3
        self.world = World(home, registry)
        self.plane: Plane = self.world.boot()

    def teardown(self) -> None:
        self.plane.store.close()
        self.loop.close()
        self.directory.cleanup()

    def wait(self, work: Coroutine[None, None, T]) -> T | None:
        """What `work` gives; None if it is refused for a reason."""
        try:
            return self.loop.run_until_complete(work)
        except HeadraceError:
            return None

    @initialize(version=st.integers(1, 3), plan=st.sampled_from(PLANS))
    def begin(self, version: int, plan: object) -> None:
        self.apply(version, plan)
        self.plane.settle()

    @rule(version=st.integers(1, 5), plan=st.sampled_from(PLANS))
    def apply(self, version: int, plan: object) -> None:
        entry: dict[str, object] = {"name": "digits", "model": f"digits:{version}"}
        entry |= {"rollout": plan} if plan else {}
        self.wait(self.plane.desired_state.apply({"endpoints": [entry]}, caller=SYSTEM))

    @precondition(lambda self: self.pushed < 5)
    @rule()
    def push(self) -> None:
        self.pushed += 1
        path = self.root / f"{self.pushed}.onnx"
        path.write_bytes(b"model %d" % self.pushed)
        self.world.registry.push("digits", path)

    @rule(version=st.integers(1, 5), plan=st.sampled_from(PLANS))
    def start(self, version: int, plan: dict[str, object] | None) -> None:
        self.wait(
            self.plane.desired_state.start_rollout(
                "digits", version=str(version), rollout=plan, caller=SYSTEM
            )
        )

    @rule(verb=st.sampled_from(list(Verb)))
    def say(self, verb: Verb) -> None:
        self.wait(self.plane.driver.command("digits", verb))

    @rule(back=st.integers(1, 4))
    def undo(self, back: int) -> None:
        newest = self.wait(self.plane.store.history("digits", limit=1))
        generation = max(newest[0].generation - back, 1) if newest else 1
        self.wait(self.plane.desired_state.undo("digits", generation=generation, caller=SYSTEM))

    @rule(seconds=st.integers(1, 4), failing=st.sampled_from([0.0, 0.1]))
    def live(self, seconds: int, failing: float) -> None:
        self.world.error_ratio["2"] = failing
        for _ in range(seconds):
            self.loop.run_until_complete(self.plane.second(2000))

    @rule()
    def crash(self) -> None:
        self.plane = self.plane.kill()

    @rule(version=st.sampled_from(["4", "5"]))
    def break_a_version(self, version: str) -> None:
        self.world.cannot_load.add(version)

    @invariant()
    def weights_sum_to_100_and_somebody_answers(self) -> None:
        self.plane.settle()
        self.plane.check_weights()

    @invariant()
    def every_generation_and_every_rollout_is_on_record(self) -> None:
        store = self.plane.store
        history = store.history.blocking("digits")
        numbers = [entry.generation for entry in history]
        assert numbers == list(range(len(numbers), 0, -1))
        endpoint = self.plane.target_state.desired.endpoint("digits")
        assert endpoint is None or endpoint.generation == numbers[0]
        events = store.events.blocking(endpoint="digits")
        assert [event.id for event in events] == sorted({event.id for event in events})
        told = {(event.rollout, event.reason) for event in events}
        for record in store.rollouts.blocking("digits"):
            assert (record.id, "Started") in told
            if record.state.phase in {
                RolloutPhase.PROMOTED,
                RolloutPhase.ROLLED_BACK,
                RolloutPhase.ABORTED,
            }:
                reason = {"promoted": "Promoted", "rolled_back": "RolledBack"}
                assert (record.id, reason.get(record.state.phase, "Aborted")) in told

    @invariant()
    def at_most_one_rollout_is_under_way(self) -> None:
        open_ones = [r for r in self.plane.store.rollouts.blocking() if not r.state.phase.is_over]
        assert len(open_ones) <= 1

    @invariant()
    def what_is_remembered_is_what_is_stored(self) -> None:
        assert self.plane.store.load.blocking() == self.plane.target_state.desired


ControlMachine.TestCase.settings = settings(
    max_examples=12, stateful_step_count=15, deadline=None, print_blob=True
)
TestControlMachine = pytest.mark.slow(ControlMachine.TestCase)
