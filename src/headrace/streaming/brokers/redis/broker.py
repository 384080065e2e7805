"""Broker for Redis or Valkey (6.2 and later): a topic is the Redis stream of that name.

The members of a group share a topic record by record. Records of a dead member are redelivered
after its session timeout, or at once to a member of the same name. One script writes answers and
acknowledgements, so that both are stored or neither; what a server keeps after a crash or a
failover depends on its settings (`appendonly`, replicas).

`?maxlen=` keeps about that many records in written topics; without it, records older than
`?retention_s=` (a week) are deleted, read or not.
"""

import secrets
from collections.abc import Mapping, Sequence
from typing import Final, cast
from urllib.parse import quote

from headrace.core import (
    Clock,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    SystemClock,
)
from headrace.streaming.broker import BrokerFeatures, Membership, Rebalanced, StartPosition
from headrace.streaming.brokers.checks import (
    check_membership,
    check_one_partition,
    check_partition,
    check_records,
    check_text,
    check_topic,
    positive,
    split_options,
)
from headrace.streaming.brokers.redis import scripts
from headrace.streaming.brokers.redis.connection import (
    RedisConnection,
    Trim,
    add_arguments,
    id_of,
    members_key,
    offset_at,
    offset_of,
    record_of,
)
from headrace.streaming.brokers.redis.session import RedisSession
from headrace.streaming.records import NewRecord, Record, TopicPartition

RETENTION_S: Final = 7 * 86_400.0
_BATCH_SIZE: Final = 1000
_EPOCH_BYTES: Final = 8


