"""Topics are made and looked at by people, who also mistype them; servers stop and start."""

import time
from contextlib import suppress

import pytest

from headrace.core import HeadraceError, InvalidArgumentError, NotFoundError
from headrace.streaming.broker import Broker, ConsumerSession, ReplacedError
from headrace.streaming.records import TopicPartition
from tests.contract.brokers.rig import (
    SETTLES_S,
    Listener,
    Rig,
    after,
    everything,
    joined,
    new_name,
    new_topic,
    numbered,
    numbers,
    retried,
    take,
)


class Asking:
    def test_a_topic_is_made_once(self, broker: Broker) -> None:
        topic = new_topic(broker, records=3)

        broker.create_topic(topic, partitions=1)

        assert numbers(everything(broker, topic)) == [0, 1, 2]

    def test_a_topic_has_the_partitions_that_were_asked_for(self, broker: Broker) -> None:
        topic = new_topic(broker, partitions=3)
        count = 3 if broker.abilities.partitions else 1

        assert set(broker.ends(topic)) == {TopicPartition(topic, number) for number in range(count)}

    @pytest.mark.parametrize("partitions", [0, -1])
    def test_a_topic_of_no_partitions_is_refused(self, broker: Broker, partitions: int) -> None:
        with pytest.raises(InvalidArgumentError, match="partition"):
            broker.create_topic(new_name("topic"), partitions=partitions)

    @pytest.mark.parametrize("topic", ["", "two words", "a/b", "..", "é", "x" * 250, "a\0b"])
    def test_a_name_that_no_topic_can_have_is_refused(self, broker: Broker, topic: str) -> None:
        with pytest.raises(InvalidArgumentError, match="topic"):
            broker.create_topic(topic)

    def test_a_topic_that_is_not_there_is_named(self, rig: Rig, broker: Broker) -> None:
        topic = new_name("nowhere")

        with pytest.raises(NotFoundError, match=topic):
            broker.ends(topic)
        with pytest.raises(NotFoundError, match=topic):
            broker.read(topic, after={TopicPartition(topic, 0): 0}, max_records=1)
        with pytest.raises(NotFoundError, match=topic):
            broker.send(numbered(topic, [1]))
        with pytest.raises(NotFoundError, match=topic):
            broker.join(rig.membership(topic), Listener())

    def test_a_time_has_an_offset(self, broker: Broker) -> None:
        topic = new_topic(broker)
        before_s = time.time()  # noqa: TID251  # the times that are asked for
        time.sleep(0.1)
        broker.send(numbered(topic, range(5)))
        time.sleep(0.1)
        between_s = time.time()  # noqa: TID251  # as above
        time.sleep(0.1)
        broker.send(numbered(topic, range(5, 8)))

        at = {
            when_s: numbers(
                broker.read(topic, after=broker.offsets_at(topic, when_s), max_records=100)
            )
            for when_s in (0.0, before_s, between_s, between_s + 3600)
        }

        assert at == {
            0.0: list(range(8)),
            before_s: list(range(8)),
            between_s: [5, 6, 7],
            between_s + 3600: [],
        }

    def test_lag_counts_what_is_not_done_though_a_place_is_paused(
        self, rig: Rig, broker: Broker
    ) -> None:
        topic = new_topic(broker)
        partition = TopicPartition(topic, 0)
        broker.send(numbered(topic, range(10)))
        with joined(broker, rig.membership(topic)) as session:
            found = take(session, 10)
            session.pause([partition])
            seen = {}
            for done, more in ((0, 0), (4, 0), (10, 0), (10, 90)):
                rig.finish(session, found[:done])
                broker.send(numbered(topic, range(more)))
                deadline = time.monotonic() + SETTLES_S
                while (lag := session.lag()[partition]).records != 10 + more - done:
                    assert time.monotonic() < deadline, lag
                    session.poll(0, 0.1)
                seen[10 + more - done] = lag.seconds

        assert seen[10] is None or 0 < seen[10] < 600
        assert seen[0] in {0, None}

    def test_a_server_that_stops_and_starts_loses_nothing(self, rig: Rig, broker: Broker) -> None:
        if rig.stop is None or rig.start is None:
            pytest.skip("no server of this test's own")
        topic, sink = new_topic(broker, records=10), new_topic(broker)
        with joined(broker, rig.membership(topic)) as session:
            found = take(session, 10)
            session.produce(numbered(sink, numbers(found)), after(found))
            assert session.flush(SETTLES_S)
            assert session.problem == ""
            rig.stop()
            deadline = time.monotonic() + SETTLES_S
            while not session.problem:
                assert time.monotonic() < deadline, "nobody says that the server is away"
                assert session.poll(10, 0.2) == []
            rig.start()
            retried(lambda: broker.send(numbered(topic, range(10, 15))), HeadraceError)
            # Where names are the broker's, a member that lost the answer to its second join may be
            # fenced by its third; a worker then ends, and is started again.
            with suppress(ReplacedError):
                self._deliver(session, sink)
        if set(numbers(everything(broker, sink))) != set(range(15)):
            with joined(broker, rig.membership(topic)) as session:
                self._deliver(session, sink)
        assert set(numbers(everything(broker, sink))) == set(range(15))

    @staticmethod
    def _deliver(session: ConsumerSession, sink: str) -> None:
        found = take(session, 5)
        session.produce(numbered(sink, numbers(found)), after(found))
        assert session.flush(SETTLES_S)
        assert session.problem == ""
