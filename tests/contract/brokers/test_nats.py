"""NATS JetStream keeps every broker's promises, and some of its own."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import nats
import pytest

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.streaming.broker import Broker
from headrace.streaming.brokers import open_broker
from headrace.streaming.records import NewRecord, Record, TopicPartition
from tests.contract.brokers.nats_servers import NatsServer, running_nats
from tests.contract.brokers.rig import (
    Rig,
    everything,
    joined,
    new_name,
    new_topic,
    numbered,
    numbers,
    take,
    taken,
)
from tests.contract.brokers.suite import BrokerContract

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server() -> Iterator[NatsServer]:
    with running_nats() as running:
        yield running


@pytest.fixture
def rig(server: NatsServer, tmp_path: Path) -> Rig:
    return Rig(
        url=server.url,
        home=tmp_path,
        session_timeout_s=1.0,
        counts_deliveries=True,
        stop=server.stop,
        start=server.start,
    )


class TestNats(BrokerContract):
    """All that a broker promises."""


def test_members_are_done_with_their_own_messages_only(broker: Broker, rig: Rig) -> None:
    topic, group = new_topic(broker, records=2), new_name("group")
    with joined(broker, rig.membership(topic, group=group)) as one:
        first = take(one, 1, max_records=1)
        with joined(broker, rig.membership(topic, group=group, member="two")) as two:
            second = take(two, 1, max_records=1)
            rig.finish(two, second)
            (committed,) = broker.committed(group, topic).values()

    assert numbers(first + second) == [0, 1]
    assert committed == first[0].offset


def test_an_answer_that_is_there_is_not_written_again_but_another_groups_is(
    broker: Broker, rig: Rig
) -> None:
    topic, sink = new_topic(broker), new_topic(broker)
    source = Record(topic_partition=TopicPartition(topic, 0), offset=1, key=None, value=b"1")
    answer = NewRecord(topic=sink, key=b"k", value=b"1", source=source)
    group = new_name("group")
    for name in (group, group, new_name("group")):
        with joined(broker, rig.membership(topic, group=name)) as session:
            session.produce([answer], {})

    assert numbers(everything(broker, sink)) == [1, 1]


def test_a_topic_that_another_stream_keeps_is_read_from_there(
    broker: Broker, rig: Rig, server: NatsServer
) -> None:
    prefix = new_name("orders")
    topic = f"{prefix}.new"

    async def make() -> None:
        async with await nats.connect(server.url) as client:
            stream = client.jetstream()
            await stream.add_stream(name=prefix, subjects=[f"{prefix}.>"])
            await stream.publish(f"{prefix}.old", b"7")
            await stream.publish(topic, b"8", headers={"traceparent": "00"})

    asyncio.run(make())
    broker.create_topic(topic)

    (found,) = taken(broker, rig.membership(topic), 1)
    assert (found.value, found.headers, found.offset) == (b"8", (("traceparent", b"00"),), 2)
    assert numbers(everything(broker, topic)) == [8]


def test_a_topic_with_dots_is_a_subject_with_parts(broker: Broker) -> None:
    topic = f"{new_name('a')}.b.c_d"
    broker.create_topic(topic)
    broker.send(numbered(topic, [1, 2]))

    assert numbers(everything(broker, topic)) == [1, 2]
    with pytest.raises(InvalidArgumentError, match="no token between dots"):
        broker.create_topic("a..b")


def test_a_record_larger_than_the_server_takes_is_refused_and_harms_nobody(
    broker: Broker,
) -> None:
    topic = new_topic(broker)

    with pytest.raises(InvalidArgumentError, match="max_payload"):
        broker.send([NewRecord(topic=topic, key=None, value=bytes(2_000_000))])
    broker.send(numbered(topic, [1]))
    assert numbers(everything(broker, topic)) == [1]


def test_a_group_that_is_deleted_under_its_member_is_said(
    broker: Broker, rig: Rig, server: NatsServer
) -> None:
    topic, group = new_topic(broker), new_name("group")

    async def delete() -> None:
        async with await nats.connect(server.url) as client:
            await client.jetstream().delete_consumer(topic, group)

    with joined(broker, rig.membership(topic, group=group)) as session:
        assert session.poll(1, 0.1) == []
        asyncio.run(delete())
        with pytest.raises(FailedPreconditionError, match="was deleted or moved"):
            take(session, 1)


def test_a_wrong_password_is_said_and_not_shown(tmp_path: Path) -> None:
    with running_nats("--user", "stream", "--pass", "open") as server:
        right = open_broker(f"nats://stream:open@127.0.0.1:{server.port}", home=tmp_path)
        right.create_topic("t")
        right.close()
        wrong = open_broker(f"nats://stream:sesame@127.0.0.1:{server.port}", home=tmp_path)
        with pytest.raises(FailedPreconditionError, match="refuses the credentials") as told:
            wrong.create_topic("t")
        wrong.close()

    assert "sesame" not in str(told.value)
