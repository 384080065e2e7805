"""Kafka: what a URL says, and the settings of clients that follow."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import FailedPreconditionError, HeadraceError, InvalidArgumentError
from headrace.streaming.broker import GroupProtocol, Membership
from headrace.streaming.brokers.kafka.url import kafka_options, options_text


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("kafka://one", "one:9092"),
        ("kafka://one:19092", "one:19092"),
        ("kafka://one,two:1,10.0.0.1:65535", "one:9092,two:1,10.0.0.1:65535"),
        ("kafka://[::1]:9093/", "[::1]:9093"),
    ],
)
def test_servers_have_ports(url: str, address: str) -> None:
    options = kafka_options(url, {})

    assert options.address == address
    assert options.client()["bootstrap.servers"] == address


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("kafka://", "'' is not a Kafka server"),
        ("kafka://a,,b", "'' is not a Kafka server"),
        ("kafka://a:0", "'a:0' is not a Kafka server"),
        ("kafka://a:65536", "'a:65536' is not a Kafka server"),
        ("kafka://a b", "'a b' is not a Kafka server"),
        ("kafka://me:word@a", "takes no user before the host"),
        ("kafka://a/topic", "no path or fragment: '/topic'"),
        ("kafka://a?group.id=x", "'group.id' cannot be set.*the stream's own settings"),
        ("kafka://a?acks=0", "'acks' cannot be set.*delivery guarantees"),
        ("kafka://a?plugin.library.paths=x", "would load code"),
        ("kafka://a?linger.ms=1&linger.ms=2", "'linger.ms' is set twice"),
        ("kafka://a?Linger=1", "'Linger' is not an option"),
        ("kafka://a?membership=both", "membership='both'"),
        ("kafka://a?message.max.bytes=big", "message.max.bytes='big'"),
        ("kafka://a?message.max.bytes=0", "message.max.bytes='0'"),
        ("kafka://a?transaction.timeout.ms=-1", "transaction.timeout.ms='-1'"),
    ],
)
def test_what_cannot_be_is_told(url: str, told: str) -> None:
    with pytest.raises(InvalidArgumentError, match=told):
        kafka_options(url, {})


def test_a_secret_comes_from_the_environment_whatever_characters_it_has() -> None:
    options = kafka_options("kafka://a?sasl.password=${WORD}", {"WORD": "a&b=c%20+d${X}"})

    assert options.client()["sasl.password"] == "a&b=c%20+d${X}"


def test_a_variable_that_is_not_set_is_named_and_no_value_shown() -> None:
    with pytest.raises(FailedPreconditionError, match="no variable WORD: ") as told:
        kafka_options("kafka://a?sasl.username=hush&sasl.password=${WORD}", {})

    assert "hush" not in str(told.value)


def test_options_of_a_file_give_way_to_those_of_the_url(tmp_path: Path) -> None:
    file = tmp_path / "kafka.properties"
    file.write_text(
        "# ours\n! and theirs\n\nlinger.ms = 7\nsasl.password=${WORD}\nssl.ca.location=/a=b\n"
    )

    url = f"kafka://a?properties_file={file}&linger.ms=3"
    client = kafka_options(url, {"WORD": "hush"}).client()

    assert (client["linger.ms"], client["sasl.password"]) == ("3", "hush")
    assert client["ssl.ca.location"] == "/a=b"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"linger.ms 7", "line 1 of .* is not a name=value"),
        (b"\nmembership=static", "line 2 of .* is not a name=value"),
        (b"group.id=x", "'group.id' cannot be set"),
        (b"\xff\xfe", "not UTF-8 text"),
        (b"#" * ((1 << 20) + 1), "exceed 1048576 bytes"),
    ],
)
def test_a_file_that_says_something_wrong_is_named(
    tmp_path: Path, content: bytes, told: str
) -> None:
    file = tmp_path / "kafka.properties"
    file.write_bytes(content)

    with pytest.raises(HeadraceError, match=told):
        kafka_options(f"kafka://a?properties_file={file}", {})


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match=r"gone: No such file"):
        kafka_options(f"kafka://a?properties_file={tmp_path / 'gone'}", {})


def test_a_file_of_options_is_read_as_text_for_whoever_asks_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "client.properties"
    file.write_text("sasl.password=${SECRET}\n")

    assert options_text(f"kafka://h?properties_file={file}") == "sasl.password=${SECRET}\n"
    for url in (
        "kafka://h",
        f"kafka://h?properties_file={tmp_path}",
        f"kafka://h?properties_file={tmp_path}/none",
        "kafka://h?properties_file=%00",
        f"log://x?properties_file={file}",
        "kafka://[",
    ):
        assert options_text(url) == ""


CLASSIC = GroupProtocol.CLASSIC
MEMBER = Membership(group="g", member="m", topics=("t",), session_timeout_s=8.0)


def test_members_are_static_and_cooperative_unless_told_otherwise() -> None:
    ours = kafka_options("kafka://a", {})
    dynamic = kafka_options("kafka://a?membership=dynamic", {})
    eager = kafka_options("kafka://a?partition.assignment.strategy=range", {})

    assert ours.member(MEMBER, CLASSIC)["group.instance.id"] == "m"
    assert "group.instance.id" not in dynamic.member(MEMBER, CLASSIC)
    assert ours.is_cooperative(CLASSIC)
    assert ours.member(MEMBER, CLASSIC)["partition.assignment.strategy"] == "cooperative-sticky"
    assert not eager.is_cooperative(CLASSIC)
    assert eager.member(MEMBER, CLASSIC)["partition.assignment.strategy"] == "range"


def test_the_new_protocol_of_groups_keeps_its_own_times() -> None:
    options = kafka_options("kafka://a?partition.assignment.strategy=range", {})
    member = options.member(MEMBER, GroupProtocol.CONSUMER)

    assert options.is_cooperative(GroupProtocol.CONSUMER)
    assert member["group.protocol"] == "consumer"
    assert not {"session.timeout.ms", "heartbeat.interval.ms"} & set(member)
    assert "partition.assignment.strategy" not in member


@given(st.floats(0.01, 3600))
def test_a_member_gives_signs_of_life_in_time(session_timeout_s: float) -> None:
    membership = Membership(
        group="g", member="m", topics=("t",), session_timeout_s=session_timeout_s
    )
    made = kafka_options("kafka://a", {}).member(membership, CLASSIC)
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
    assert options.member(MEMBER, CLASSIC)["isolation.level"] == "read_committed"
    assert options.member(MEMBER, CLASSIC)["enable.auto.commit"] is False


def test_secrets_do_not_show() -> None:
    assert "hush" not in repr(kafka_options("kafka://a?sasl.password=hush", {}))


@given(st.integers(1, 10**7))
def test_a_member_stops_asking_where_it_begins_before_it_is_missed(poll_ms: int) -> None:
    usual = kafka_options("kafka://a", {})
    options = kafka_options(f"kafka://a?max.poll.interval.ms={poll_ms}", {})

    assert options.reader()["max.poll.interval.ms"] == usual.reader()["max.poll.interval.ms"]
    assert usual.max_assign_s == pytest.approx(15.0)
    assert options.max_assign_s <= min(15.0, 0.7 * poll_ms / 1000)
