"""Tiers' priorities become levels of the queue."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.core.priorities import DEFAULT_LEVEL, LEVELS, MAX_ABOVE, MAX_BELOW, tier_levels
from headrace.core.spec.access import TierSpec


def _levels(priorities: list[int]) -> dict[int, int]:
    tiers = [TierSpec(name=str(i), priority=p) for i, p in enumerate(priorities)]
    return {p: tier_levels(tiers)[str(i)] for i, p in enumerate(priorities)}


@given(st.lists(st.integers(-100, 100), max_size=20))
def test_a_higher_priority_never_has_a_lower_place(priorities: list[int]) -> None:
    levels = _levels(priorities)

    assert all(1 <= level <= LEVELS for level in levels.values())
    for one, its in levels.items():
        for other, theirs in levels.items():
            assert (one <= other) or its <= theirs
        assert (its < DEFAULT_LEVEL) == (one > 0)
        assert (its > DEFAULT_LEVEL) == (one < 0)


@given(
    st.sets(st.integers(1, 100), max_size=MAX_ABOVE),
    st.sets(st.integers(-100, -1), max_size=MAX_BELOW),
)
def test_priorities_that_differ_stay_different(above: set[int], below: set[int]) -> None:
    priorities = [*above, 0, *below]

    assert len(set(_levels(priorities).values())) == len(priorities)
