"""A cluster's readers, members and writers keep what is promised, whatever a URL says."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.streaming.broker import Membership
from headrace.streaming.brokers.kafka_url import kafka_options

MEMBER = Membership(group="g", member="m", topics=("t",), session_timeout_s=8.0)


def test_members_are_static_and_cooperative_unless_told_otherwise() -> None:
    ours = kafka_options("kafka://a", {})
    dynamic = kafka_options("kafka://a?membership=dynamic", {})
    eager = kafka_options("kafka://a?partition.assignment.strategy=range", {})

    assert ours.member(MEMBER)["group.instance.id"] == "m"
    assert "group.instance.id" not in dynamic.member(MEMBER)
    assert ours.is_cooperative
    assert ours.member(MEMBER)["partition.assignment.strategy"] == "cooperative-sticky"
    assert not eager.is_cooperative
    assert eager.member(MEMBER)["partition.assignment.strategy"] == "range"


def test_the_new_protocol_of_groups_keeps_its_own_times() -> None:
    options = kafka_options("kafka://a?group.protocol=consumer", {})
    member = options.member(MEMBER)

    assert options.is_cooperative
    assert not {"session.timeout.ms", "heartbeat.interval.ms"} & set(member)
    assert "partition.assignment.strategy" not in member


@given(st.floats(0.01, 3600))
def test_a_member_gives_signs_of_life_in_time(session_timeout_s: float) -> None:
    membership = Membership(
        group="g", member="m", topics=("t",), session_timeout_s=session_timeout_s
    )
    made = kafka_options("kafka://a", {}).member(membership)
    session_ms, beat_ms = int(made["session.timeout.ms"]), int(made["heartbeat.interval.ms"])

    assert beat_ms <= 3000
    assert 3 * beat_ms < session_ms <= int(made["max.poll.interval.ms"])


@pytest.mark.parametrize(("said", "made_ms"), [("", 10_000), ("5000", 5000), ("60000", 15_000)])
def test_a_transaction_that_was_left_open_holds_readers_up_for_15_s_at_most(
    said: str, made_ms: int
) -> None:
    query = f"?transaction.timeout.ms={said}" if said else ""
    made = kafka_options(f"kafka://a{query}", {}).producer(transactional_id="x")

    assert made["transaction.timeout.ms"] == made_ms
    assert int(made["message.timeout.ms"]) <= made_ms


def test_what_is_promised_does_not_depend_on_options() -> None:
    options = kafka_options("kafka://a?compression=zstd&linger.ms=9", {})
    producer = options.producer()

    assert producer["enable.idempotence"] is True
    assert (producer["compression.type"], producer["linger.ms"]) == ("zstd", "9")
    assert options.member(MEMBER)["isolation.level"] == "read_committed"
    assert options.member(MEMBER)["enable.auto.commit"] is False


def test_secrets_do_not_show() -> None:
    assert "hush" not in repr(kafka_options("kafka://a?sasl.password=hush", {}))


@given(st.integers(1, 10**7))
def test_a_member_stops_asking_where_it_begins_before_it_is_missed(poll_ms: int) -> None:
    usual = kafka_options("kafka://a", {})
    options = kafka_options(f"kafka://a?max.poll.interval.ms={poll_ms}", {})

    assert options.reader()["max.poll.interval.ms"] == usual.reader()["max.poll.interval.ms"]
    assert usual.longest_look_s == pytest.approx(20.0)
    assert options.longest_look_s <= min(20.0, 0.7 * poll_ms / 1000)
