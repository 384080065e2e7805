"""Group member that reads NATS JetStream and writes to it."""

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import nats.errors
from nats.aio.msg import Msg

from headrace.core import ConflictError, FailedPreconditionError, HeadraceError
from headrace.core.clock import Clock
from headrace.streaming.broker import Membership, Rebalanced
from headrace.streaming.brokers.inbox import Inbox, SharedSession
from headrace.streaming.brokers.nats import connection as groups
from headrace.streaming.brokers.nats.connection import (
    NatsLink,
    NatsMessage,
    acknowledge,
    messages_of,
    publish,
)
from headrace.streaming.brokers.nats.messages import STATUS, record_of
from headrace.streaming.records import NewRecord, PartitionLag, TopicPartition

if TYPE_CHECKING:
    from nats.aio.subscription import Subscription

_EXPIRES_S: Final = 10.0
_LATE_S: Final = 1.0
_MOST_BYTES: Final = 64 << 20  # of one request; the server allows no larger message
_PENDING: Final = "Nats-Pending-Messages"
_DESCRIPTION: Final = "Description"
_encode: Final = msgspec.json.Encoder().encode


class NatsPull:
    """Requests, and the messages that they bring into `inbox`."""

    def __init__(
        self,
        link: NatsLink,
        partition: TopicPartition,
        *,
        stream: str,
        consumer: str,
        inbox: Inbox[str],
        fail: Callable[[HeadraceError], None],
    ) -> None:
        self.stream = stream
        self.consumer = consumer
        self._link = link
        self._partition = partition
        self._next = f"{link.api}.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = inbox
        self._fail = fail
        self._reply = ""
        self._sub: Subscription | None = None
        self._asked = 0
        self._asked_until = 0.0

    def missing(self, most: int) -> int:
        """How many should be asked for, so that `most` are under way; 0 if that is not worth it."""
        requested = self._asked if time.monotonic() < self._asked_until else 0
        return most - requested if requested * 2 < most else 0

    def forget(self) -> None:
        """The server knows nothing any more of what it was asked."""
        self._asked = 0

    def gone(self) -> HeadraceError:
        """What is to be said when the group is there no more."""
        message = (
            f"the group at topic {self._partition.topic} was deleted or moved in "
            f"{self._link.name}; start again to make it anew"
        )
        return FailedPreconditionError(message)

    async def open(self) -> None:
        """Be ready to hear."""
        self._reply = self._link.client.new_inbox()
        self._sub = await self._link.client.subscribe(self._reply, cb=self._came)

    async def ask(self, most: int) -> None:
        """Ask for so many more."""
        if not self._link.client.is_connected:
            return
        request = {"batch": most, "max_bytes": _MOST_BYTES, "expires": int(_EXPIRES_S * 1e9)}
        self._asked = (self._asked if time.monotonic() < self._asked_until else 0) + most
        self._asked_until = time.monotonic() + _EXPIRES_S + _LATE_S
        await self._link.client.publish(self._next, _encode(request), reply=self._reply)

    async def close(self) -> None:
        """Hear no more; what was sent before is in the inbox."""
        if self._sub is not None:
            await self._sub.drain()  # type: ignore[no-untyped-call]  # it says nothing

    async def _came(self, message: Msg) -> None:
        headers = message.headers or {}
        if STATUS in headers:
            # A request is over: its time has passed, or the server has changed.
            self._asked = max(self._asked - int(headers.get(_PENDING, self._asked)), 0)
            description = headers.get(_DESCRIPTION, "")
            if "consumer deleted" in description.lower():
                self._fail(self.gone())
            return
        about = message.metadata
        record = record_of(
            self._partition,
            about.sequence.stream,
            message.data,
            headers,
            written_s=about.timestamp.timestamp(),
            deliveries=about.num_delivered,
        )
        self._asked = max(self._asked - 1, 0)
        self._inbox.offer([(record, message.reply)])


_PROGRESS: Final = b"+WPI"
_NOT_DONE: Final = b"-NAK"
_JOINS: Final = b"joins"
_IS_BACK: Final = b"is back"
_BEATS: Final = 3  # words of progress within the time after which a message is handed out again
_LONGEST_BEAT_S: Final = 1.0


class _Unsent(NamedTuple):
    messages: Sequence[NatsMessage]
    replies: Sequence[str]


