"""One session, turn by turn: when batches are taken, tried again, delivered, and let go."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from headrace.core import UnavailableError
from headrace.core.spec.stream_parts import FailurePolicy
from headrace.streaming.broker import Delivery
from headrace.streaming.in_flight import ScoringBatch
from headrace.streaming.poll_loop import (
    FAST_BATCH_S,
    MAX_BATCHES,
    MAX_POLL_S,
    PAUSE_AFTER_S,
    StoppedByRecordError,
)
from headrace.streaming.records import TopicPartition
from headrace.testing.streams import MemoryBroker, MemorySession, TurnedClock
from tests.unit.streaming.world import (
    DEAD,
    GROUP,
    IN,
    OUT,
    Member,
    Reader,
    broker_with,
    inputs,
    where,
)

HERE = TopicPartition(IN, 0)


class Stream:
    """One member whose polls let time pass."""

    def __init__(
        self,
        *,
        seconds: float = 0.0,
        delivery: Delivery = Delivery.AT_LEAST_ONCE,
        handover_s: float = 5.0,
        **changes: Any,  # noqa: ANN401  # as `Member` takes them
    ) -> None:
        self.clock = TurnedClock()
        self.broker: MemoryBroker = broker_with(self.clock)
        self.member = Member(
            name="a",
            broker=self.broker,
            delivery=delivery,
            clock=self.clock,
            seconds=lambda _: seconds,
            handover_s=handover_s,
            waits=True,
            **changes,
        )

    @property
    def batches(self) -> list[ScoringBatch]:
        return self.member.runner.submitted

    def sizes(self) -> list[int]:
        return [len(batch.records) for batch in self.batches]

    def run(self, seconds: float) -> None:
        until = self.clock.monotonic() + seconds
        while self.clock.monotonic() < until:
            self.member.poll_loop.run_once()

    def answered(self) -> list[int]:
        return [where(record)[1] for record in self.broker.all(OUT)]


@pytest.mark.parametrize(("count", "max_delay_s"), [(3, 0.0), (4, 5.0)])
def test_a_full_batch_and_one_that_need_not_wait_are_taken_at_once(
    count: int, max_delay_s: float
) -> None:
    stream = Stream(max_delay_s=max_delay_s)
    stream.broker.send(inputs(count))
    stream.run(0.3)

    assert stream.sizes() == [count]
    assert stream.batches[0].taken_at == 0.0
    assert stream.answered() == list(range(count))


def test_a_batch_waits_for_company_as_long_as_it_may() -> None:
    stream = Stream(max_delay_s=0.05)
    stream.broker.send(inputs(1))
    stream.clock.later(0.03, lambda: stream.broker.send(inputs(1)))
    stream.clock.later(0.06, lambda: stream.broker.send(inputs(1)))
    stream.run(0.3)

    assert stream.sizes() == [2, 1]
    assert stream.batches[0].taken_at == pytest.approx(0.05)
    assert stream.batches[1].taken_at == pytest.approx(0.11)


def test_an_answer_of_a_quick_model_does_not_wait_for_a_poll_to_end() -> None:
    """Kafka's poll cannot be woken: it lasts until the next record, or its time is over."""
    stream = Stream(seconds=FAST_BATCH_S / 4, delivery=Delivery.EXACTLY_ONCE)
    stream.member.runner.wake = lambda: None
    stream.broker.send(inputs(1))
    stream.run(3 * MAX_POLL_S)  # whose model is known to be quick from then on
    stream.broker.send(inputs(1))
    stream.run(MAX_POLL_S)
    took_s = [
        answer.timestamp_s - record.timestamp_s
        for record, answer in zip(stream.broker.all(IN), stream.broker.all(OUT), strict=True)
    ]

    assert took_s[0] >= MAX_POLL_S
    assert took_s[1] < FAST_BATCH_S


