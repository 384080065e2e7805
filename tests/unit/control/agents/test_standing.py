from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from headrace.control.agents.registry import (
    AgentReport,
    AgentTimeouts,
    Offers,
    PublicationOutcome,
    SyncStatus,
    behind_s,
    next_change_s,
    outcome,
    should_send,
    standing,
)

PATIENCE = AgentTimeouts(max_behind_s=10.0, lost_after_s=30.0)
moments = st.floats(0, 1000)


def offers_at(*times: float) -> Offers:
    found = Offers()
    for at in times:
        found = found.with_offer(at)
    return found


TWO = offers_at(100.0, 200.0)


def test_a_gateway_has_its_time_and_is_behind_after_it() -> None:
    heard = AgentReport(since=0.0, seen_at=205.0, in_force=1)

    assert standing(heard, TWO, now=209.9, timeouts=PATIENCE) is SyncStatus.WAITING
    assert standing(heard, TWO, now=210.0, timeouts=PATIENCE) is SyncStatus.BEHIND
    assert behind_s(heard, TWO, now=210.0) == 10.0


def test_a_gateway_that_comes_back_gets_its_time_anew() -> None:
    heard = AgentReport(since=500.0, seen_at=505.0, in_force=1)

    assert standing(heard, TWO, now=505.0, timeouts=PATIENCE) is SyncStatus.WAITING
    assert behind_s(heard, TWO, now=505.0) == 305.0


def test_who_is_silent_is_lost_whatever_is_in_force_there() -> None:
    heard = AgentReport(since=0.0, seen_at=200.0, in_force=2)

    assert standing(heard, TWO, now=230.0, timeouts=PATIENCE) is SyncStatus.CURRENT
    assert standing(heard, TWO, now=230.1, timeouts=PATIENCE) is SyncStatus.LOST


def test_a_refusal_counts_for_what_was_offered_before_it_only() -> None:
    heard = AgentReport(since=0.0, seen_at=200.0, in_force=1, refused=2)

    assert standing(heard, TWO, now=201.0, timeouts=PATIENCE) is SyncStatus.REFUSED
    later = TWO.with_offer(202.0)
    assert standing(heard, later, now=203.0, timeouts=PATIENCE) is SyncStatus.WAITING


def test_nobody_connected_is_an_outcome_of_its_own() -> None:
    assert outcome([]) is PublicationOutcome.NOBODY
    assert outcome([SyncStatus.LOST, SyncStatus.LOST]) is PublicationOutcome.NOBODY


def test_one_that_refused_is_told_once_nobody_is_waited_for() -> None:
    assert (
        outcome([SyncStatus.REFUSED, SyncStatus.WAITING, SyncStatus.CURRENT])
        is PublicationOutcome.WAIT
    )
    assert outcome([SyncStatus.REFUSED, SyncStatus.CURRENT]) is PublicationOutcome.REFUSED


def test_one_that_is_behind_holds_nobody_up_unless_it_is_the_only_one() -> None:
    assert outcome([SyncStatus.BEHIND, SyncStatus.CURRENT]) is PublicationOutcome.DONE
    assert outcome([SyncStatus.BEHIND, SyncStatus.LOST]) is PublicationOutcome.BEHIND


def test_old_offers_are_dropped_and_who_has_one_of_them_is_behind_since_the_oldest_known() -> None:
    found = offers_at(*(float(at) for at in range(1000)))

    assert found.newest == 1000
    assert len(found.offered_at) < 1000
    assert behind_s(AgentReport(since=0.0, seen_at=1000.0, in_force=3), found, now=1000.0) == (
        1000.0 - found.offered_at[0]
    )


@pytest.mark.parametrize(
    ("held", "has_routes", "has_desired_state", "is_sent"),
    [
        ("", False, False, True),
        ("", False, True, False),
        ("", True, True, True),
        ("b", False, False, False),
        ("b", False, True, False),
        ("b", True, True, True),
        ("a", True, True, False),
    ],
)
def test_what_nobody_decided_is_sent_only_where_nothing_was_ever_ordered(
    held: str, *, has_routes: bool, has_desired_state: bool, is_sent: bool
) -> None:
    told = {"has_routes": has_routes, "has_desired_state": has_desired_state}

    assert should_send(held=held, refused="", newest="a", **told) is is_sent
    assert not should_send(held=held, refused="a", newest="a", **told)
    assert not should_send(held=held, refused="", newest="", **told)


@st.composite
def situations(draw: st.DrawFn) -> tuple[AgentReport, Offers, float]:
    times = sorted(draw(st.lists(moments, min_size=1, max_size=6)))
    found = offers_at(*times)
    now = draw(st.floats(times[-1], 2000))
    seen_at = draw(st.floats(0, now))
    heard = AgentReport(
        since=draw(st.floats(0, seen_at)),
        seen_at=seen_at,
        in_force=draw(st.integers(0, found.newest)),
        refused=draw(st.integers(0, found.newest)),
    )
    return heard, found, now


@given(situations(), st.floats(0, 500))
def test_without_news_a_gateway_never_stands_better_later(
    situation: tuple[AgentReport, Offers, float], more_s: float
) -> None:
    heard, found, now = situation
    order = [
        SyncStatus.CURRENT,
        SyncStatus.REFUSED,
        SyncStatus.WAITING,
        SyncStatus.BEHIND,
        SyncStatus.LOST,
    ]

    before = standing(heard, found, now=now, timeouts=PATIENCE)
    after = standing(heard, found, now=now + more_s, timeouts=PATIENCE)

    assert order.index(after) >= order.index(before)
    assert behind_s(heard, found, now=now + more_s) >= behind_s(heard, found, now=now)


@given(situations())
@example((AgentReport(since=0.0, seen_at=0.0), offers_at(251.092004238138), 251.092004238138))
def test_nobody_is_waited_for_longer_than_patience_allows(
    situation: tuple[AgentReport, Offers, float],
) -> None:
    heard, found, now = situation
    late = replace(heard, seen_at=now + PATIENCE.max_behind_s)

    stands = standing(late, found, now=now + PATIENCE.max_behind_s, timeouts=PATIENCE)

    assert stands is not SyncStatus.WAITING


@given(situations())
def test_a_standing_changes_by_itself_only_when_it_was_foretold(
    situation: tuple[AgentReport, Offers, float],
) -> None:
    heard, found, now = situation
    until_s = next_change_s({"g": heard}, found, now=now, timeouts=PATIENCE)

    before = standing(heard, found, now=now, timeouts=PATIENCE)
    just_before = standing(heard, found, now=now + until_s * 0.999, timeouts=PATIENCE)

    assert until_s > 0
    assert just_before is before


@given(situations(), st.integers(1, 6))
def test_who_has_the_newest_has_all_that_was_wanted_before(
    situation: tuple[AgentReport, Offers, float], wanted: int
) -> None:
    heard, found, now = situation
    wanted = min(wanted, found.newest)

    newest = standing(heard, found, now=now, timeouts=PATIENCE)
    earlier = standing(heard, found, now=now, timeouts=PATIENCE, offer=wanted)

    if newest is SyncStatus.CURRENT:
        assert earlier is SyncStatus.CURRENT
