"""Callers count once each, whatever dies between reading answers and storing what they say."""

import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.control.desired.target import BASELINE
from headrace.control.model.records import Assignment, UnitBatch
from headrace.control.rollouts.observation import CANDIDATE, batch_of
from headrace.control.state import home_url, open_store
from headrace.control.state.store import Store
from headrace.rollout.readings import UnitTally

_T = TypeVar("_T")
SHARE = 0.3


def of_arm(caller: int) -> str:
    return CANDIDATE if caller % 10 < 3 else BASELINE


def assigned(caller: int) -> Assignment:
    return Assignment(request_id="", rollout="r1", arm=of_arm(caller), unit=f"u{caller}", at=0.0)


@dataclass(slots=True)
class ControlPlane:
    """Reads the answers of one replica, process 7, and counts their callers."""

    store: Store
    cursor: int = field(init=False)

    def __post_init__(self) -> None:
        self.cursor = self.store.unit_tally.blocking("r1").positions.get("m-1", (7, 0))[1]

    def look(self, answers: list[int], *, is_counted: bool, dies_before_storing: bool) -> None:
        read = [assigned(caller) for caller in answers[self.cursor :]]
        batch = batch_of(
            read if is_counted else [], share=SHARE, positions={"m-1": (7, len(answers))}
        )
        if not dies_before_storing:
            self.store.add_units.blocking("r1", batch)
            self.cursor = len(answers)


def on_a_store(test: Callable[[Store], _T]) -> _T:
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(home_url(Path(folder)))
        try:
            return test(store)
        finally:
            store.close()


@settings(max_examples=40)
@given(
    looks=st.lists(
        st.tuples(
            st.lists(st.integers(0, 30), max_size=12),
            st.sampled_from(["goes on", "dies before storing", "dies after storing"]),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_callers_count_as_without_kills(looks: list[tuple[list[int], str]]) -> None:
    def count(store: Store) -> UnitTally:
        plane, answers = ControlPlane(store), list[int]()
        for new, fate in looks:
            answers += new
            is_dying = fate == "dies before storing"
            plane.look(answers, is_counted=True, dies_before_storing=is_dying)
            if fate != "goes on":
                plane = ControlPlane(store)
        plane.look(answers, is_counted=True, dies_before_storing=False)
        return store.unit_tally.blocking("r1")

    tally = on_a_store(count)
    calls = Counter(caller for new, _ in looks for caller in new)
    candidates = sum(of_arm(caller) == CANDIDATE for caller in calls)

    assert tally.requests == sum(calls.values())
    assert tally.squares == sum(n * n for n in calls.values())
    assert tally.first in ({}, {SHARE: (len(calls) - candidates, candidates)})
    assert tally.units == len(calls)


def test_caller_whom_a_larger_step_moves_counts_where_he_was_first() -> None:
    def count(store: Store) -> UnitTally:
        for share, arm in ((0.1, BASELINE), (0.5, CANDIDATE)):
            moved = [
                Assignment(request_id="", rollout="r1", arm=arm, unit=f"u{n}", at=0.0)
                for n in range(40)
            ]
            store.add_units.blocking("r1", batch_of(moved, share=share, positions={}))
        return store.unit_tally.blocking("r1")

    tally = on_a_store(count)
    assert {share: both for share, both in tally.first.items() if any(both)} == {0.1: (40, 0)}
    assert (tally.requests, tally.squares) == (80, 160)


def test_beyond_its_bound_nothing_more_is_counted_by_caller(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("headrace.control.state.reward_rows.MAX_UNITS", 3)

    def count(store: Store) -> UnitTally:
        for n in range(3):
            few = {f"u{n}-{i}": 1 for i in range(3)}
            batch = UnitBatch(share=SHARE, requests=few, positions={"m-1": (7, n)})
            store.add_units.blocking("r1", batch)
        return store.unit_tally.blocking("r1")

    tally = on_a_store(count)
    assert (tally.units, tally.requests) == (3, 3)
    assert tally.positions == {"m-1": (7, 2)}
