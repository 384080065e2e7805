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


def test_a_secret_comes_from_the_environment_and_shows_nowhere() -> None:
    url = "kafka://a?sasl.username=hush&sasl.password=${WORD}"
    options = kafka_options(url, {"WORD": "a&b=c%20+d${X}"})

    assert options.client()["sasl.password"] == "a&b=c%20+d${X}"
    with pytest.raises(FailedPreconditionError, match="no variable WORD: ") as told:
        kafka_options(url, {})
    assert "hush" not in f"{options!r}{told.value}"


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
        (None, r"kafka\.properties: No such file"),
    ],
)
def test_a_file_that_says_something_wrong_or_is_not_there_is_named(
    tmp_path: Path, content: bytes | None, told: str
) -> None:
    file = tmp_path / "kafka.properties"
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(HeadraceError, match=told):
        kafka_options(f"kafka://a?properties_file={file}", {})


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


@pytest.mark.parametrize(
    ("query", "protocol", "strategy"),
    [
        ("", CLASSIC, "cooperative-sticky"),
        ("?membership=dynamic", CLASSIC, "cooperative-sticky"),
        ("?partition.assignment.strategy=range", CLASSIC, "range"),
        ("?partition.assignment.strategy=range", GroupProtocol.CONSUMER, None),
    ],
)
def test_members_are_static_and_cooperative_unless_told_otherwise(
    query: str, protocol: GroupProtocol, strategy: str | None
) -> None:
    """The new protocol of groups assigns partitions itself, and keeps its own times."""
    options = kafka_options(f"kafka://a{query}", {})
    member = options.member(MEMBER, protocol)

    assert member["group.protocol"] == protocol
    assert member.get("group.instance.id") == (None if "dynamic" in query else "m")
    assert member.get("partition.assignment.strategy") == strategy
    assert options.is_cooperative(protocol) == (strategy != "range")
    assert ("session.timeout.ms" in member) == (protocol is CLASSIC)
    assert ("heartbeat.interval.ms" in member) == (protocol is CLASSIC)


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


@given(st.integers(1, 10**7))
def test_a_member_stops_asking_where_it_begins_before_it_is_missed(poll_ms: int) -> None:
    usual = kafka_options("kafka://a", {})
    options = kafka_options(f"kafka://a?max.poll.interval.ms={poll_ms}", {})

    assert options.reader()["max.poll.interval.ms"] == usual.reader()["max.poll.interval.ms"]
    assert usual.max_assign_s == pytest.approx(15.0)
    assert options.max_assign_s <= min(15.0, 0.7 * poll_ms / 1000)
