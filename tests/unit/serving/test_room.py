"""Who leaves for whom: laws that hold for any models."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import FailedPreconditionError
from headrace.serving.pool.hosted import Resident, make_room

LIMIT = 100
RESIDENTS = st.lists(
    st.builds(
        lambda size, used, busy: (size, used, busy),
        st.integers(0, 60),
        st.floats(0, 10),
        st.booleans(),
    ),
    max_size=8,
).map(
    lambda found: [
        Resident(key=(f"m{i}", "1"), size_bytes=size, used_at=used, is_busy=busy)
        for i, (size, used, busy) in enumerate(found)
    ]
)


@given(RESIDENTS, st.integers(0, LIMIT), st.integers(1, 8))
def test_the_new_one_fits_and_only_the_longest_idle_left(
    residents: list[Resident], size: int, count: int
) -> None:
    leaving = make_room(residents, size_bytes=size, memory_bytes=LIMIT, max_loaded=count)

    idle = sorted((r for r in residents if not r.is_busy), key=lambda r: r.used_at)
    if leaving is None:
        busy = [r for r in residents if r.is_busy]
        assert sum(r.size_bytes for r in busy) + size > LIMIT or len(busy) + 1 > count
        return
    assert leaving == [r.key for r in idle[: len(leaving)]]
    staying = [r for r in residents if r.key not in leaving]
    assert sum(r.size_bytes for r in staying) + size <= LIMIT
    assert len(staying) + 1 <= count
    if leaving:  # one fewer would not have been enough
        last = next(r for r in residents if r.key == leaving[-1])
        over = sum(r.size_bytes for r in staying) + last.size_bytes + size > LIMIT
        assert over or len(staying) + 2 > count


def test_what_is_larger_than_everything_together_never_fits() -> None:
    with pytest.raises(FailedPreconditionError, match="needs 101 bytes"):
        make_room([], size_bytes=101, memory_bytes=LIMIT, max_loaded=1)