class NatsSession(SharedSession[str, _Unsent]):
    """See `Session`. What it has in hand it tells the server, as long as `poll` is called.

    Its coroutines run in the loop of the connection.
    """

    def __init__(
        self, url: str, membership: Membership, listener: Rebalanced, clock: Clock
    ) -> None:
        beat_s = min(membership.session_timeout_s / _BEATS, _LONGEST_BEAT_S)
        super().__init__(membership, listener, clock, beat_s=beat_s)
        self._pulls: dict[TopicPartition, NatsPull] = {}
        self._is_alone = True
        """Whether no other member of the group lived when this one joined."""
        self._epoch = int(clock.now() * 1e9)
        self._listens: list[Subscription] = []
        self._unconfirmed: dict[TopicPartition, str] = {}
        self._link = NatsLink(url, on_back=self._came_back)
        try:
            self._link.ask(f"join group {membership.group}", self._join())
        except BaseException:
            self._link.close()
            raise

    def _away(self) -> str:
        return self._link.problem

    def _start(self, own: Mapping[TopicPartition, int]) -> None:
        if own and not self._is_alone:
            message = (
                f"other members of group '{self._membership.group}' run, and a member that brings "
                "offsets of its own has to be alone; stop them first"
            )
            raise FailedPreconditionError(message)
        for partition, offset in own.items():
            work = groups.move(
                self._link,
                self._pulls[partition].stream,
                partition.topic,
                self._membership.group,
                offset=offset,
                ack_wait_s=self._membership.session_timeout_s,
            )
            self._link.ask(f"read {partition.topic} from an offset of its own", work)

    def _want(self, most: int) -> None:
        if most <= 0:
            return
        most -= self._inbox.waiting()
        for partition in self._inbox.open_partitions():
            missing = self._pulls[partition].missing(most)
            if missing > 0:
                self._link.begin(self._pulls[partition].ask(missing))

    def _keep_up(self, most: int, now: float) -> None:  # noqa: ARG002  # `_want` asks for records
        """Say that what is in hand is still worked on: it must not be handed out again."""
        if now >= self._beat_at:
            held = [token for _, token in self._inbox.held()]
            self._link.begin(self._say_all(held, _PROGRESS))
            self._beat_at = now + self._beat_s

    def _measure(self) -> None:
        self._link.begin(self._read_lag())

    def _prepared(
        self, records: Sequence[NewRecord], tokens: Mapping[TopicPartition, Sequence[str]]
    ) -> _Unsent:
        messages = messages_of(
            records, sender=self._membership.group, most_bytes=self._link.client.max_payload
        )
        self._unconfirmed |= {partition: replies[-1] for partition, replies in tokens.items()}
        return _Unsent(messages, [reply for replies in tokens.values() for reply in replies])

    def _write(self, unsent: _Unsent) -> None:
        async def write() -> None:
            await publish(self._link, unsent.messages)
            await acknowledge(self._link, unsent.replies, is_confirmed=self._is_exact)

        self._link.ask("deliver", write())

    def _confirm(self) -> None:
        replies = list(self._unconfirmed.values())
        self._link.ask("acknowledge", acknowledge(self._link, replies, is_confirmed=True))
        self._unconfirmed.clear()

    def _leave(self) -> None:
        async def leave() -> None:
            for listen in self._listens:
                await listen.unsubscribe()
            await self._let_go()

        self._link.ask("leave", leave())

    def _disconnect(self) -> None:
        self._link.close()

    def _fail(self, error: HeadraceError) -> None:
        self._ended = self._ended or error
        self._inbox.wake()

    async def _join(self) -> None:
        """Take the name from who has it, and be ready to read."""
        membership = self._membership
        for partition in self._inbox.partitions:
            stream = await groups.stream_of(self._link, partition.topic)
            await groups.ensure(self._link, membership, partition.topic, stream)
            own_subject = groups.member_subject(
                partition.topic, membership.group, membership.member
            )
            everyones = groups.group_subject(partition.topic, membership.group)
            await groups.is_heard(self._link, own_subject, b"%d %b" % (self._epoch, _JOINS))
            self._is_alone = self._is_alone and not await groups.is_heard(self._link, everyones)
            client = self._link.client
            self._listens.append(await client.subscribe(own_subject, cb=self._hear))
            self._listens.append(await client.subscribe(everyones, cb=_answer))
            self._pulls[partition] = NatsPull(
                self._link,
                partition,
                stream=stream,
                consumer=groups.consumer_of(membership.group),
                inbox=self._inbox,
                fail=self._fail,
            )
            await self._pulls[partition].open()
        await self._read_lag()

    async def _hear(self, message: Msg) -> None:
        """Another has the name of this member."""
        epoch, _, word = message.data.partition(b" ")
        if not epoch.isdigit() or int(epoch) == self._epoch:
            return
        if word == _JOINS or int(epoch) > self._epoch:
            who = f"member '{self._membership.member}' of group '{self._membership.group}'"
            reason = "was replaced by another of that name"
            self._fail(ConflictError(f"{who} {reason}; what it delivers now would be there twice"))
            await self._let_go()
        if message.reply:
            await message.respond(b"left")

    async def _came_back(self) -> None:
        """The server is back, and may have forgotten what it was asked."""
        membership = self._membership
        for partition, pull in self._pulls.items():
            pull.forget()
            own_subject = groups.member_subject(
                partition.topic, membership.group, membership.member
            )
            await self._link.client.publish(own_subject, b"%d %b" % (self._epoch, _IS_BACK))
        self._inbox.wake()

    async def _let_go(self) -> None:
        """Let others have what is not done, at once."""
        for pull in self._pulls.values():
            await pull.close()
        await self._say_all([token for _, token in self._inbox.clear()], _NOT_DONE)
        await self._link.client.flush()

    async def _say_all(self, replies: Sequence[str], word: bytes) -> None:
        with suppress(nats.errors.Error):
            for reply in replies:
                await self._link.client.publish(reply, word)

    async def _read_lag(self) -> None:
        """See how far the group is behind."""
        with suppress(nats.errors.Error):
            for partition, pull in self._pulls.items():
                lag = await groups.lag_of(self._link, pull.stream, pull.consumer, partition.topic)
                if lag is None:
                    self._fail(pull.gone())
                    return
                records, oldest_s = lag
                seconds = 0.0 if not records else None
                if oldest_s is not None:
                    seconds = max(self._clock.now() - oldest_s, 0)
                self._lag[partition] = PartitionLag(records=records, seconds=seconds)


async def _answer(message: Msg) -> None:
    """A member lives here."""
    if message.reply:
        await message.respond(b"lives")
