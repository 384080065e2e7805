"""What Kafka refuses, loses or does not answer is told with the way out."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from confluent_kafka import Consumer, Producer
from confluent_kafka import TopicPartition as KafkaPartition

from headrace.core import (
    InvalidArgumentError,
    NotFoundError,
    SystemClock,
    UnauthenticatedError,
    UnavailableError,
)
from headrace.streaming.broker import Broker, Delivery, GroupProtocol, StartPosition
from headrace.streaming.brokers import open_broker
from headrace.streaming.brokers.kafka.assignment import visit
from headrace.streaming.brokers.kafka.reader import KafkaAdmin
from headrace.streaming.brokers.kafka.url import kafka_options
from headrace.streaming.records import NewRecord, TopicPartition
from tests.brokers.kafka import PASSWORD, SHORT_SESSIONS, KafkaCluster, running_kafka
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
    settle,
    take,
    taken,
)

pytestmark = [pytest.mark.e2e, pytest.mark.jvm]


@pytest.fixture
def rig(kafka: KafkaCluster, tmp_path: Path) -> Rig:
    url = f"kafka://{kafka.bootstrap}?fetch.wait.max.ms=20"
    return Rig(url=url, home=tmp_path, session_timeout_s=6.0)


def test_a_visit_makes_a_group_assign_its_partitions_again(rig: Rig, broker: Broker) -> None:
    topic, listener = new_topic(broker, partitions=2), Listener()
    membership, options = rig.membership(topic), kafka_options(rig.url)
    with joined(broker, membership, listener) as session:
        settle(session, lambda: len(listener.held) == 2)
        visit(options.member(membership, GroupProtocol.CLASSIC), [topic], options.address)
        settle(session, lambda: bool(listener.given_away) and len(listener.held) == 2)

    assert not listener.lost_partitions


@pytest.mark.parametrize("listener", ["SASL_PLAINTEXT", "SASL_SSL"])
def test_a_user_is_let_in_by_the_password_only(
    kafka: KafkaCluster, tmp_path: Path, listener: str
) -> None:
    url = kafka.urls()[f"Kafka, {listener}"]
    broker = open_broker(url, home=tmp_path)
    topic = new_topic(broker, records=3)
    assert numbers(everything(broker, topic)) == [0, 1, 2]
    broker.close()

    with (
        closing(open_broker(url.replace(PASSWORD, "hush"), home=tmp_path)) as broker,
        pytest.raises(UnauthenticatedError, match=r"check sasl\.username") as told,
    ):
        broker.ends("t")
    assert "hush" not in str(told.value)


@pytest.mark.parametrize("delivery", list(Delivery))
@pytest.mark.parametrize("headers", [(), (("h", bytes(999_000)),)])
def test_an_answer_that_is_too_large_ends_the_session_with_both_sizes(
    rig: Rig, delivery: Delivery, headers: tuple[tuple[str, bytes], ...]
) -> None:
    broker = replace(rig, url=f"{rig.url}&message.max.bytes=1000000").open()
    topic, sink = new_topic(broker, records=3), new_topic(broker)
    large = NewRecord(
        topic=sink, key=None, value=bytes(2_000 if headers else 1_100_000), headers=headers
    )
    membership = rig.membership(topic, delivery=delivery)
    with joined(broker, membership) as session:
        found = take(session, 3)
        with pytest.raises(InvalidArgumentError, match=r"a record of \d+ bytes .* 1000000 bytes"):
            session.produce([*numbered(sink, [0]), large], after(found))

    assert numbers(taken(broker, membership, 3)) == [0, 1, 2]
    broker.close()


@pytest.mark.long
@pytest.mark.parametrize("delivery", list(Delivery))
def test_an_answer_for_a_topic_that_is_not_there_makes_none(
    rig: Rig, broker: Broker, delivery: Delivery
) -> None:
    topic, sink = new_topic(broker, records=3), new_name("nowhere")
    with joined(broker, rig.membership(topic, delivery=delivery)) as session:
        found = take(session, 3)
        with pytest.raises(NotFoundError, match=sink):
            session.produce(numbered(sink, [0]), after(found))
        with pytest.raises(NotFoundError, match=sink):
            session.poll(1, 0.1)

    with pytest.raises(NotFoundError, match=sink):
        broker.ends(sink)


def test_a_session_timeout_that_the_servers_refuse_says_what_they_take(
    rig: Rig, broker: Broker
) -> None:
    topic = new_topic(broker)
    with (
        joined(broker, rig.membership(topic, session_timeout_s=0.5)) as session,
        pytest.raises(InvalidArgumentError, match="session_timeout_s of 6 s"),
    ):
        take(session, 1)


@pytest.mark.long
def test_no_protocol_is_chosen_while_the_cluster_cannot_tell_a_groups_configuration(
    tmp_path: Path,
) -> None:
    with running_kafka(tmp_path / "kafka", brokers=3) as cluster:
        url = f"kafka://{cluster.bootstrap}"
        rig = Rig(url=url, home=tmp_path, session_timeout_s=6.0)
        with closing(open_broker(url, home=tmp_path)) as broker:
            topic = new_topic(broker)
            for server in cluster.brokers[1:]:
                server.kill()
            time.sleep(12.0)  # the one that is left has noticed it
            membership = replace(rig.membership(topic), protocol=GroupProtocol.CONSUMER)
            broker.join(membership, Listener()).close()
            membership = replace(membership, protocol=GroupProtocol.AUTO)
            with pytest.raises(
                UnavailableError, match=r"read the configuration of|set the session timeout of"
            ):
                broker.join(membership, Listener())


@pytest.mark.long
def test_members_cost_little_processor_time_while_a_broker_is_down(tmp_path: Path) -> None:
    down_s = 12.0
    with (
        running_kafka(tmp_path / "kafka", brokers=3, options=SHORT_SESSIONS) as cluster,
        closing(open_broker(f"kafka://{cluster.bootstrap}", home=tmp_path)) as broker,
        ExitStack() as stack,
    ):
        rig = Rig(url=f"kafka://{cluster.bootstrap}", home=tmp_path, session_timeout_s=6.0)
        topic = new_topic(broker, partitions=6, records=6)
        sessions = [
            stack.enter_context(
                joined(broker, rig.membership(topic, delivery=delivery, protocol=protocol))
            )
            for delivery in Delivery
            for protocol in (GroupProtocol.CLASSIC, GroupProtocol.CONSUMER)
        ]
        for session in sessions:
            take(session, 6)
        cluster.brokers[0].kill()
        used_s, until = time.process_time(), time.monotonic() + down_s
        while time.monotonic() < until:
            for session in sessions:
                session.poll(1, 0.1)
        used_s = time.process_time() - used_s

    assert used_s < down_s / 4


@pytest.mark.long
def test_a_request_that_found_no_coordinator_in_time_harms_no_later_one(tmp_path: Path) -> None:
    with running_kafka(tmp_path / "kafka", options=SHORT_SESSIONS) as cluster:
        admin = KafkaAdmin(kafka_options(f"kafka://{cluster.bootstrap}"), SystemClock())
        admin.create_topic("topic", 1, {})
        places = {TopicPartition("topic", 0): 0}
        admin.set_committed("group", places)
        (server,) = cluster.brokers
        server.kill()
        description = admin.request_group("group")
        with pytest.raises(UnavailableError):
            admin.committed("group", list(places))
        with pytest.raises(UnavailableError):
            admin.set_committed("group", places)
        server.start()

        assert description.result(60.0).group_id == "group"
        assert admin.committed("group", list(places)) == places


def test_more_answers_than_the_client_queues_are_all_written(rig: Rig, tmp_path: Path) -> None:
    url = f"{rig.url}&queue.buffering.max.messages=7"
    with closing(open_broker(url, home=tmp_path)) as narrow:
        topic, sink = new_topic(narrow), new_topic(narrow)
        narrow.send(numbered(topic, range(500)))
        with joined(narrow, rig.membership(topic)) as session:
            found = take(session, 500)
            session.produce(numbered(sink, numbers(found)), after(found))
            assert session.flush(SETTLES_S)

        assert numbers(everything(narrow, sink)) == list(range(500))


def test_who_takes_nothing_for_long_gets_all_later(rig: Rig, broker: Broker) -> None:
    topic = new_topic(broker, records=2000)
    with joined(broker, rig.membership(topic)) as session:
        found = take(session, 1, max_records=1)
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:  # far more calls than are put aside
            assert session.poll(0, 0.0) == []
        found += take(session, 1999)

    assert numbers(found) == list(range(2000))


def test_a_broker_that_hangs_while_places_come_is_waited_for(
    kafka: KafkaCluster, rig: Rig, broker: Broker
) -> None:
    topic = new_topic(broker, records=5)
    (server,) = kafka.brokers

    def hang() -> None:
        server.freeze()
        threading.Timer(3.0, server.thaw).start()

    found = taken(broker, rig.membership(topic), 5, Listener(on_gain=hang))

    assert numbers(found) == [0, 1, 2, 3, 4]


@pytest.mark.long
def test_a_broker_that_goes_while_places_come_ends_the_session_before_it_is_missed(
    kafka: KafkaCluster, rig: Rig, tmp_path: Path
) -> None:
    poll_s = 9.0
    broker = open_broker(f"{rig.url}&max.poll.interval.ms={poll_s * 1000:.0f}", home=tmp_path)
    topic = new_topic(broker, partitions=8)
    gone: list[float] = []

    def go() -> None:
        kafka.stop()
        gone.append(time.monotonic())

    try:
        with joined(broker, rig.membership(topic), Listener(on_gain=go)) as session:
            with pytest.raises(UnavailableError, match="cannot read the offsets of group"):
                take(session, 1)
            took_s = time.monotonic() - gone[0]
        broker.close()
    finally:
        kafka.start()

    assert took_s < poll_s


@contextmanager
def moving(rig: Rig, group: str, offsets: Mapping[TopicPartition, int]) -> Iterator[Producer]:
    """An open transaction of somebody else that puts a group at these offsets."""
    servers = {"bootstrap.servers": urlsplit(rig.url).netloc}
    producer = Producer({**servers, "transactional.id": new_name("mover")})
    producer.init_transactions()
    producer.begin_transaction()
    member = Consumer({**servers, "group.id": group})
    moved = [KafkaPartition(*partition, offset) for partition, offset in offsets.items()]
    producer.send_offsets_to_transaction(moved, member.consumer_group_metadata())
    member.close()
    yield producer


def test_where_a_group_is_is_not_told_while_a_transaction_is_about_to_move_it(
    rig: Rig, broker: Broker
) -> None:
    topic, group = new_topic(broker), new_name("group")
    partition = TopicPartition(topic, 0)
    with moving(rig, group, {partition: 4}) as producer:
        with pytest.raises(UnavailableError, match="an open transaction covers the offsets"):
            broker.committed(group, topic)
        threading.Timer(1.0, producer.commit_transaction).start()
        told = broker.committed(group, topic)

    assert told == {partition: 4}


def test_a_member_waits_for_a_transaction_and_does_not_begin_anew(rig: Rig, broker: Broker) -> None:
    topic = new_topic(broker, records=10)
    membership = rig.membership(topic, start=StartPosition.EARLIEST)
    with moving(rig, membership.group, {TopicPartition(topic, 0): 4}) as producer:
        threading.Timer(2.0, producer.commit_transaction).start()
        found = taken(broker, membership, 6)

    assert numbers(found) == [4, 5, 6, 7, 8, 9]
