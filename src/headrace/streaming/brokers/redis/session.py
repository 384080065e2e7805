"""Group member that reads Redis streams and writes to them."""

import threading
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Final, cast

import msgspec

from headrace.core import HeadraceError
from headrace.core.clock import Clock
from headrace.streaming.broker import Membership, Rebalanced
from headrace.streaming.brokers.inbox import Inbox, SharedSession
from headrace.streaming.brokers.redis import scripts
from headrace.streaming.brokers.redis.connection import (
    TIMEOUT_S,
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
_POLL_S: Final = 0.5
_JOIN_TIMEOUT_S: Final = 1.0  # if the server does not respond; the thread then ends later
_MAX_BYTES: Final = 32 << 20  # of one response, estimated by the previous ones
Entries = Sequence[tuple[bytes, list[bytes] | None]]


class RedisReader:
    """Reader thread with its own connection; it stops at an error until `resume`."""

    def __init__(self, url: str, group: str, consumer: str, inbox: Inbox[bytes]) -> None:
        self._link = RedisConnection(url, timeout_s=_BLOCK_S + TIMEOUT_S)
        self._group = ("XREADGROUP", "GROUP", group, consumer)
        self._inbox = inbox
        self._is_reading = threading.Event()
        self._is_closed = False
        self._record_bytes = 0.0
        self._thread = threading.Thread(target=self._run, name="redis-reader", daemon=True)
        self.error: HeadraceError | None = None

    def resume(self) -> None:
        """Start to read, or continue after an error."""
        self.error = None
        self._is_reading.set()
        if self._thread.ident is None:
            self._thread.start()

    def close(self) -> None:
        """End the thread; records that arrive meanwhile stay pending for the member."""
        self._is_closed = True
        self._is_reading.set()
        self._inbox.close()
        if self._thread.ident is None:
            self._link.close()
        else:
            self._thread.join(_JOIN_TIMEOUT_S)

    def _run(self) -> None:
        try:
            while not self._is_closed:
                self._is_reading.wait(_POLL_S)
                if not self._is_reading.is_set():
                    continue
                max_records, partitions = self._inbox.wait_for_demand(_POLL_S)
                if not max_records or not partitions or self._is_closed:
                    continue
                try:
                    fits = max(int(_MAX_BYTES / max(self._record_bytes, 1)), 1)
                    self._read(min(max_records, fits), partitions)
                except HeadraceError as error:
                    self._is_reading.clear()
                    self.error = error
                    self._inbox.wake()
        finally:
            self._link.close()

    def _read(self, max_records: int, partitions: Sequence[TopicPartition]) -> None:
        topics = [partition.topic for partition in partitions]
        limits = ("COUNT", max_records, "BLOCK", int(_BLOCK_S * 1000))
        streams = ("STREAMS", *topics, *(">" for _ in topics))
        answer = self._link.ask("read", *self._group, *limits, *streams)
        for topic, entries in cast("Sequence[tuple[bytes, Entries]] | None", answer) or ():
            partition = TopicPartition(topic.decode(), 0)
            present = [(entry_id, fields) for entry_id, fields in entries if fields is not None]
            self._inbox.offer((record_of(partition, *entry), entry[0]) for entry in present)
            for _, fields in present:
                self._record_bytes += (sum(map(len, fields)) - self._record_bytes) / 8


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
        self._reader = RedisReader(url, membership.group, consumer, self._inbox)
        self._has_more = True

    def _connection_problem(self) -> str:
        return ""  # only the next command shows it

    def _start(self, start_offsets: Mapping[TopicPartition, int]) -> None:
        for partition, offset in start_offsets.items():
            arguments = (self._membership.group, id_of(offset - 1), self._consumer)
            operation = f"read {partition.topic} from its own offset"
            self._link.run(operation, scripts.MOVE, self._keys(partition), arguments)
        self._reader.resume()

    def _heartbeat(self, max_records: int, now: float) -> None:
        """Recover records of lost responses, send heartbeats, and claim dead members' records."""
        # A lost response may have delivered records to this member.
        if self._was_disconnected or self._reader.error is not None:
            self._recover()
        if now >= self._heartbeat_at or (
            self._has_more and max_records > 0 and not self._inbox.waiting()
        ):
            self._claim(max_records)

    def _claim(self, max_records: int) -> None:
        """Send heartbeats, and claim pending records of dead members."""
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
        self._heartbeat_at = self._clock.monotonic() + self._heartbeat_s

    def _recover(self) -> None:
        """Read pending records that were delivered in lost responses."""
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
                        self._link.ask(
                            "skip what was trimmed", "XACK", partition.topic, group, last
                        )
                        continue
                    self._inbox.offer([(record_of(partition, last, fields, deliveries=2), last)])
                if not entries:
                    break
        self._was_disconnected = False
        self._reader.resume()

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
        self._reader.close()
        for partition in self._inbox.partitions:
            arguments = (self._membership.group, self._consumer)
            self._link.run("leave", scripts.LEAVE, self._keys(partition), arguments)

    def _disconnect(self) -> None:
        self._reader.close()
        self._link.close()

    def _keys(self, partition: TopicPartition) -> tuple[str, str]:
        return partition.topic, members_key(partition.topic, self._membership.group)
