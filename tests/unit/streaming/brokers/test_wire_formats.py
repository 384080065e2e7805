"""What is written in a broker's own form comes back as it was, and what others wrote is read."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg

from headrace.core import FailedPreconditionError, InvalidArgumentError
from headrace.streaming.brokers.checks import packed, quoted, unpacked, unquoted
from headrace.streaming.brokers.nats import messages as nats_messages
from headrace.streaming.brokers.pulsar import messages as pulsar_messages
from headrace.streaming.brokers.redis import connection as redis_link
from headrace.streaming.brokers.redis.connection import Trim, add_arguments
from headrace.streaming.records import Header, NewRecord, Record, TopicPartition

PLACE = TopicPartition("t", 0)
KEYS = st.none() | st.binary(max_size=20)
HEADERS = st.lists(
    st.tuples(st.text(min_size=1, max_size=8), st.binary(max_size=8)), max_size=4
).map(tuple)


@given(st.lists(st.tuples(st.integers(0, 2**42 - 1), st.integers(0, 2**21 - 1)), max_size=9))
def test_offsets_are_the_ids_of_redis_in_their_order(ids: list[tuple[int, int]]) -> None:
    found = [redis_link.offset_of(b"%d-%d" % one) for one in sorted(ids)]

    assert found == sorted(found)
    assert all(offset < 2**63 for offset in found)
    assert [redis_link.id_of(offset) for offset in found] == [b"%d-%d" % one for one in sorted(ids)]


def test_an_id_that_no_offset_holds_is_named() -> None:
    with pytest.raises(FailedPreconditionError, match="5-2097152"):
        redis_link.offset_of(b"5-2097152")


@pytest.mark.parametrize(
    ("fields", "value", "headers"),
    [
        ([b"data", b"{}"], b"{}", ()),
        ([b"a", b"1", b"b", b"2"], None, (("a", b"1"), ("b", b"2"))),
        ([b"value", b"x", b"trace", b"y"], b"x", (("trace", b"y"),)),
        ([b"value", b"x", b"timestamp", b"soon"], b"x", ()),
    ],
)
def test_entries_of_others_are_read(
    fields: list[bytes], value: bytes | None, headers: tuple[Header, ...]
) -> None:
    found = redis_link.record_of(PLACE, b"7000-1", fields)

    assert (found.value, found.headers, found.timestamp_s) == (value, headers, 7.0)


def test_more_headers_than_redis_takes_are_refused() -> None:
    headers = tuple((f"h{n}", b"") for n in range(1001))
    trim = Trim(maxlen=0, retention_s=1)

    with pytest.raises(InvalidArgumentError, match="over 1000 headers"):
        add_arguments(NewRecord(topic="t", key=None, value=None, headers=headers), trim, 0)


@given(KEYS, KEYS, HEADERS)
def test_a_record_comes_back_from_an_entry_of_redis_and_from_a_message_of_nats(
    key: bytes | None, value: bytes | None, headers: tuple[Header, ...]
) -> None:
    record = NewRecord(topic="t", key=key, value=value, headers=headers, timestamp_s=12.5)
    lines = nats_messages.headers_of(record, sender="g")
    reply = "$JS.ACK.s.c.1.3.1.1000000000.0"
    message = Msg(Client(), reply=reply, data=value or b"", headers=lines)

    for found in (
        redis_link.record_of(PLACE, b"7-1", redis_link.fields_of(record)),
        nats_messages.record_of(PLACE, message),
    ):
        assert (found.key, found.value, found.headers) == (key, value, headers)
        assert found.timestamp_s == 12.5
    assert all(line.isascii() and line.isprintable() for line in lines.values())


def test_plain_headers_stay_plain_in_nats_and_ids_name_group_source_and_topic() -> None:
    headers = (("traceparent", b"00-1"), ("error", b"no model"))
    source = Record(topic_partition=PLACE, offset=5, key=None, value=b"")
    record = NewRecord(topic="t", key=b"user 7", value=b"", headers=headers, source=source)

    assert nats_messages.headers_of(record, sender="g") == {
        "Nats-Msg-Id": "g/t/0/5/t",
        "Headrace-Key": '"user 7"',
        "traceparent": "00-1",
        "error": "no model",
    }


@given(st.text(max_size=20), st.text(max_size=20))
def test_two_names_are_two_tokens(one: str, two: str) -> None:
    tokens = nats_messages.token_of(one), nats_messages.token_of(two)

    assert (tokens[0] == tokens[1]) == (one == two)
    assert not set("".join(tokens)) & set(".*> \t\r\n/\\")


@given(st.binary(max_size=30), HEADERS)
def test_a_quoted_key_and_packed_headers_come_back(key: bytes, headers: tuple[Header, ...]) -> None:
    assert unquoted(quoted(key)) == key
    if headers:
        assert unpacked(packed(headers)) == headers


class Id:
    def __init__(self, in_flight: int, entry: int, batch: int) -> None:
        self.ledger_id = lambda: in_flight
        self.entry_id = lambda: entry
        self.batch_index = lambda: batch


@given(
    st.lists(st.tuples(st.integers(0, 2**31 - 1), st.integers(0, 49_999), st.integers(0, 999))),
)
def test_offsets_of_pulsar_have_the_order_of_its_ids(ids: list[tuple[int, int, int]]) -> None:
    found = [pulsar_messages.offset_of(Id(*one)) for one in sorted(ids)]

    assert found == sorted(found)
    assert len(set(found)) == len(set(ids))
    assert all(offset < 2**63 for offset in found)
