"""Group member that reads NATS JetStream and writes to it."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import nats.errors
from nats.aio.msg import Msg

from headrace.core import ConflictError, FailedPreconditionError, HeadraceError
from headrace.core.clock import Clock
from headrace.streaming.broker import Membership, Rebalanced
from headrace.streaming.brokers.inbox import Inbox, SharedSession
from headrace.streaming.brokers.nats import connection as groups
from headrace.streaming.brokers.nats.connection import NatsLink, acknowledge, publish
from headrace.streaming.brokers.nats.messages import STATUS, record_of
from headrace.streaming.records import NewRecord, TopicPartition

if TYPE_CHECKING:
    from nats.aio.subscription import Subscription

_EXPIRES_S: Final = 10.0
_LATE_S: Final = 1.0
_MAX_BYTES: Final = 64 << 20  # maximum of one pull request; the server allows no larger message
_PENDING: Final = "Nats-Pending-Messages"
_DESCRIPTION: Final = "Description"
_encode: Final = msgspec.json.Encoder().encode


@dataclass(slots=True, kw_only=True)
class NatsPull:
    """Pull requests of one topic, whose messages go to `inbox`."""

    link: NatsLink
    partition: TopicPartition
    stream: str
    consumer: str
    inbox: Inbox[str]
    fail: Callable[[HeadraceError], None]
    _reply: str = ""
    _sub: "Subscription | None" = None
    _requested: int = 0
    _requested_until: float = 0.0

    def missing(self, max_records: int) -> int:
        """Return how many records to request so that `max_records` are requested; 0 for few."""
        if time.monotonic() >= self._requested_until:
            self.forget()
        return max_records - self._requested if self._requested * 2 < max_records else 0

    def forget(self) -> None:
        """Reset the count: the server has forgotten its requests."""
        self._requested = 0

    def missing_group(self) -> HeadraceError:
        """Return the error for a group that does not exist any more."""
        message = (
            f"the group on topic '{self.partition.topic}' was deleted or moved in "
            f"{self.link.name}; restart the stream to create it again"
        )
        return FailedPreconditionError(message)

    async def open(self) -> None:
        """Subscribe to the replies."""
        self._reply = self.link.client.new_inbox()
        self._sub = await self.link.client.subscribe(self._reply, cb=self._on_message)

    async def ask(self, max_records: int) -> None:
        """Request that many more records."""
        if not self.link.client.is_connected:
            return
        request = {"batch": max_records, "max_bytes": _MAX_BYTES, "expires": int(_EXPIRES_S * 1e9)}
        self._requested += max_records
        self._requested_until = time.monotonic() + _EXPIRES_S + _LATE_S
        subject = f"{self.link.api}.CONSUMER.MSG.NEXT.{self.stream}.{self.consumer}"
        await self.link.client.publish(subject, _encode(request), reply=self._reply)

    async def close(self) -> None:
        """Unsubscribe; messages received before are in the inbox."""
        if self._sub is not None:
            await self._sub.drain()  # type: ignore[no-untyped-call]  # it says nothing

    async def _on_message(self, message: Msg) -> None:
        headers = message.headers or {}
        if STATUS in headers:
            # A request has ended: it expired, or the server changed.
            self._requested = max(self._requested - int(headers.get(_PENDING, self._requested)), 0)
            description = headers.get(_DESCRIPTION, "")
            if "consumer deleted" in description.lower():
                self.fail(self.missing_group())
            return
        self._requested = max(self._requested - 1, 0)
        self.inbox.offer([(record_of(self.partition, message), message.reply)])


_PROGRESS: Final = b"+WPI"
_NOT_DONE: Final = b"-NAK"
_JOINS: Final = b"joins"
_IS_RECONNECTED: Final = b"is back"
_HEARTBEATS_PER_TIMEOUT: Final = 3  # progress reports before a message is redelivered
_MAX_HEARTBEAT_S: Final = 1.0


class NatsSession(SharedSession[str]):
    """Session on NATS JetStream; see `ConsumerSession`.

    It reports progress on delivered messages while `poll` is called. Its coroutines run in the
    connection's loop.
    """

    def __init__(
        self, url: str, membership: Membership, listener: Rebalanced, clock: Clock
    ) -> None:
        heartbeat_s = min(membership.session_timeout_s / _HEARTBEATS_PER_TIMEOUT, _MAX_HEARTBEAT_S)
        super().__init__(membership, listener, clock, heartbeat_s=heartbeat_s)
        self._pulls: dict[TopicPartition, NatsPull] = {}
        self._is_alone = True
        """Whether no other member of the group was alive when this one joined."""
        self._epoch = int(clock.now() * 1e9)
        self._listens: list[Subscription] = []
        self._unconfirmed: dict[TopicPartition, str] = {}
        self._link = NatsLink(url, on_reconnected=self._on_reconnected)
        try:
            self._link.ask(f"join group {membership.group}", self._join())
        except BaseException:
            self._link.close()
            raise

    def _connection_problem(self) -> str:
        return self._link.problem

    def _start(self, start_offsets: Mapping[TopicPartition, int]) -> None:
        if start_offsets and not self._is_alone:
            message = (
                f"other members of group '{self._membership.group}' run, but a member with its own "
                "start offsets must be alone; stop them first"
            )
            raise FailedPreconditionError(message)
        for partition, offset in start_offsets.items():
            work = groups.move(
                self._link,
                self._pulls[partition].stream,
                partition.topic,
                self._membership.group,
                offset=offset,
                ack_wait_s=self._membership.session_timeout_s,
            )
            self._link.ask(f"read {partition.topic} from its own offset", work)

    def _want(self, max_records: int) -> None:
        if max_records <= 0:
            return
        max_records -= self._inbox.waiting()
        for partition in self._inbox.open_partitions():
            missing = self._pulls[partition].missing(max_records)
            if missing > 0:
                self._link.begin(self._pulls[partition].ask(missing))

    def _heartbeat(self, max_records: int, *, is_due: bool) -> None:  # noqa: ARG002  # `_want` asks for records
        """Report progress on unacknowledged messages, so that they are not redelivered."""
        if is_due:
            held = [token for _, token in self._inbox.held()]
            self._link.begin(self._reply_all(held, _PROGRESS))

    def _update_lag(self) -> None:
        self._link.begin(self._read_lag())

    def _write(
        self, records: Sequence[NewRecord], tokens: Mapping[TopicPartition, Sequence[str]]
    ) -> None:
        async def write() -> None:
            await publish(self._link, records, sender=self._membership.group)
            replies = [reply for replies in tokens.values() for reply in replies]
            await acknowledge(self._link, replies, is_confirmed=self._is_exact)

        self._link.ask("deliver", write())
        self._unconfirmed |= {partition: replies[-1] for partition, replies in tokens.items()}

    def _confirm(self) -> None:
        replies = list(self._unconfirmed.values())
        self._link.ask("acknowledge", acknowledge(self._link, replies, is_confirmed=True))
        self._unconfirmed.clear()

    def _leave(self) -> None:
        async def leave() -> None:
            for listen in self._listens:
                await listen.unsubscribe()
            await self._release()

        self._link.ask("leave", leave())

    def _disconnect(self) -> None:
        self._link.close()

    def _fail(self, error: HeadraceError) -> None:
        self._fatal_error = self._fatal_error or error
        self._inbox.wake()

    async def _join(self) -> None:
        """Replace a member of the same name, and prepare to read."""
        membership = self._membership
        for partition in self._inbox.partitions:
            stream = await groups.stream_of(self._link, partition.topic)
            await groups.ensure(self._link, membership, partition.topic, stream)
            own_subject = self._own_subject(partition)
            group_subject = groups.group_subject(partition.topic, membership.group)
            await groups.responds(self._link, own_subject, b"%d %b" % (self._epoch, _JOINS))
            self._is_alone = self._is_alone and not await groups.responds(self._link, group_subject)
            client = self._link.client
            self._listens.append(await client.subscribe(own_subject, cb=self._on_member_message))
            self._listens.append(await client.subscribe(group_subject, cb=_answer))
            self._pulls[partition] = NatsPull(
                link=self._link,
                partition=partition,
                stream=stream,
                consumer=groups.consumer_of(membership.group),
                inbox=self._inbox,
                fail=self._fail,
            )
            await self._pulls[partition].open()
        await self._read_lag()

    async def _on_member_message(self, message: Msg) -> None:
        """Handle another member with the same name."""
        epoch, _, word = message.data.partition(b" ")
        if not epoch.isdigit() or int(epoch) == self._epoch:
            return
        if word == _JOINS or int(epoch) > self._epoch:
            who = f"member '{self._membership.member}' of group '{self._membership.group}'"
            reason = "was replaced by another member of that name"
            self._fail(
                ConflictError(f"{who} {reason}; records that it writes now would be duplicates")
            )
            await self._release()
        if message.reply:
            await message.respond(b"left")

    def _own_subject(self, partition: TopicPartition) -> str:
        membership = self._membership
        return groups.member_subject(partition.topic, membership.group, membership.member)

    async def _on_reconnected(self) -> None:
        """Reset requests: the server may have forgotten them."""
        for partition, pull in self._pulls.items():
            pull.forget()
            own_subject = self._own_subject(partition)
            await self._link.client.publish(own_subject, b"%d %b" % (self._epoch, _IS_RECONNECTED))
        self._inbox.wake()

    async def _release(self) -> None:
        """Return unacknowledged messages to the other members at once."""
        for pull in self._pulls.values():
            await pull.close()
        await self._reply_all([token for _, token in self._inbox.held()], _NOT_DONE)
        await self._link.client.flush()

    async def _reply_all(self, replies: Sequence[str], word: bytes) -> None:
        with suppress(nats.errors.Error):
            for reply in replies:
                await self._link.client.publish(reply, word)

    async def _read_lag(self) -> None:
        """Measure the lag."""
        now_s = self._clock.now()
        with suppress(nats.errors.Error):
            for partition, pull in self._pulls.items():
                lag = await groups.lag_of(
                    self._link, pull.stream, pull.consumer, partition.topic, now_s=now_s
                )
                if lag is None:
                    self._fail(pull.missing_group())
                    return
                self._lag[partition] = lag


async def _answer(message: Msg) -> None:
    """Answer a liveness request."""
    if message.reply:
        await message.respond(b"lives")
