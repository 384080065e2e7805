"""What goes in comes out in order; what is delivered is there, and its input done."""

import random
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing

import pytest

from headrace.core import HeadraceError, UnsupportedError
from headrace.streaming.broker import Broker, ConsumerSession, Delivery
from headrace.streaming.records import Header, NewRecord, Record, TopicPartition
from tests.contract.brokers.rig import (
    SETTLES_S,
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
    taken,
)

LARGE_BYTES = 900_000
LONG_S = 60.0  # a wait that a test does not survive


class Records:
    def test_records_of_a_place_come_in_their_order(self, rig: Rig, broker: Broker) -> None:
        topic = new_topic(broker, partitions=3)
        for start in range(0, 300, 50):
            broker.send(numbered(topic, range(start, start + 50), keys=7))

        found = taken(broker, rig.membership(topic), 300)

        assert sorted(numbers(found)) == list(range(300))
        for partition in {record.topic_partition for record in found}:
            mine = [record for record in found if record.topic_partition == partition]
            assert numbers(mine) == sorted(numbers(mine))
            offsets = [record.offset for record in mine]
            assert offsets == sorted(set(offsets))

    def test_a_key_stays_at_its_place(self, rig: Rig, broker: Broker) -> None:
        topic = new_topic(broker, partitions=4, records=40, keys=8)
        with closing(rig.open()) as other:
            other.send(numbered(topic, range(40, 80), keys=8))

        partitions: dict[bytes | None, set[TopicPartition]] = {}
        for record in everything(broker, topic):
            partitions.setdefault(record.key, set()).add(record.topic_partition)

        assert len(partitions) == 8
        assert all(len(of_key) == 1 for of_key in partitions.values())
        if broker.abilities.partitions:
            assert len(set.union(*partitions.values())) > 1

    def test_a_record_can_say_its_partition(self, broker: Broker) -> None:
        topic = new_topic(broker, partitions=3)
        last = len(broker.ends(topic)) - 1
        broker.send(
            [NewRecord(topic=topic, key=b"%d" % n, value=b"", partition=last) for n in (1, 2)]
        )

        assert [record.topic_partition for record in everything(broker, topic)] == [
            TopicPartition(topic, last)
        ] * 2

    def test_records_come_with_any_bytes_and_say_when_they_were_written(
        self, rig: Rig, broker: Broker
    ) -> None:
        topic = new_topic(broker)
        headers = (("b", b"1"), ("a", b""), ("b", bytes(range(256))), ("trace-id", b"\xff\x00"))
        contents: list[tuple[bytes | None, bytes | None, tuple[Header, ...]]] = [
            (None, b"value", ()),
            (b"", b"value", ()),
            (b"key", None, ()),
            (b"key", b"", headers),
            (None, None, ()),
            (bytes(range(256)), bytes(range(255, -1, -1)), ()),
            ("clé".encode(), "värde\n\0".encode(), ()),
            (b"large", bytes(range(250)) * (LARGE_BYTES // 250), ()),
        ]
        before_s = time.time()  # noqa: TID251  # what the broker's clock is compared with
        for key, value, more in contents:
            broker.send([NewRecord(topic=topic, key=key, value=value, headers=more)])
        after_s = time.time()  # noqa: TID251  # as above

        found = taken(broker, rig.membership(topic), len(contents))

        for records in (found, everything(broker, topic)):
            assert [(one.key, one.value, one.headers) for one in records] == contents
        assert all(before_s - 1 <= one.timestamp_s <= after_s + 1 for one in found)

    def test_poll_gives_what_is_there_and_waits_for_no_more(self, rig: Rig, broker: Broker) -> None:
        topic = new_topic(broker)
        with joined(broker, rig.membership(topic)) as session:
            broker.send(numbered(topic, range(3)))
            began = time.monotonic()
            found = session.poll(1000, LONG_S)
            while len(found) < 3:
                found += session.poll(1000, LONG_S)

            assert numbers(found) == [0, 1, 2]
            assert time.monotonic() - began < LONG_S / 2

    def test_poll_ends_when_nothing_comes(self, rig: Rig, broker: Broker) -> None:
        topic = new_topic(broker)
        with joined(broker, rig.membership(topic)) as session:
            assert session.poll(10, 0.2) == []
            assert session.poll(10, 0.0) == []

    def test_poll_gives_no_more_than_most(self, rig: Rig, broker: Broker) -> None:
        topic = new_topic(broker, partitions=2, records=100, keys=5)

        found: list[Record] = []
        with joined(broker, rig.membership(topic)) as session:
            deadline = time.monotonic() + SETTLES_S
            while len(found) < 100 and time.monotonic() < deadline:
                assert session.poll(0, 0.0) == []
                some = session.poll(7, 0.2)
                assert len(some) <= 7
                found += some

        assert sorted(numbers(found)) == list(range(100))

    def test_a_place_that_is_paused_hands_out_nothing_until_it_is_resumed(
        self, rig: Rig, broker: Broker
    ) -> None:
        topic = new_topic(broker)
        partition = TopicPartition(topic, 0)
        with joined(broker, rig.membership(topic)) as session:
            broker.send(numbered(topic, range(10)))
            first = take(session, 1, max_records=1)
            session.pause([partition])
            paused = [session.poll(100, 0.1) for _ in range(5)]
            session.resume([partition])
            rest = take(session, 9)

        assert paused == [[]] * 5
        assert numbers(first + rest) == list(range(10))

    @pytest.mark.parametrize("after_s", [0.0, 1.0])
    def test_a_wake_before_or_during_a_poll_ends_it(
        self, rig: Rig, broker: Broker, after_s: float
    ) -> None:
        topic = new_topic(broker)
        with joined(broker, rig.membership(topic)) as session:
            session.poll(1, 0.5)
            waker = threading.Timer(after_s, session.wake)
            waker.start()
            if not after_s:
                waker.join()
            began, cpu_s = time.monotonic(), time.process_time()
            found = session.poll(1, LONG_S)
            took_s = time.monotonic() - began
            waker.join()

        assert found == []
        assert took_s < after_s + 1.0  # 0.02 s and what a busy machine adds
        assert time.process_time() - cpu_s < 1.0

    def test_reading_by_nobody_goes_on_where_it_is_told(self, broker: Broker) -> None:
        topic = new_topic(broker)
        ((partition, (first, following)),) = broker.ends(topic).items()
        assert first == following
        broker.send(numbered(topic, range(10)))
        ((_, (first, following)),) = broker.ends(topic).items()

        some = broker.read(topic, after={partition: first}, max_records=4)
        rest = broker.read(topic, after=after(some), max_records=100)

        assert numbers(some) == [0, 1, 2, 3]
        assert numbers(rest) == [4, 5, 6, 7, 8, 9]
        assert first <= some[0].offset
        assert rest[-1].offset < following
        for end in (after(rest), {partition: following}):
            assert broker.read(topic, after=end, max_records=100) == []

    def test_sessions_and_brokers_close_twice_and_say_so(self, rig: Rig) -> None:
        broker = rig.open()
        topic = new_topic(broker)
        session = broker.join(rig.membership(topic), Listener())
        session.poll(1, 0.1)

        session.close()
        session.close()
        with pytest.raises(HeadraceError, match="closed"):
            session.poll(1, 0.1)
        with pytest.raises(HeadraceError, match="closed"):
            session.produce(numbered(topic, [1]), {})
        broker.close()
        broker.close()
        with pytest.raises(HeadraceError, match="closed"):
            broker.send(numbered(topic, [1]))

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
            found = take(session, 20)
            for start in range(0, 20, 5):
                some = found[start : start + 5]
                session.produce(numbered(sink, numbers(some)), after(some))
            assert session.flush(SETTLES_S)
            assert numbers(everything(broker, sink)) == list(range(20))
        broker.send(numbered(topic, [20]))

        assert numbers(taken(broker, membership, 1)) == [20]

    def test_answers_keep_the_timestamps_that_they_are_written_with(
        self, rig: Rig, broker: Broker, delivery: Delivery
    ) -> None:
        topic, sink = new_topic(broker), new_topic(broker)
        # Whole milliseconds, of which some are no exact floats, on both sides of them.
        first_ms = int(time.time() * 1000) - 40_000  # noqa: TID251  # brokers refuse what is too old
        times_ms = [first_ms + 37 * number for number in range(30)]
        broker.send(numbered(topic, [0]))
        with joined(broker, rig.membership(topic, delivery=delivery)) as session:
            taken = take(session, 1)
            answers = [
                NewRecord(topic=sink, key=None, value=b"%d" % at, timestamp_s=at_ms / 1000)
                for at, at_ms in enumerate(times_ms)
            ]
            session.produce(answers, after(taken))
            assert session.flush(SETTLES_S)

        assert [round(one.timestamp_s * 1000, 3) for one in everything(broker, sink)] == times_ms

    def test_one_deliver_writes_to_several_topics_and_partitions(
        self, rig: Rig, broker: Broker, delivery: Delivery
    ) -> None:
        topic, sink = new_topic(broker, records=9), new_topic(broker, partitions=3)
        dead = new_topic(broker)
        with joined(broker, rig.membership(topic, delivery=delivery)) as session:
            found = take(session, 9)
            answers = numbered(sink, range(8), keys=8)
            session.produce([*answers, *numbered(dead, [8])], after(found))
            assert session.flush(SETTLES_S)

        assert sorted(numbers(everything(broker, sink))) == list(range(8))
        assert numbers(everything(broker, dead)) == [8]

    def test_nothing_is_delivered_and_nothing_done_without_harm(
        self, rig: Rig, broker: Broker, delivery: Delivery
    ) -> None:
        topic, sink = new_topic(broker, records=3), new_topic(broker)
        membership = rig.membership(topic, delivery=delivery)
        with joined(broker, membership) as session:
            found = take(session, 3)
            session.produce([], {})
            session.produce(numbered(sink, [0]), {})
            rig.finish(session, found[:1])

        assert numbers(everything(broker, sink)) == [0]
        assert numbers(taken(broker, membership, 2)) == [1, 2]

    def test_what_cannot_be_written_moves_nothing(
        self, rig: Rig, broker: Broker, delivery: Delivery
    ) -> None:
        topic, sink = new_topic(broker, records=5), new_topic(broker)
        membership = rig.membership(topic, delivery=delivery)
        bad = NewRecord(topic=sink, key=None, value=b"99", partition=77)
        with joined(broker, membership) as session:
            found = take(session, 5)
            with pytest.raises(HeadraceError):
                self._produce(session, [*numbered(sink, [0, 1]), bad], after(found))

        assert numbers(taken(broker, membership, 5)) == [0, 1, 2, 3, 4]
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
        topic, sink = new_topic(broker, partitions=2), new_topic(broker)
        membership = rig.membership(topic, delivery=delivery)
        rng = random.Random(9)  # noqa: S311  # moments, no secrets
        for kill in range(rig.kills):
            part = range(kill * rig.copied // rig.kills, (kill + 1) * rig.copied // rig.kills)
            broker.send(numbered(topic, part, keys=50))
            with member_process(rig, "copy", membership, sink) as process:
                assert line_of(process) == "joined"
                if kill % 2:
                    assert line_of(process) == "copies"
                time.sleep(rng.uniform(0, 0.03))
        with member_process(rig, "copy", membership, sink) as process:
            assert process.wait(timeout=120) == 0

        copied = numbers(everything(broker, sink))
        assert set(copied) == set(range(rig.copied))
        if delivery is Delivery.EXACTLY_ONCE:
            assert len(copied) == rig.copied
