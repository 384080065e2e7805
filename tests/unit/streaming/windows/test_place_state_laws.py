"""Windows equal a slow obvious version, whatever comes when, and however often a worker dies."""

from hypothesis import given
from hypothesis import strategies as st

from headrace.core import InvalidArgumentError
from headrace.core.spec.stream_parts import Function, StreamWindowSpec
from headrace.streaming.windows.panes import WindowEvent, plan_windows
from headrace.streaming.windows.session import restore
from headrace.streaming.windows.state_file import PartitionState
from tests.unit.streaming.windows.parts import (
    Reference,
    counted,
    in_memory,
    same,
    settings,
    values_of,
)

HALVES = st.integers(1, 20).map(lambda halves: halves / 2)
EVENTS = st.lists(
    st.builds(
        WindowEvent,
        at_us=st.integers(0, 60_000_000),
        keys=st.tuples(st.sampled_from([b"a", b"b"]), st.sampled_from([b"x", b"y"])),
        values=st.tuples(st.none() | st.integers(-1000, 1000).map(lambda n: n / 7)),
    ),
    min_size=1,
    max_size=40,
)


@st.composite
def window(draw: st.DrawFn, name: str) -> StreamWindowSpec:
    size_s, slide_s = draw(HALVES), draw(st.none() | HALVES)
    return StreamWindowSpec(
        name=name,
        size_s=max(size_s, slide_s or 0.0),
        slide_s=slide_s,
        function=draw(st.sampled_from(Function)),
        field="v",
        key=draw(st.sampled_from(["k", "m"])),
    )


# Both keys and the field are always asked for, so that every event has the same parts.
WINDOWS = st.tuples(
    st.just(StreamWindowSpec(name="all", size_s=7.5, slide_s=2.5, key="k")),
    st.just(StreamWindowSpec(name="more", size_s=3, function=Function.SUM, field="v", key="m")),
    window("one"),
    window("two"),
)


@given(WINDOWS, EVENTS, st.sampled_from([0.0, 5.0, 60.0]))
def test_windows_equal_a_look_at_all_events(
    windows: tuple[StreamWindowSpec, ...], events: list[WindowEvent], lateness_s: float
) -> None:
    told = settings(*windows, lateness_s=lateness_s)
    plan = plan_windows(told)
    reference = Reference(told, plan)
    found = counted(plan, events)

    late = 0
    for event, values in zip(events, values_of(found), strict=True):
        late += reference.is_late(event)
        assert values is not None
        assert same(values, reference.value(event))
    assert found.late == late


@st.composite
def lives(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """Lives of a worker: how many batches of how many events, how many of them delivered."""
    return draw(
        st.lists(
            st.tuples(st.integers(1, 4), st.integers(1, 6), st.integers(0, 4)),
            min_size=1,
            max_size=8,
        )
    )


@given(WINDOWS, EVENTS, lives(), st.booleans())
def test_deaths_change_no_value_by_a_single_bit(
    windows: tuple[StreamWindowSpec, ...],
    events: list[WindowEvent],
    deaths: list[tuple[int, int, int]],
    forgets: bool,  # noqa: FBT001  # Hypothesis draws it
) -> None:
    """A worker is killed after some batches, of which some were delivered and some written."""
    plan = plan_windows(settings(*windows))
    undisturbed = values_of(counted(plan, events))
    stored, delivered = in_memory(), 0
    found: dict[int, object] = {}
    for batches, size, good in [*deaths, (40, 6, 40)]:
        if forgets:
            stored.begin(0)  # another machine, and the log has all
        position = stored.position()
        assert position is not None
        how = restore(position.offset, group=delivered, first=0, since=lambda: 0)
        assert not how.is_rebuilt
        state = PartitionState(plan, stored, newest_us=position.newest_us)
        behind = events[how.read_from : how.scored_from]
        if behind:
            state.count(behind, offset=how.scored_from)
        at = how.scored_from
        reached = delivered
        for number in range(batches):
            some = events[at : at + size]
            if not some:
                break
            values = values_of(state.count(some, offset=at + len(some)))
            at += len(some)
            if number < good:
                found |= dict(enumerate(values, start=at - len(some)))
                reached = at
        delivered = reached
        change = state.changes(delivered)
        if change is not None and good % 2:  # what is delivered is not always written
            stored.write(change, first_needed=plan.first_needed(change.newest_us))
    stored.close()

    assert [found[at] for at in range(len(events))] == undisturbed or all(
        repr(found[at]) == repr(undisturbed[at])
        for at in range(len(events))  # NaN
    )


@given(EVENTS)
def test_an_error_and_a_record_without_a_value_change_nothing(events: list[WindowEvent]) -> None:
    told = settings(
        StreamWindowSpec(name="n", size_s=10, slide_s=5, key="k"),
        StreamWindowSpec(name="s", size_s=10, key="m", function=Function.SUM, field="v"),
    )
    plan = plan_windows(told)
    bad = InvalidArgumentError("bad")
    mixed = [one for event in events for one in (bad, event, None)]

    plain, found = counted(plan, events), counted(plan, mixed)

    assert found.rows[::3] == [bad] * len(events)
    assert found.rows[2::3] == [None] * len(events)
    assert repr(found.rows[1::3]) == repr(plain.rows)


@given(
    st.none() | st.integers(0, 30_000),
    st.integers(0, 30_000),
    st.integers(0, 30_000),
    st.none() | st.integers(0, 40_000),
)
def test_restoring_skips_no_record_that_counts(
    kept: int | None, group: int, first: int, since: int | None
) -> None:
    how = restore(kept, group=group, first=first, since=lambda: since)

    assert first <= how.read_from <= how.scored_from == max(group, first)
    if how.is_rebuilt:
        wanted = first if since is None else since
        assert how.read_from <= max(wanted, first)
        assert how.is_whole or how.read_from == first > 0
    else:
        assert how.read_from == kept
