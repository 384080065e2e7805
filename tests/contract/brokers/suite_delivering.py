"""What is delivered is there, with what it was made of done: at least once, or exactly once."""

import random
import time
from collections.abc import Mapping, Sequence

import pytest

from headrace.core import HeadraceError, UnsupportedError
from headrace.streaming.broker import Broker, ConsumerSession, Delivery
from headrace.streaming.records import NewRecord, TopicPartition
from tests.contract.brokers.rig import (
    Listener,
    Rig,
    after,
    everything,
    joined,
    line_of,
    member_process,
    new_name,
    new_topic,
    numbered,
    numbers,
    take,
)


class Delivering:
    @pytest.fixture(params=list(Delivery))
    def delivery(self, request: pytest.FixtureRequest, broker: Broker) -> Delivery:
        """Each that the broker can; that it refuses the other is a test of its own."""
        asked: Delivery = request.param
        if asked is Delivery.EXACTLY_ONCE and not broker.abilities.exactly_once:
            pytest.skip("this broker cannot deliver exactly once")
        return asked

    def test_exactly_once_is_refused_by_who_cannot(self, rig: Rig, broker: Broker) -> None:
        if broker.abilities.exactly_once:
            pytest.skip("this broker can")
        topic = new_topic(broker)

        with pytest.raises(UnsupportedError, match="at_least_once"):
            broker.join(rig.membership(topic, delivery=Delivery.EXACTLY_ONCE), Listener())

    def test_several_partitions_are_refused_by_who_has_none(self, broker: Broker) -> None:
        if broker.abilities.partitions:
            pytest.skip("this broker has partitions")

        with pytest.raises(UnsupportedError, match="partition"):
            broker.create_topic(new_name("topic"), partitions=2)

    def test_answers_are_there_and_their_records_done(
        self, rig: Rig, broker: Broker, delivery: Delivery
    ) -> None:
        topic, sink = new_topic(broker, records=20), new_topic(broker)
        membership = rig.membership(topic, delivery=delivery)
        with joined(broker, membership) as session:
            found = take(session, 20, within_s=rig.settles_s)
            for start in range(0, 20, 5):
                some = found[start : start + 5]
                session.produce(numbered(sink, numbers(some)), after(some))
            assert session.flush(rig.settles_s)
            assert numbers(everything(broker, sink)) == list(range(20))
        broker.send(numbered(topic, [20]))

        with joined(broker, membership) as session:
            assert numbers(take(session, 1, within_s=rig.settles_s)) == [20]

    def test_answers_keep_the_timestamps_that_they_are_written_with(
        self, rig: Rig, broker: Broker, delivery: Delivery
    ) -> None:
        topic, sink = new_topic(broker), new_topic(broker)
        # Whole milliseconds, of which some are no exact floats, on both sides of them.
        first_ms = int(time.time() * 1000) - 40_000  # noqa: TID251  # brokers refuse what is too old
        times_ms = [first_ms + 37 * number for number in range(30)]
        broker.send(numbered(topic, [0]))
        with joined(broker, rig.membership(topic, delivery=delivery)) as session:
            taken = take(session, 1, within_s=rig.settles_s)
            answers = [
                NewRecord(topic=sink, key=None, value=b"%d" % at, timestamp_s=at_ms / 1000)
                for at, at_ms in enumerate(times_ms)
            ]
            session.produce(answers, after(taken))
            assert session.flush(rig.settles_s)

        assert [round(one.timestamp_s * 1000, 3) for one in everything(broker, sink)] == times_ms

    def test_one_deliver_writes_to_several_topics_and_partitions(
        self, rig: Rig, broker: Broker, delivery: Delivery
    ) -> None:
        topic, sink, dead = (
            new_topic(broker, records=9),
            new_topic(broker, partitions=3),
            new_topic(broker),
        )
        with joined(broker, rig.membership(topic, delivery=delivery)) as session:
            found = take(session, 9, within_s=rig.settles_s)
            answers = numbered(sink, range(8), keys=8)
            session.produce([*answers, *numbered(dead, [8])], after(found))
            assert session.flush(rig.settles_s)

        assert sorted(numbers(everything(broker, sink))) == list(range(8))
        assert numbers(everything(broker, dead)) == [8]

    def test_nothing_is_delivered_and_nothing_done_without_harm(
        self, rig: Rig, broker: Broker, delivery: Delivery
    ) -> None:
        topic, sink = new_topic(broker, records=3), new_topic(broker)
        membership = rig.membership(topic, delivery=delivery)
        with joined(broker, membership) as session:
            found = take(session, 3, within_s=rig.settles_s)
            session.produce([], {})
            session.produce(numbered(sink, [0]), {})
            session.produce([], after(found[:1]))
            assert session.flush(rig.settles_s)

        assert numbers(everything(broker, sink)) == [0]
        with joined(broker, membership) as session:
            assert numbers(take(session, 2, within_s=rig.settles_s)) == [1, 2]

    def test_what_cannot_be_written_moves_nothing(
        self, rig: Rig, broker: Broker, delivery: Delivery
    ) -> None:
        topic, sink = new_topic(broker, records=5), new_topic(broker)
        membership = rig.membership(topic, delivery=delivery)
        bad = NewRecord(topic=sink, key=None, value=b"99", partition=77)
        session = broker.join(membership, Listener())
        try:
            found = take(session, 5, within_s=rig.settles_s)
            with pytest.raises(HeadraceError):
                self._produce(session, [*numbered(sink, [0, 1]), bad], after(found))
        finally:
            session.close()

        with joined(broker, membership) as session:
            assert numbers(take(session, 5, within_s=rig.settles_s)) == [0, 1, 2, 3, 4]
        if delivery is Delivery.EXACTLY_ONCE:
            assert everything(broker, sink) == []

    @staticmethod
    def _produce(
        session: ConsumerSession, records: Sequence[NewRecord], done: Mapping[TopicPartition, int]
    ) -> None:
        """Some brokers hear only later that a record could not be written."""
        session.produce(records, done)
        if not session.flush(10):
            session.poll(1, 1.0)

    @pytest.mark.long
    @pytest.mark.slow
    def test_killed_at_random_moments_nothing_is_lost_and_exactly_once_nothing_doubled(
        self, rig: Rig, broker: Broker, delivery: Delivery
    ) -> None:
        topic, sink, group = new_topic(broker, partitions=2), new_topic(broker), new_name("group")
        rng = random.Random(9)  # noqa: S311  # moments, no secrets
        for kill in range(rig.kills):
            part = range(kill * rig.copied // rig.kills, (kill + 1) * rig.copied // rig.kills)
            broker.send(numbered(topic, part, keys=50))
            with member_process(
                rig, "copy", topic, group=group, sink=sink, delivery=delivery
            ) as process:
                assert line_of(process) == "joined"
                if kill % 2:
                    assert line_of(process) == "copies"
                time.sleep(rng.uniform(0, 0.03))
        with member_process(
            rig, "copy", topic, group=group, sink=sink, delivery=delivery
        ) as process:
            assert process.wait(timeout=120) == 0

        copied = numbers(everything(broker, sink))
        assert set(copied) == set(range(rig.copied))
        if delivery is Delivery.EXACTLY_ONCE:
            assert len(copied) == rig.copied
