"""Redis and Valkey keep every broker's promises, and some of their own."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from headrace.core import (
    FailedPreconditionError,
    NotFoundError,
)
from headrace.streaming.broker import Broker
from headrace.streaming.brokers import open_broker
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
    take,
    taken,
)
from tests.contract.brokers.suite import BrokerContract
from tests.contract.redis_servers import NoServerError, RedisServer, running_server
from tests.ports import free_port

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", params=["redis", pytest.param("valkey", marks=pytest.mark.long)])
def server(request: pytest.FixtureRequest) -> Iterator[tuple[RedisServer, int]]:
    try:
        with running_server(request.param) as server:
            server.stop()
            port = free_port()
            server.start("--port", str(port), "--appendonly", "yes")
            yield server, port
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.fixture
def rig(server: tuple[RedisServer, int], tmp_path: Path) -> Rig:
    running, port = server
    return Rig(
        url=f"redis://127.0.0.1:{port}/0",
        home=tmp_path,
        session_timeout_s=1.0,
        counts_deliveries=True,
        stop=running.stop,
        start=lambda: running.start("--port", str(port), "--appendonly", "yes"),
    )


class TestRedis(BrokerContract):
    """All that a broker promises."""


def test_a_topic_keeps_about_as_many_records_as_it_may_and_skips_those_in_hand(rig: Rig) -> None:
    broker = replace(rig, url=f"{rig.url}?maxlen=100").open()
    topic = new_topic(broker, records=3)
    membership = rig.membership(topic)
    assert numbers(taken(broker, membership, 3)) == [0, 1, 2]
    broker.send(numbered(topic, range(3, 2000)))
    kept = numbers(everything(broker, topic))

    with joined(broker, membership) as session:
        found = numbers(take(session, 1))
        lag = session.lag()[TopicPartition(topic, 0)]
    broker.close()

    assert 100 <= len(kept) < 400
    assert kept[-1] == 1999
    assert found[0] > 2
    assert lag.records >= len(found)


def test_what_was_taken_over_is_not_acknowledged_by_who_had_it(broker: Broker, rig: Rig) -> None:
    topic, group = new_topic(broker, records=5), new_name("group")
    with joined(broker, rig.membership(topic, group=group)) as silent:
        found = take(silent, 5)
        time.sleep(1.5 * rig.session_timeout_s)
        membership = rig.membership(topic, group=group, member="two")
        with joined(broker, membership) as other:
            assert numbers(take(other, 5)) == [0, 1, 2, 3, 4]
            silent.produce([], after(found))
            (committed,) = broker.committed(group, topic).values()

    assert committed == found[0].offset


def test_a_key_of_another_kind_is_no_topic(
    server: tuple[RedisServer, int], broker: Broker, rig: Rig
) -> None:
    name = new_name("text")
    with redis.Redis(port=server[1]) as client:
        client.set(name, "x")

    with pytest.raises(FailedPreconditionError, match="a string exists under this key"):
        broker.create_topic(name)
    with pytest.raises(FailedPreconditionError, match="something other than a stream"):
        broker.send(numbered(name, [1]))
    with pytest.raises(NotFoundError, match=name):
        broker.join(rig.membership(name), Listener())


def test_a_full_server_is_waited_for(
    server: tuple[RedisServer, int], broker: Broker, rig: Rig
) -> None:
    topic, sink = new_topic(broker, records=5), new_topic(broker)
    with redis.Redis(port=server[1]) as client, joined(broker, rig.membership(topic)) as session:
        found = take(session, 5)
        client.config_set("maxmemory", "1")
        try:
            session.produce(numbered(sink, numbers(found)), after(found))
            assert "memory is full" in session.problem
            assert not session.flush(0.3)
        finally:
            client.config_set("maxmemory", "0")
        assert session.flush(10)
        assert session.problem == ""

    assert numbers(everything(broker, sink)) == [0, 1, 2, 3, 4]


def test_a_wrong_password_is_said_and_not_shown(
    server: tuple[RedisServer, int], tmp_path: Path
) -> None:
    url = f"redis://:sesame@127.0.0.1:{server[1]}/0"
    with redis.Redis(port=server[1]) as client:
        client.config_set("requirepass", "other")
    try:
        broker = open_broker(url, home=tmp_path)
        with pytest.raises(FailedPreconditionError, match="refuses the name or password") as told:
            broker.create_topic("t")
        broker.close()
    finally:
        with redis.Redis(port=server[1], password="other") as client:  # noqa: S106  # a test's
            client.config_set("requirepass", "")

    assert "sesame" not in str(told.value)
