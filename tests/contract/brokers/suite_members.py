"""A group goes on where it was or is put; members share it, and lose nothing when one goes."""

import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from headrace.core import FailedPreconditionError, HeadraceError, InvalidArgumentError
from headrace.streaming.broker import Broker, ConsumerSession, Delivery, StartPosition
from headrace.streaming.records import Record, TopicPartition
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
    retried,
    settle,
    take,
    taken,
)


class Members:
    def test_a_new_group_begins_at_the_latest_record_though_it_read_nothing(
        self, rig: Rig, broker: Broker
    ) -> None:
        topic = new_topic(broker, records=5)
        membership, listener = rig.membership(topic, start=StartPosition.LATEST), Listener()
        with joined(broker, membership, listener) as session:
            settle(session, lambda: bool(listener.held))
            assert session.flush(SETTLES_S)
        broker.send(numbered(topic, range(5, 8)))

        with joined(broker, membership) as session:
            found = take(session, 3)
            broker.send(numbered(topic, [8]))
            found += take(session, 1)

        assert numbers(found) == [5, 6, 7, 8]

    def test_a_new_group_begins_at_a_time(self, rig: Rig, broker: Broker) -> None:
        topic = new_topic(broker, records=5)
        time.sleep(0.1)
        start_s = time.time()  # noqa: TID251  # the time that is asked for
        time.sleep(0.1)
        broker.send(numbered(topic, range(5, 8)))

        membership = rig.membership(topic, start=StartPosition.LATEST, start_s=start_s)
        assert numbers(taken(broker, membership, 3)) == [5, 6, 7]

    def test_a_group_that_has_read_goes_on_whatever_its_start(
        self, rig: Rig, broker: Broker
    ) -> None:
        topic = new_topic(broker, records=10)
        membership = rig.membership(topic)
        with joined(broker, membership) as session:
            found = take(session, 4, max_records=4)
            rig.finish(session, found[:4])

        again = rig.membership(topic, group=membership.group, start=StartPosition.LATEST)
        assert numbers(taken(broker, again, 6)) == [4, 5, 6, 7, 8, 9]

    def test_what_is_done_stays_done_and_what_is_not_comes_again(
        self, rig: Rig, broker: Broker
    ) -> None:
        topic = new_topic(broker, records=10)
        membership = rig.membership(topic)
        with joined(broker, membership) as session:
            found = take(session, 10)
            rig.finish(session, found[:6])

        again = taken(broker, membership, 4)
        other = rig.membership(topic, group=membership.group, member="two")
        once_more = taken(broker, other, 4)

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
            found = take(session, 10)
            rig.finish(session, found[:8])

        own = Listener(offsets={found[0].topic_partition: found[3].offset})
        assert numbers(taken(broker, membership, 7, own)) == list(range(3, 10))

    def test_a_state_that_names_a_place_which_was_not_gained_is_refused(
        self, rig: Rig, broker: Broker
    ) -> None:
        strange = Listener(offsets={TopicPartition("elsewhere", 3): 0})
        with (
            joined(broker, rig.membership(new_topic(broker)), strange) as session,
            pytest.raises(InvalidArgumentError, match="elsewhere"),
        ):
            take(session, 1)

    def test_two_groups_read_all_each(self, rig: Rig, broker: Broker) -> None:
        topic = new_topic(broker, records=5)

        with (
            joined(broker, rig.membership(topic)) as one,
            joined(broker, rig.membership(topic)) as two,
        ):
            assert numbers(take(one, 5)) == [0, 1, 2, 3, 4]
            assert numbers(take(two, 5)) == [0, 1, 2, 3, 4]

    def test_a_group_says_where_it_is(self, rig: Rig, broker: Broker) -> None:
        topic = new_topic(broker, records=10)
        membership = rig.membership(topic)

        assert broker.committed(new_name("nobody"), topic) == {}
        with joined(broker, membership) as session:
            found = take(session, 10)
            rig.finish(session, found[:6])
            (committed,) = broker.committed(membership.group, topic).items()
        partition, offset = committed

        assert partition == TopicPartition(topic, 0)
        assert found[5].offset < offset <= found[6].offset

    def test_a_group_is_put_elsewhere_while_no_member_runs(self, rig: Rig, broker: Broker) -> None:
        topic = new_topic(broker, records=10)
        membership = rig.membership(topic)
        with joined(broker, membership) as session:
            found = take(session, 10)
            rig.finish(session, found)
            with pytest.raises(FailedPreconditionError, match=membership.group):
                broker.set_committed(membership.group, {found[0].topic_partition: found[7].offset})

        offsets = {found[0].topic_partition: found[7].offset}
        retried(lambda: broker.set_committed(membership.group, offsets), FailedPreconditionError)
        assert numbers(taken(broker, membership, 3)) == [7, 8, 9]

    def test_a_group_that_never_was_is_put_somewhere(self, rig: Rig, broker: Broker) -> None:
        topic = new_topic(broker, records=10)
        found = everything(broker, topic)
        membership = rig.membership(topic, start=StartPosition.LATEST)
        broker.set_committed(membership.group, {found[0].topic_partition: found[4].offset})

        assert numbers(taken(broker, membership, 6)) == [4, 5, 6, 7, 8, 9]

    @pytest.mark.parametrize(
        ("heir", "delivery"),
        [("two", Delivery.AT_LEAST_ONCE), *(("one", delivery) for delivery in Delivery)],
    )
    def test_a_member_that_is_killed_is_replaced(
        self, rig: Rig, broker: Broker, heir: str, delivery: Delivery
    ) -> None:
        if delivery is Delivery.EXACTLY_ONCE and not broker.abilities.exactly_once:
            pytest.skip("this broker cannot deliver exactly once")
        topic, sink, group = new_topic(broker, records=20), new_topic(broker), new_name("group")
        membership = rig.membership(topic, group=group, delivery=delivery)
        with member_process(rig, "half", membership, sink) as process:
            assert line_of(process) == "joined"
            assert line_of(process) == "holds"
        done = numbers(everything(broker, sink))

        found = taken(broker, replace(membership, member=heir), 20 - len(done))

        assert done
        assert numbers(found) == list(range(len(done), 20))

    def test_members_share_what_comes_and_nothing_is_lost_when_one_goes(
        self, rig: Rig, broker: Broker
    ) -> None:
        topic, group = new_topic(broker, partitions=4, records=100, keys=20), new_name("group")
        found: list[Record] = []
        first, second = Listener(), Listener()
        can = broker.abilities.rebalances and broker.abilities.partitions

        def work(is_done: Callable[[], bool], *sessions: ConsumerSession) -> None:
            deadline = time.monotonic() + SETTLES_S
            while not is_done():
                assert time.monotonic() < deadline, (first, second, numbers(found))
                for session in sessions:
                    some = session.poll(10, 0.1)
                    session.produce([], after(some))
                    found.extend(some)

        with joined(broker, rig.membership(topic, group=group), first) as one:
            work(lambda: bool(found) and (not can or len(first.held) == 4), one)
            with joined(broker, rig.membership(topic, group=group, member="two"), second) as two:
                work(lambda: not can or len(first.held) == len(second.held) == 2, one, two)
                assert not first.held & second.held or not can
                broker.send(numbered(topic, range(100, 200), keys=20))
                known = len(found)
                work(lambda: len(found) > known, one, two)
            work(lambda: len(set(numbers(found))) == 200 and (not can or len(first.held) == 4), one)

        assert set(numbers(found)) == set(range(200))
        if can:
            assert len(first.given_away) == 2

    def test_what_is_done_while_a_place_is_given_away_is_not_read_again(
        self, rig: Rig, broker: Broker
    ) -> None:
        if not (broker.abilities.rebalances and broker.abilities.partitions):
            pytest.skip("places do not move between members of this broker")
        topic, group = new_topic(broker, partitions=2, records=40, keys=10), new_name("group")
        first, second = Listener(), Listener()
        with joined(broker, rig.membership(topic, group=group), first) as one:
            found = take(one, 40)
            first.before = lambda _: one.produce([], after(found))
            with joined(broker, rig.membership(topic, group=group, member="two"), second) as two:
                again: list[Record] = []
                deadline = time.monotonic() + SETTLES_S
                while not second.held:
                    assert time.monotonic() < deadline
                    again += one.poll(10, 0.1) + two.poll(10, 0.1)
                again += two.poll(10, 0.3) + one.poll(10, 0.3)

        assert sorted(numbers(found)) == list(range(40))
        assert again == []
        assert first.lost_partitions == []

    def test_a_member_that_polls_for_nothing_while_it_works_keeps_its_places(
        self, rig: Rig, broker: Broker
    ) -> None:
        topic = new_topic(broker, records=5)
        membership = rig.membership(topic)
        listener = Listener()
        with joined(broker, membership, listener) as session:
            found = take(session, 5)
            ends = time.monotonic() + 1.5 * rig.session_timeout_s
            settle(session, lambda: time.monotonic() > ends)
            rig.finish(session, found)
            assert listener.held == {TopicPartition(topic, 0)}
            assert listener.told == 1

        broker.send(numbered(topic, [5]))
        assert numbers(taken(broker, membership, 1)) == [5]

    def test_a_member_that_was_replaced_can_go_on_no_more(self, rig: Rig, broker: Broker) -> None:
        if not broker.abilities.exactly_once:
            pytest.skip("this broker does not keep members apart")
        topic, sink = new_topic(broker, records=10), new_topic(broker)
        membership = rig.membership(topic, delivery=Delivery.EXACTLY_ONCE)
        with joined(broker, membership) as zombie:
            found = take(zombie, 10)
            with joined(broker, membership) as heir:
                again = take(heir, 10)
                with pytest.raises(HeadraceError):
                    zombie.produce(numbered(sink, range(100, 110)), after(found))
                heir.produce(numbered(sink, numbers(again)), after(again))

        assert numbers(again) == list(range(10))
        assert numbers(everything(broker, sink)) == list(range(10))

    def test_who_holds_records_and_works_keeps_them(self, rig: Rig, broker: Broker) -> None:
        topic, group = new_topic(broker, records=5), new_name("group")
        if broker.abilities.rebalances:
            pytest.skip("records belong to the member that has their place")
        with joined(broker, rig.membership(topic, group=group)) as slow:
            found = take(slow, 5)
            with joined(broker, rig.membership(topic, group=group, member="two")) as other:
                deadline = time.monotonic() + 3 * rig.session_timeout_s
                while time.monotonic() < deadline:
                    assert slow.poll(0, 0.1) == []
                    assert other.poll(10, 0.1) == []
                rig.finish(slow, found)
                assert other.poll(10, 0.2) == []

    def test_what_is_done_at_a_place_of_somebody_else_is_refused(
        self, rig: Rig, broker: Broker
    ) -> None:
        topic, other = new_topic(broker), new_topic(broker)
        with joined(broker, rig.membership(topic)) as session:
            session.poll(1, 0)
            with pytest.raises(HeadraceError, match=f"{other}/0 is (no longer|not) assigned"):
                session.produce([], {TopicPartition(other, 0): 1})