def test_answers_wait_for_others_only_while_a_full_batch_of_records_waits() -> None:
    busy, calm = Stream(seconds=0.001), Stream(seconds=0.001)
    busy.broker.send(inputs(40))
    busy.run(1.0)
    for at in range(10):
        calm.clock.later(at * 0.005, lambda: calm.broker.send(inputs(4)))
    calm.run(1.0)

    assert busy.sizes() == calm.sizes() == [4] * 10
    assert busy.answered() == calm.answered() == list(range(40))
    assert busy.member.counters.deliver.count < 5
    assert calm.member.counters.deliver.count == 10


def test_batches_grow_while_the_model_is_busy() -> None:
    stream = Stream(seconds=1.0)
    for at in range(8):
        stream.clock.later(at * 0.1, lambda: stream.broker.send(inputs(1)))
    stream.run(4.0)

    assert stream.sizes() == [1, 4, 3]
    assert stream.answered() == list(range(8))


def test_a_model_that_takes_half_a_minute_never_keeps_it_from_polling() -> None:
    stream = Stream(seconds=30.0)
    stream.broker.send(inputs(40))
    stream.run(100.0)

    times = stream.member.session.polled_at
    assert max(b - a for a, b in pairwise(times)) <= MAX_POLL_S + 1e-9
    assert stream.answered() == list(range(12))


def test_a_full_queue_is_held_at_the_broker_and_let_go_again() -> None:
    stream = Stream(seconds=10.0)
    stream.broker.send(inputs(17))
    stream.run(PAUSE_AFTER_S / 2)
    held_at_once = set(stream.member.session.paused)
    stream.run(1.0)
    held_later = set(stream.member.session.paused)
    stream.run(60.0)

    assert (held_at_once, held_later) == (set(), {HERE})
    assert stream.member.session.paused == set()
    assert stream.answered() == list(range(17))


def test_a_partition_that_comes_back_to_a_paused_stream_is_paused_again() -> None:
    stream = Stream()
    loop, session = stream.member.poll_loop, stream.member.session
    loop.is_paused = True
    stream.run(1.0)
    loop.on_revoked([HERE])
    session.resume([HERE])
    loop.on_assigned([HERE])
    stream.run(1.0)
    paused_again = set(session.paused)
    loop.is_paused = False
    stream.run(1.0)

    assert (paused_again, session.paused) == ({HERE}, set())


def test_what_is_away_is_tried_again_with_longer_and_longer_pauses() -> None:
    stream = Stream()
    stream.member.away = True
    tried: list[float] = []
    stream.member.seconds = lambda _: noted(tried, stream.clock.monotonic())
    stream.broker.send(inputs(3))
    stream.run(1.6)
    stream.member.away = False
    stream.run(2.0)

    pauses = [round(b - a, 3) for a, b in pairwise(tried)]
    assert pauses[:4] == [0.075, 0.15, 0.3, 0.6]
    assert stream.answered() == [0, 1, 2]
    assert stream.member.counters.retries == len(tried) - 1
    assert stream.broker.all(DEAD) == []


def test_while_something_is_away_nothing_new_is_tried() -> None:
    stream = Stream()
    stream.member.away = True
    stream.broker.send(inputs(4))
    stream.run(1.0)
    stream.broker.send(inputs(30))
    stream.run(20.0)

    assert {batch.records[0].offset for batch in stream.batches} == {0}


def test_what_stays_away_goes_to_the_dead_letters_in_the_end() -> None:
    stream = Stream(retry_for_s=5.0)
    stream.member.away = True
    stream.broker.send(inputs(2))
    stream.run(4.9)
    before = len(stream.broker.all(DEAD))
    stream.run(0.3)

    assert before == 0
    letters = stream.broker.all(DEAD)
    assert [where(one)[1] for one in letters] == [0, 1]
    assert dict(letters[0].headers)["headrace-error-code"] == b"UNAVAILABLE"
    assert dict(letters[0].headers)["headrace-attempts"] == b"%d" % stream.batches[0].attempts


def test_a_poisoned_record_may_be_skipped() -> None:
    stream = Stream(policy=FailurePolicy.SKIP)
    stream.broker.send(inputs(3, poison=frozenset({2})))
    stream.run(0.3)

    assert stream.answered() == [0, 1]
    assert stream.broker.all(DEAD) == []
    assert stream.broker.committed(GROUP, IN) == {HERE: 3}


