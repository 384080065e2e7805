from headrace.control.agents.messages import PROTOCOL, AgentStatus, EnvoyCounts
from headrace.control.agents.registry import (
    AgentRegistry,
    AgentTimeouts,
    PublicationOutcome,
    SyncStatus,
    event_of,
    families,
)
from tests.metrics import exposed


def report(name: str, in_force: str = "", **more: object) -> AgentStatus:
    return AgentStatus(protocol=PROTOCOL, agent="1.0", name=name, in_force=in_force, **more)  # type: ignore[arg-type]  # as a Report has them


def roster(*versions: str) -> AgentRegistry:
    found = AgentRegistry(timeouts=AgentTimeouts(max_behind_s=5.0, lost_after_s=20.0))
    for at, version in enumerate(versions):
        found.offer(version, now=float(at))
    return found


def test_an_offer_is_done_when_all_that_are_connected_have_it() -> None:
    found = roster("a")
    found.take_report(report("one", "a"), now=1.0)
    found.take_report(report("two"), now=1.0)

    assert found.outcome(1, now=1.5) is PublicationOutcome.WAIT
    found.take_report(report("two", "a"), now=2.0)
    assert found.outcome(1, now=2.0) is PublicationOutcome.DONE


def test_a_newer_offer_in_force_answers_for_an_older_one() -> None:
    found = roster("a", "b")
    found.take_report(report("one", "b"), now=2.0)

    assert found.outcome(1, now=2.0) is PublicationOutcome.DONE


def test_content_that_was_in_force_before_is_so_when_it_is_offered_again() -> None:
    found = roster("a")
    found.take_report(report("one", "a"), now=0.5)

    found.offer("b", now=1.0)
    number = found.offer("a", now=2.0)

    assert found.outcome(number, now=2.0) is PublicationOutcome.DONE


def test_a_refusal_names_its_gateway_and_why() -> None:
    found = roster("a", "b")
    found.take_report(report("one", "b"), now=2.0)
    found.take_report(report("two", "a", refused="b", reason="no such cluster"), now=2.0)

    assert found.outcome(2, now=2.0) is PublicationOutcome.REFUSED
    assert found.refusals(2, now=2.0) == {"two": "no such cluster"}


def test_each_turn_is_told_once_and_waiting_is_none() -> None:
    found = roster("a")
    found.take_report(report("one"), now=0.0)
    assert found.sync_changes(now=1.0) == []

    found.take_report(report("one", "a"), now=2.0)
    (first,) = found.sync_changes(now=2.0)
    assert found.sync_changes(now=2.5) == []
    found.offer("b", now=3.0)
    assert found.sync_changes(now=3.5) == []
    found.take_report(report("one", "a"), now=8.5)
    (second,) = found.sync_changes(now=8.5)
    (third,) = found.sync_changes(now=40.0)

    assert (first.before, first.now) == (None, SyncStatus.CURRENT)
    assert (second.before, second.now) == (SyncStatus.CURRENT, SyncStatus.BEHIND)
    assert third.now is SyncStatus.LOST
    assert "gateway 'one' is behind by 6 s and serves version a" in (
        event_of(second, timestamp=0.0).message
    )


def test_a_gateway_that_is_lost_is_back_with_its_next_report() -> None:
    found = roster("a")

    assert found.take_report(report("one", "a"), now=0.0)
    assert not found.take_report(report("one", "a"), now=19.0)
    assert found.take_report(report("one", "a"), now=60.0)
    assert set(found.live(now=60.0)) == {"one"}
    assert found.live(now=99.0) == {}


def test_counts_stay_known_while_envoy_is_started_again() -> None:
    found = roster("a")
    found.take_report(report("one", "a", counts=EnvoyCounts(epoch="1")), now=0.0)

    found.take_report(report("one", "a", counts=None), now=1.0)

    assert found.counts(now=1.0) == {"one": EnvoyCounts(epoch="1")}


def test_gateways_of_long_ago_and_beyond_a_bound_are_forgotten() -> None:
    found = roster("a")
    for number in range(600):
        found.take_report(report(f"g{number}", "a"), now=float(number))
    assert len(found.states(now=600.0)) == 512

    found.take_report(report("new", "a"), now=600.0 + 25 * 3600.0)

    assert [one.name for one in found.states(now=600.0 + 25 * 3600.0)] == ["new"]


def test_metrics_name_each_gateway() -> None:
    found = roster("a", "b")
    found.take_report(report("one", "a", ready=True), now=2.0)

    text = exposed(families(found.states(now=4.0)))

    assert 'headrace_gateway_connected{gateway="one"} 1' in text
    assert 'headrace_gateway_ready{gateway="one"} 1' in text
    assert 'headrace_gateway_behind_seconds{gateway="one"} 3' in text
    assert 'headrace_gateway_seen_seconds{gateway="one"} 2' in text
    assert exposed(families(())) == ""