class RedisBroker:
    """Broker for Redis streams; see `Broker`."""

    abilities = BrokerFeatures(
        exactly_once="answers and acknowledgements in one script, in one server's memory"
    )

    def __init__(self, url: str, *, clock: Clock | None = None) -> None:
        self._url, options = split_options(url, ("maxlen", "retention_s"))
        if len(options) > 1:
            message = "set maxlen or retention_s of a Redis stream, not both"
            raise InvalidArgumentError(message)
        self._trim = Trim(
            maxlen=int(positive(options, "maxlen", 0)),
            retention_s=positive(options, "retention_s", RETENTION_S),
        )
        self._clock = SystemClock() if clock is None else clock
        self._link = RedisConnection(self._url)

    def join(self, membership: Membership, listener: Rebalanced) -> RedisSession:
        """Join a group; see `Broker`."""
        check_membership(membership)
        name = quote(membership.member, safe=" /:")
        consumer = f"{name}#{secrets.token_hex(_EPOCH_BYTES)}"
        timeout_ms = max(int(membership.session_timeout_s * 1000), 1)
        last_id = b"0" if membership.start is StartPosition.EARLIEST else b"$"  # it does not read
        if membership.start_s is not None:
            last_id = id_of(offset_at(membership.start_s) - 1)
        arguments = (membership.group, last_id, consumer, f"{name}#", timeout_ms)
        for topic in membership.topics:
            keys = (topic, members_key(topic, membership.group))
            self._link.run(f"join the readers of {topic}", scripts.JOIN, keys, arguments)
        return RedisSession(
            self._url, membership, consumer, listener, trim=self._trim, clock=self._clock
        )

    def create_topic(self, topic: str, *, partitions: int = 1, like: str = "") -> None:  # noqa: ARG002  # no limit per topic
        """Create an empty stream unless one exists; see `Broker`."""
        check_topic(topic)
        check_one_partition(partitions, kind="Redis")
        operation = f"create topic {topic}"
        kind = self._link.ask(operation, "TYPE", topic)
        if kind == b"stream":
            return
        if kind != b"none":
            reason = f"a {cast('bytes', kind).decode()} exists under this key"
            raise FailedPreconditionError(f"cannot {operation} in {self._link.name}: {reason}")
        helper = f"headrace-{secrets.token_hex(_EPOCH_BYTES)}"  # MKSTREAM creates the stream
        create = ("XGROUP", "CREATE", topic, helper, "$", "MKSTREAM")
        self._link.request_all(operation, [create, ("XGROUP", "DESTROY", topic, helper)])

    def send(self, records: Sequence[NewRecord]) -> None:
        """Write records; see `Broker`. After an error, some may have been written."""
        check_records(records)
        for start in range(0, len(records), _BATCH_SIZE):
            some = records[start : start + _BATCH_SIZE]
            now_s = self._clock.now()
            commands = [
                ("XADD", record.topic, *add_arguments(record, self._trim, now_s)) for record in some
            ]
            answers = self._link.request_all("write records", commands)
            for record, answer in zip(some, answers, strict=True):
                if answer is None:
                    message = f"{self._link.name} has no topic '{record.topic}'; create it first"
                    raise NotFoundError(message)

    def read(
        self, topic: str, *, after: Mapping[TopicPartition, int], max_records: int
    ) -> list[Record]:
        """Return records from these offsets on; see `Broker`."""
        self._last_offset(topic)
        records: list[Record] = []
        for partition, offset in after.items():
            check_partition(partition)
            if max_records <= len(records):
                break
            entries = self._range(partition.topic, offset, max_records - len(records))
            records += [record_of(partition, entry_id, fields) for entry_id, fields in entries]
        return records

    def ends(self, topic: str) -> Mapping[TopicPartition, tuple[int, int]]:
        """Return first and next offsets; see `Broker`."""
        following = self._last_offset(topic) + 1
        first = self._first_from(topic, 0)
        return {TopicPartition(topic, 0): (following if first is None else first, following)}

    def offsets_at(self, topic: str, at_s: float) -> Mapping[TopicPartition, int]:
        """Return offsets by time; see `Broker`."""
        following = self._last_offset(topic) + 1
        offset = self._first_from(topic, offset_at(at_s))
        return {TopicPartition(topic, 0): following if offset is None else offset}

    def committed(self, group: str, topic: str) -> Mapping[TopicPartition, int]:
        """Return the offset below which all records are acknowledged; see `Broker`."""
        self._last_offset(topic)
        operation = f"look at group {group} of {topic}"
        groups = cast("list[list[object]]", self._link.ask(operation, "XINFO", "GROUPS", topic))
        for flat in groups:
            info = dict(zip(flat[::2], flat[1::2], strict=True))
            if info[b"name"] == group.encode():
                pending = self._link.ask(operation, "XPENDING", topic, group)
                count, oldest = cast("tuple[int, bytes | None]", pending)[:2]
                if count and oldest is not None:
                    return {TopicPartition(topic, 0): offset_of(oldest)}
                last = offset_of(cast("bytes", info[b"last-delivered-id"]))
                return {TopicPartition(topic, 0): last + 1}
        return {}

    def set_committed(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Set committed offsets; see `Broker`."""
        check_text("group", group)
        for partition, offset in offsets.items():
            check_partition(partition)
            following = self._last_offset(partition.topic) + 1
            if not 0 <= offset <= following:
                raise InvalidArgumentError(f"{partition.topic}/0 ends at {following}, not {offset}")
        for partition, offset in offsets.items():
            keys = (partition.topic, members_key(partition.topic, group))
            arguments = (group, id_of(offset - 1), "")
            self._link.run(f"move group {group}", scripts.MOVE, keys, arguments)

    def close(self) -> None:
        """Close connections; sessions have their own. Idempotent."""
        self._link.close()

    def _last_offset(self, topic: str) -> int:
        """Return the offset of the last record ever written."""
        check_topic(topic)
        answer = self._link.ask(f"look at topic {topic}", "XINFO", "STREAM", topic)
        flat = cast("list[object]", answer)
        info = dict(zip(flat[::2], flat[1::2], strict=True))
        return offset_of(cast("bytes", info[b"last-generated-id"]))

    def _first_from(self, topic: str, offset: int) -> int | None:
        """Return the offset of the first record at this offset or later."""
        entries = self._range(topic, offset, 1)
        return offset_of(entries[0][0]) if entries else None

    def _range(self, topic: str, offset: int, max_records: int) -> list[tuple[bytes, list[bytes]]]:
        """Return ids and fields of entries from this offset on."""
        command = ("XRANGE", topic, id_of(offset), "+", "COUNT", max_records)
        answer = self._link.ask(f"read {topic}", *command)
        return cast("list[tuple[bytes, list[bytes]]]", answer)
