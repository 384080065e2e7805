"""One event, one new fact."""

from dataclasses import replace

import pytest

from headrace.control.model.observed import (
    STABLE_AFTER_S,
    ProbeResult,
    Replica,
    ReplicaPhase,
    drained,
    exit_reason,
    exited,
    killed,
    probed,
    started,
)

NEW = Replica(
    name="m-1-1",
    serial=1,
    endpoint="m",
    version="1",
    revision_id="r",
    address="unix:/r",
    phase=ReplicaPhase.STARTING,
    since=0.0,
)
READY = probed(started(NEW, pid=7, now=1.0), ProbeResult.READY, now=2.0)


def test_the_first_ready_answer_makes_a_replica_ready() -> None:
    assert (READY.phase, READY.since, READY.was_ready, READY.pid) == (
        ReplicaPhase.READY,
        2.0,
        True,
        7,
    )


@pytest.mark.parametrize("health", [ProbeResult.NOT_READY, ProbeResult.REFUSED, ProbeResult.SILENT])
def test_anything_else_leaves_a_starting_replica_starting(health: ProbeResult) -> None:
    assert probed(started(NEW, pid=7, now=1.0), health, now=2.0).phase is ReplicaPhase.STARTING


@pytest.mark.parametrize("health", [ProbeResult.NOT_READY, ProbeResult.REFUSED])
def test_a_ready_replica_that_denies_it_is_taken_at_its_word(health: ProbeResult) -> None:
    after = probed(READY, health, now=3.0)

    assert (after.phase, after.since) == (ReplicaPhase.UNREADY, 3.0)
    assert probed(after, ProbeResult.READY, now=4.0).phase is ReplicaPhase.READY


def test_silence_says_nothing_about_readiness_and_is_no_sign_of_life() -> None:
    after = probed(READY, ProbeResult.SILENT, now=30.0)

    assert after.phase is ReplicaPhase.READY
    assert after.answered_at == 2.0


def test_an_unready_answer_is_a_sign_of_life() -> None:
    assert probed(READY, ProbeResult.NOT_READY, now=30.0).answered_at == 30.0


@pytest.mark.parametrize(
    "replica", [drained(READY, now=3.0), exited(READY, exit_code=1, last_line="", now=3.0)]
)
def test_a_late_answer_does_not_bring_back_who_is_leaving_or_gone(replica: Replica) -> None:
    assert probed(replica, ProbeResult.READY, now=4.0) == replica


def test_failures_in_a_row_are_counted_and_wait_longer() -> None:
    once = exited(READY, exit_code=1, last_line="oops", now=3.0)
    twice = exited(started(once, pid=8, now=4.0), exit_code=1, last_line="oops", now=5.0)

    assert (once.failures, twice.failures) == (1, 2)
    assert once.retry_at == pytest.approx(3.1)
    assert twice.retry_at == pytest.approx(5.2)
    assert twice.reason == "ended with exit status 1: oops"
    assert twice.pid is None


def test_a_stable_minute_forgives_earlier_failures() -> None:
    shaky = replace(READY, failures=5)
    stable = probed(shaky, ProbeResult.READY, now=2.0 + STABLE_AFTER_S)

    assert probed(shaky, ProbeResult.READY, now=3.0).failures == 5
    assert stable.failures == 0
    assert exited(shaky, exit_code=1, last_line="", now=2.0 + STABLE_AFTER_S).failures == 1
    assert exited(shaky, exit_code=1, last_line="", now=3.0).failures == 6


def test_who_was_told_to_drain_ends_for_good() -> None:
    ended = exited(drained(READY, now=3.0), exit_code=0, last_line="", now=4.0)

    assert ended.phase is ReplicaPhase.ENDED
    assert ended.retry_at is None
    assert ended.is_leaving


def test_the_reason_of_a_kill_outlives_the_signal() -> None:
    ended = exited(killed(READY, reason="hung"), exit_code=-9, last_line="x", now=4.0)

    assert ended.reason == "hung"
    assert started(ended, pid=9, now=5.0).kill_sent is False


@pytest.mark.parametrize(
    ("code", "line", "text"),
    [
        (3, "no such op", "cannot load the model: no such op"),
        (None, "", "ended"),
        (-9, "", "ended by signal 9"),
        (1, "boom", "ended with exit status 1: boom"),
    ],
)
def test_an_end_is_told_in_words(code: int | None, line: str, text: str) -> None:
    assert exit_reason(code, line) == text


def test_exit_status_3_says_that_the_model_cannot_be_loaded() -> None:
    assert exited(READY, exit_code=3, last_line="", now=3.0).cannot_load
    assert not exited(READY, exit_code=1, last_line="", now=3.0).cannot_load
    assert not READY.cannot_load