def test_a_stream_may_stop_before_a_poisoned_record() -> None:
    stream = Stream(policy=FailurePolicy.STOP)
    stream.broker.send(inputs(7, poison=frozenset({5})))
    with pytest.raises(StoppedByRecordError, match=r"record 5 of in, partition 0.*poison"):
        stream.run(1.0)

    stream.member.session.flush(1.0)
    assert stream.answered() == [0, 1, 2, 3, 4]
    assert stream.broker.committed(GROUP, IN) == {HERE: 5}


def test_what_is_exactly_once_is_committed_now_and_then() -> None:
    stream = Stream(delivery=Delivery.EXACTLY_ONCE, max_batch_size=1)
    for at in range(20):
        stream.clock.later(at * 0.001, lambda: stream.broker.send(inputs(1)))
    stream.run(0.5)

    assert stream.answered() == list(range(20))
    assert 4 <= len(stream.member.session.delivered) <= 6


def test_a_place_that_goes_is_finished_first() -> None:
    stream = Stream(seconds=2.0)
    other = other_member(stream)
    stream.broker.send(inputs(10))
    stream.run(0.5)
    stream.broker.give(GROUP, HERE, other, is_seized=False)
    stream.run(0.3)

    assert stream.answered() == list(range(8))
    assert stream.broker.committed(GROUP, IN) == {HERE: 8}
    assert len(stream.member.poll_loop.prefetch) == 0


def test_a_place_that_goes_is_not_waited_for_too_long() -> None:
    stream = Stream(seconds=60.0, handover_s=3.0)
    other = other_member(stream)
    stream.broker.send(inputs(4))
    stream.run(0.5)
    stream.broker.give(GROUP, HERE, other, is_seized=False)
    started = stream.clock.monotonic()
    stream.member.poll_loop.run_once()
    took = stream.clock.monotonic() - started
    stream.run(100.0)

    assert 3.0 <= took <= 3.0 + 2 * MAX_POLL_S
    assert stream.answered() == []
    assert stream.broker.committed(GROUP, IN) == {}


def test_the_end_delivers_what_is_under_way_and_takes_nothing_more() -> None:
    stream = Stream(seconds=1.0)
    stream.broker.send(inputs(12))
    stream.run(0.1)
    stream.member.poll_loop.drain(until=stream.clock.monotonic() + 30.0)

    assert stream.answered() == list(range(8))
    assert stream.broker.committed(GROUP, IN) == {HERE: 8}


def test_the_end_does_not_wait_for_what_is_away() -> None:
    stream = Stream()
    stream.member.away = True
    stream.broker.send(inputs(3))
    stream.run(0.3)
    started = stream.clock.monotonic()
    stream.member.poll_loop.drain(until=started + 30.0)

    assert stream.clock.monotonic() - started < 1.0
    assert stream.broker.committed(GROUP, IN) == {}


def test_an_error_while_a_place_is_let_go_is_passed_on_afterwards() -> None:
    stream = Stream(seconds=1.0)
    other = other_member(stream)
    stream.broker.send(inputs(1))
    stream.run(0.3)
    stream.broker.give(GROUP, HERE, other, is_seized=False)
    stream.member.session.fails = UnavailableError("fenced")
    with pytest.raises(UnavailableError, match="fenced"):
        stream.run(1.0)

    assert stream.broker.owner(GROUP, HERE) is other


def noted(times: list[float], now: float) -> float:
    times.append(now)
    return 0.0


def other_member(stream: Stream) -> MemorySession:
    membership = replace(stream.member.session.membership, member="b")
    return stream.broker.join(membership, Reader())


def test_batches_that_wait_for_a_slow_one_are_bounded() -> None:
    stream = Stream(max_batch_size=1, threads=4)
    stream.member.seconds = lambda batch: 30.0 if batch.records[0].offset == 0 else 0.01
    stream.broker.send(inputs(3 * MAX_BATCHES))
    stream.run(20.0)

    assert len(stream.batches) == MAX_BATCHES
    assert stream.answered() == []
    stream.run(20.0)
    assert stream.answered() == list(range(3 * MAX_BATCHES))
