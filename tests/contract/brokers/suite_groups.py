"""A group goes on where it was, or where it is put."""

import time

import pytest

from headrace.core import FailedPreconditionError
from headrace.streaming.broker import Broker, StartPosition
from headrace.streaming.records import TopicPartition
from tests.contract.brokers.rig import (
    Listener,
    Rig,
    after,
    everything,
    joined,
    new_name,
    new_topic,
    numbered,
    numbers,
    settle,
    take,
)


class Groups:
    def test_a_new_group_begins_at_the_latest_record_though_it_read_nothing(
        self, rig: Rig, broker: Broker
    ) -> None:
        topic = new_topic(broker, records=5)
        membership, listener = rig.membership(topic, start=StartPosition.LATEST), Listener()
        with joined(broker, membership, listener) as session:
            settle(session, lambda: bool(listener.held), within_s=rig.settles_s)
            assert session.flush(rig.settles_s)
        broker.send(numbered(topic, range(5, 8)))

        with joined(broker, membership) as session:
            found = take(session, 3, within_s=rig.settles_s)
            broker.send(numbered(topic, [8]))
            found += take(session, 1, within_s=rig.settles_s)

        assert numbers(found) == [5, 6, 7, 8]

    def test_a_new_group_begins_at_a_time(self, rig: Rig, broker: Broker) -> None:
        topic = new_topic(broker, records=5)
        time.sleep(0.1)
        start_s = time.time()  # noqa: TID251  # the time that is asked for
        time.sleep(0.1)
        broker.send(numbered(topic, range(5, 8)))

        membership = rig.membership(topic, start=StartPosition.LATEST, start_s=start_s)
        with joined(broker, membership) as session:
            assert numbers(take(session, 3, within_s=rig.settles_s)) == [5, 6, 7]

    def test_a_group_that_has_read_goes_on_whatever_its_start(
        self, rig: Rig, broker: Broker
    ) -> None:
        topic = new_topic(broker, records=10)
        membership = rig.membership(topic)
        with joined(broker, membership) as session:
            found = take(session, 4, within_s=rig.settles_s, max_records=4)
            session.produce([], after(found[:4]))
            assert session.flush(rig.settles_s)

        again = rig.membership(topic, group=membership.group, start=StartPosition.LATEST)
        with joined(broker, again) as session:
            assert numbers(take(session, 6, within_s=rig.settles_s)) == [4, 5, 6, 7, 8, 9]

    def test_what_is_done_stays_done_and_what_is_not_comes_again(
        self, rig: Rig, broker: Broker
    ) -> None:
        topic = new_topic(broker, records=10)
        membership = rig.membership(topic)
        with joined(broker, membership) as session:
            found = take(session, 10, within_s=rig.settles_s)
            session.produce([], after(found[:6]))
            assert session.flush(rig.settles_s)

        with joined(broker, membership) as session:
            again = take(session, 4, within_s=rig.settles_s)
        other = rig.membership(topic, group=membership.group, member="two")
        with joined(broker, other) as session:
            once_more = take(session, 4, within_s=rig.settles_s)

        assert {record.deliveries for record in found} == {1}
        assert numbers(again) == [6, 7, 8, 9]
        assert numbers(once_more) == [6, 7, 8, 9]
        assert {one.deliveries for one in once_more} == {3 if rig.counts_deliveries else 1}

    def test_a_member_with_a_state_of_its_own_says_where_it_reads(
        self, rig: Rig, broker: Broker
    ) -> None:
        topic = new_topic(broker, records=10)
        membership = rig.membership(topic)
        with joined(broker, membership) as session:
            found = take(session, 10, within_s=rig.settles_s)
            session.produce([], after(found[:8]))
            assert session.flush(rig.settles_s)

        own = Listener(offsets={found[0].topic_partition: found[3].offset})
        with joined(broker, membership, own) as session:
            assert numbers(take(session, 7, within_s=rig.settles_s)) == [3, 4, 5, 6, 7, 8, 9]

    def test_two_groups_read_all_each(self, rig: Rig, broker: Broker) -> None:
        topic = new_topic(broker, records=5)

        with (
            joined(broker, rig.membership(topic)) as one,
            joined(broker, rig.membership(topic)) as two,
        ):
            assert numbers(take(one, 5, within_s=rig.settles_s)) == [0, 1, 2, 3, 4]
            assert numbers(take(two, 5, within_s=rig.settles_s)) == [0, 1, 2, 3, 4]

    def test_a_group_says_where_it_is(self, rig: Rig, broker: Broker) -> None:
        topic = new_topic(broker, records=10)
        membership = rig.membership(topic)

        assert broker.committed(new_name("nobody"), topic) == {}
        with joined(broker, membership) as session:
            found = take(session, 10, within_s=rig.settles_s)
            session.produce([], after(found[:6]))
            assert session.flush(rig.settles_s)
            (committed,) = broker.committed(membership.group, topic).items()
        partition, offset = committed

        assert partition == TopicPartition(topic, 0)
        assert found[5].offset < offset <= found[6].offset

    def test_a_group_is_put_elsewhere_while_no_member_runs(self, rig: Rig, broker: Broker) -> None:
        topic = new_topic(broker, records=10)
        membership = rig.membership(topic)
        with joined(broker, membership) as session:
            found = take(session, 10, within_s=rig.settles_s)
            session.produce([], after(found))
            assert session.flush(rig.settles_s)
            with pytest.raises(FailedPreconditionError, match=membership.group):
                broker.set_committed(membership.group, {found[0].topic_partition: found[7].offset})

        self._put(rig, broker, membership.group, {found[0].topic_partition: found[7].offset})
        with joined(broker, membership) as session:
            assert numbers(take(session, 3, within_s=rig.settles_s)) == [7, 8, 9]

    def test_a_group_that_never_was_is_put_somewhere(self, rig: Rig, broker: Broker) -> None:
        topic = new_topic(broker, records=10)
        found = everything(broker, topic)
        membership = rig.membership(topic, start=StartPosition.LATEST)
        broker.set_committed(membership.group, {found[0].topic_partition: found[4].offset})

        with joined(broker, membership) as session:
            assert numbers(take(session, 6, within_s=rig.settles_s)) == [4, 5, 6, 7, 8, 9]

    @staticmethod
    def _put(rig: Rig, broker: Broker, group: str, offsets: dict[TopicPartition, int]) -> None:
        """A server may take a while to know that a member which comes back by name has left."""
        deadline = time.monotonic() + rig.settles_s + rig.session_timeout_s
        while True:
            try:
                return broker.set_committed(group, offsets)
            except FailedPreconditionError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)
