"""Group member that reads Redis streams and writes to them."""

from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final, cast

import msgspec

from headrace.core.clock import Clock
from headrace.streaming.broker import Membership, Rebalanced
from headrace.streaming.brokers.inbox import ReadingThread, SharedSession
from headrace.streaming.brokers.redis import scripts
from headrace.streaming.brokers.redis.connection import (
    RedisConnection,
    Trim,
    add_arguments,
    id_of,
    members_key,
    offset_of,
    record_of,
    written_s,
)
from headrace.streaming.records import NewRecord, PartitionLag, TopicPartition

_BLOCK_S: Final = 0.2  # an obsolete blocking read delays `close` by at most this
_JOIN_TIMEOUT_S: Final = 1.0  # if the server does not respond; the thread then ends later
_MAX_BYTES: Final = 32 << 20  # of one response, estimated by the previous ones
Entries = Sequence[tuple[bytes, list[bytes] | None]]
_HEARTBEATS_PER_TIMEOUT: Final = 3  # heartbeats within the session timeout
_MAX_TAKEN_OVER: Final = 1000
_PAGE: Final = 500
_encode: Final = msgspec.json.Encoder().encode


class RedisSession(SharedSession[bytes]):
    """Session on Redis streams; see `ConsumerSession`. A thread reads.

    One script writes answers and acknowledgements.
    """

    def __init__(
        self,
        url: str,
        membership: Membership,
        consumer: str,
        listener: Rebalanced,
        *,
        trim: Trim,
        clock: Clock,
    ) -> None:
        heartbeat_s = membership.session_timeout_s / _HEARTBEATS_PER_TIMEOUT
        super().__init__(membership, listener, clock, heartbeat_s=heartbeat_s)
        self._consumer = consumer
        self._trim = trim
        self._link = RedisConnection(url)
        self._record_bytes = 0.0
        self._reader = ReadingThread(self._inbox, self._read)
        self._has_more = True

    def _start(self, start_offsets: Mapping[TopicPartition, int]) -> None:
        for partition, offset in start_offsets.items():
            arguments = (self._membership.group, id_of(offset - 1), self._consumer)
            operation = f"read {partition.topic} from its own offset"
            self._link.run(operation, scripts.MOVE, self._keys(partition), arguments)
        self._reader.start()

    def _heartbeat(self, max_records: int, *, is_due: bool) -> None:
        """Recover records of lost responses, send heartbeats, and claim dead members' records."""
        # A lost response may have delivered records to this member.
        if self._was_disconnected or self._reader.error is not None:
            self._recover()
        has_room = max_records > 0 and not self._inbox.waiting()
        if not (is_due or (self._has_more and has_room)):
            return
        name = self._consumer.rpartition("#")[0]
        timeout_ms = max(int(self._membership.session_timeout_s * 1000), 1)
        self._has_more = False
        for partition in self._inbox.partitions:
            left = min(max(max_records - self._inbox.waiting(), 0), _MAX_TAKEN_OVER)
            arguments = (self._membership.group, self._consumer, f"{name}#", timeout_ms, left)
            answer = self._link.run(
                f"read {partition.topic}", scripts.LOOK, self._keys(partition), arguments
            )
            has_more, entries = cast("tuple[int, list[tuple[bytes, list[bytes], int]]]", answer)
            self._has_more = self._has_more or bool(has_more)
            self._inbox.offer(
                (record_of(partition, entry_id, fields, deliveries=deliveries), entry_id)
                for entry_id, fields, deliveries in entries
            )

    def _recover(self) -> None:
        """Read pending records that were delivered in lost responses."""
        self._reader.error = None
        group = self._membership.group
        for partition in self._inbox.partitions:
            last = b"0-0"
            while True:
                command = ("XREADGROUP", "GROUP", group, self._consumer, "COUNT", _PAGE)
                answer = self._link.ask("read again", *command, "STREAMS", partition.topic, last)
                ((_, entries),) = cast("Sequence[tuple[bytes, Entries]]", answer)
                for entry_id, fields in entries:
                    last = entry_id
                    if fields is None:
                        self._link.ask("skip trimmed", "XACK", partition.topic, group, last)
                        continue
                    self._inbox.offer([(record_of(partition, last, fields, deliveries=2), last)])
                if not entries:
                    break
        self._was_disconnected = False

    def _read(self, max_records: int, partitions: Sequence[TopicPartition]) -> None:
        """Read records, in the reader's thread."""
        fits = max(int(_MAX_BYTES / max(self._record_bytes, 1)), 1)
        group = ("GROUP", self._membership.group, self._consumer)
        limits = ("COUNT", min(max_records, fits), "BLOCK", int(_BLOCK_S * 1000))
        streams = (*(partition.topic for partition in partitions), *(">" for _ in partitions))
        answer = self._link.ask("read", "XREADGROUP", *group, *limits, "STREAMS", *streams)
        for topic, entries in cast("Sequence[tuple[bytes, Entries]] | None", answer) or ():
            partition = TopicPartition(topic.decode(), 0)
            present = [(entry_id, fields) for entry_id, fields in entries if fields is not None]
            self._inbox.offer((record_of(partition, *entry), entry[0]) for entry in present)
            for _, fields in present:
                self._record_bytes += (sum(map(len, fields)) - self._record_bytes) / 8

    def _write(
        self, records: Sequence[NewRecord], tokens: Mapping[TopicPartition, Sequence[bytes]]
    ) -> None:
        now_s = self._clock.now()
        added = [add_arguments(record, self._trim, now_s) for record in records]
        inputs = [(topic, [*map(bytes.decode, ids)]) for (topic, _), ids in tokens.items()]
        counts = [(record.topic, len(some)) for record, some in zip(records, added, strict=True)]
        arguments = (int(self._is_exact), self._membership.group, self._consumer)
        self._link.run(
            "deliver",
            scripts.DELIVER,
            sorted({topic for topic, _ in (*inputs, *counts)}),
            (*arguments, _encode(inputs), _encode(counts), *chain.from_iterable(added)),
        )

    def _update_lag(self) -> None:
        for partition in self._inbox.partitions:
            answer = self._link.run(
                "ask for the lag", scripts.LAG, (partition.topic,), (self._membership.group,)
            )
            records, oldest = cast("tuple[int, bytes]", answer)
            waits_s = self._clock.now() - written_s(offset_of(oldest)) if records else 0
            self._lag[partition] = PartitionLag(records=records, seconds=max(waits_s, 0))

    def _leave(self) -> None:
        self._inbox.close()
        self._reader.join(_JOIN_TIMEOUT_S)
        for partition in self._inbox.partitions:
            arguments = (self._membership.group, self._consumer)
            self._link.run("leave", scripts.LEAVE, self._keys(partition), arguments)

    def _disconnect(self) -> None:
        self._inbox.close()
        self._link.close()
        self._reader.join(_JOIN_TIMEOUT_S)

    def _keys(self, partition: TopicPartition) -> tuple[str, str]:
        return partition.topic, members_key(partition.topic, self._membership.group)
