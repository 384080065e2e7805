"""Group member that reads NATS JetStream and writes to it."""

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec
import nats.errors
from nats.aio.msg import Msg

from headrace.core import (
    ConflictError,
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    UnavailableError,
)
from headrace.core.clock import Clock
from headrace.streaming.broker import Delivery, Membership, Rebalanced
from headrace.streaming.brokers import nats_link as groups
from headrace.streaming.brokers.checks import check_done, check_records
from headrace.streaming.brokers.inbox import Inbox
from headrace.streaming.brokers.nats_link import (
    Message,
    NatsLink,
    acknowledge,
    messages_of,
    publish,
)
from headrace.streaming.brokers.nats_messages import STATUS, record_of
from headrace.streaming.records import Lag, NewRecord, Place, Record

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
        place: Place,
        *,
        stream: str,
        consumer: str,
        inbox: Inbox[str],
        fail: Callable[[HeadraceError], None],
    ) -> None:
        self.stream = stream
        self.consumer = consumer
        self._link = link
        self._place = place
        self._next = f"{link.api}.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._inbox = inbox
        self._fail = fail
        self._reply = ""
        self._sub: Subscription | None = None
        self._asked = 0
        self._asked_until = 0.0

    def missing(self, most: int) -> int:
        """How many should be asked for, so that `most` are under way; 0 if that is not worth it."""
        asked = self._asked if time.monotonic() < self._asked_until else 0
        return most - asked if asked * 2 < most else 0

    def forget(self) -> None:
        """The server knows nothing any more of what it was asked."""
        self._asked = 0

    def gone(self) -> HeadraceError:
        """What is to be said when the group is there no more."""
        message = (
            f"the group at topic {self._place.topic} was deleted or moved in "
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
            said = headers.get(_DESCRIPTION, "")
            if "consumer deleted" in said.lower():
                self._fail(self.gone())
            return
        about = message.metadata
        record = record_of(
            self._place,
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


class NatsMember:
    """Its coroutines run in the loop of `link`.

    Args:
        fail: Told why it is a member no more.
    """

    def __init__(
        self,
        link: NatsLink,
        membership: Membership,
        inbox: Inbox[str],
        clock: Clock,
        *,
        fail: Callable[[HeadraceError], None],
    ) -> None:
        self.pulls: dict[Place, NatsPull] = {}
        self.lag: dict[Place, Lag] = {}
        self.is_alone = True
        """Whether no other member of the group lived when this one joined."""
        self._link = link
        self._membership = membership
        self._inbox = inbox
        self._clock = clock
        self._fail = fail
        self._epoch = int(clock.now() * 1e9)
        self._listens: list[Subscription] = []

    async def join(self) -> None:
        """Take the name from who has it, and be ready to read."""
        said = self._membership
        for place in self._inbox.places:
            stream = await groups.stream_of(self._link, place.topic)
            await groups.ensure(self._link, said, place.topic, stream)
            mine = groups.member_subject(place.topic, said.group, said.member)
            everyones = groups.group_subject(place.topic, said.group)
            await groups.is_heard(self._link, mine, b"%d %b" % (self._epoch, _JOINS))
            self.is_alone = self.is_alone and not await groups.is_heard(self._link, everyones)
            client = self._link.client
            self._listens.append(await client.subscribe(mine, cb=self._hear))
            self._listens.append(await client.subscribe(everyones, cb=_answer))
            self.pulls[place] = NatsPull(
                self._link,
                place,
                stream=stream,
                consumer=groups.consumer_of(said.group),
                inbox=self._inbox,
                fail=self._fail,
            )
            await self.pulls[place].open()
        await self.measure()

    async def _hear(self, message: Msg) -> None:
        """Another has the name of this member."""
        epoch, _, word = message.data.partition(b" ")
        if not epoch.isdigit() or int(epoch) == self._epoch:
            return
        if word == _JOINS or int(epoch) > self._epoch:
            who = f"member '{self._membership.member}' of group '{self._membership.group}'"
            reason = "was replaced by another of that name"
            message_ = f"{who} {reason}; what it delivers now would be there twice"
            self._fail(ConflictError(message_))
            await self._let_go()
        if message.reply:
            await message.respond(b"left")

    async def come_back(self) -> None:
        """The server is back, and may have forgotten what it was asked."""
        said = self._membership
        for place, pull in self.pulls.items():
            pull.forget()
            mine = groups.member_subject(place.topic, said.group, said.member)
            await self._link.client.publish(mine, b"%d %b" % (self._epoch, _IS_BACK))
        self._inbox.wake()

    async def leave(self) -> None:
        """Be no member any more."""
        for listen in self._listens:
            await listen.unsubscribe()
        await self._let_go()

    async def _let_go(self) -> None:
        """Let others have what is not done, at once."""
        for pull in self.pulls.values():
            await pull.close()
        await self._say_all([token for _, token in self._inbox.clear()], _NOT_DONE)
        await self._link.client.flush()

    async def _say_all(self, replies: Sequence[str], word: bytes) -> None:
        with suppress(nats.errors.Error):
            for reply in replies:
                await self._link.client.publish(reply, word)

    async def say_progress(self) -> None:
        """What is in hand is still worked on: it must not be handed out again."""
        await self._say_all([token for _, token in self._inbox.held()], _PROGRESS)

    async def measure(self) -> None:
        """See how far the group is behind."""
        with suppress(nats.errors.Error):
            for place, pull in self.pulls.items():
                found = await groups.lag_of(self._link, pull.stream, pull.consumer, place.topic)
                if found is None:
                    self._fail(pull.gone())
                    return
                records, oldest_s = found
                seconds = 0.0 if not records else None
                if oldest_s is not None:
                    seconds = max(self._clock.now() - oldest_s, 0)
                self.lag[place] = Lag(records=records, seconds=seconds)


async def _answer(message: Msg) -> None:
    """A member lives here."""
    if message.reply:
        await message.respond(b"lives")


_BEATS: Final = 3  # words of progress within the time after which a message is handed out again
_LAG_EVERY_S: Final = 1.0
_AWAY_PAUSE_S: Final = 0.1


class _Unsent(NamedTuple):
    messages: Sequence[Message]
    replies: Sequence[str]


class NatsSession:
    """See `Session`. What it has in hand it tells the server, as long as `poll` is called."""

    def __init__(
        self, url: str, membership: Membership, listener: Rebalanced, clock: Clock
    ) -> None:
        self._membership = membership
        self._listener = listener
        self._clock = clock
        places = [Place(topic, 0) for topic in dict.fromkeys(membership.topics)]
        self._inbox: Inbox[str] = Inbox(places)
        self._unsent: deque[_Unsent] = deque()
        self._unconfirmed: dict[Place, str] = {}
        self._trouble = ""
        self._ended: HeadraceError | None = None
        self._is_closed = False
        self._has_begun = False
        self._beat_at = self._lag_at = self._retry_at = 0.0
        self._link = NatsLink(url, on_back=self._came_back)
        self._member = NatsMember(self._link, membership, self._inbox, clock, fail=self._fail)
        try:
            self._link.ask(f"join group {membership.group}", self._member.join())
        except BaseException:
            self._link.close()
            raise

    @property
    def trouble(self) -> str:
        """Why nothing comes or goes; see `Session`."""
        return self._link.trouble or self._trouble

    def poll(self, most: int, timeout_s: float) -> list[Record]:
        """Records that are there; see `Session`."""
        deadline = self._clock.monotonic() + timeout_s
        while True:
            self._check_open()
            if not self._has_begun:
                self._begin()
            self._tend()
            # What cannot be written is kept: more of it may not come meanwhile.
            wanted = 0 if self._unsent else most
            if wanted > 0:
                waiting = self._inbox.waiting()
                for place in self._inbox.open_places():
                    missing = self._member.pulls[place].missing(wanted - waiting)
                    if missing > 0:
                        self._link.begin(self._member.pulls[place].ask(missing))
            now = self._clock.monotonic()
            wait_s = min(deadline - now, max(self._beat_at - now, 0))
            if self.trouble:
                wait_s = min(wait_s, _AWAY_PAUSE_S)
            found = self._inbox.poll(wanted, wait_s)
            if found is not None:
                return found
            if self._clock.monotonic() >= deadline:
                return []

    def pause(self, places: Sequence[Place]) -> None:
        """Hand out nothing of these; see `Session`."""
        self._inbox.pause(places, is_paused=True)

    def resume(self, places: Sequence[Place]) -> None:
        """Hand them out again; see `Session`."""
        self._inbox.pause(places, is_paused=False)

    def deliver(self, records: Sequence[NewRecord], done: Mapping[Place, int]) -> None:
        """Answers, and when they are safe acknowledgements; see `Session`.

        At least once, what a server that is away did not take is kept, and sent when it is back.
        """
        self._check_open()
        try:
            check_records(records)
            check_done(self._membership, done)
            messages = messages_of(
                records,
                sender=self._membership.group,
                most_bytes=self._link.client.max_payload,
            )
            replies = []
            for place, upto in done.items():
                tokens = [token for _, token in self._inbox.done(place, upto)]
                replies += tokens
                if tokens:
                    self._unconfirmed[place] = tokens[-1]
            if messages or replies:
                self._unsent.append(_Unsent(messages, replies))
                self._send()
        except UnavailableError as error:
            if self._membership.delivery is Delivery.EXACTLY_ONCE:
                self._ended = error
                raise
            self._trouble = str(error)
        except HeadraceError as error:
            self._ended = error
            raise

    def flush(self, timeout_s: float) -> bool:
        """Wait until the server has all that was delivered; see `Session`."""
        self._check_open()
        deadline = self._clock.monotonic() + timeout_s
        while True:
            with suppress(UnavailableError):
                self._tend()
                if not self._unsent:
                    replies = list(self._unconfirmed.values())
                    work = acknowledge(self._link, replies, is_confirmed=True)
                    self._link.ask("acknowledge", work)
                    self._unconfirmed.clear()
                    return True
            left_s = deadline - self._clock.monotonic()
            if left_s <= 0:
                return False
            self._inbox.poll(0, min(left_s, _AWAY_PAUSE_S))

    def lag(self) -> Mapping[Place, Lag]:
        """As it was a second ago; see `Session`."""
        self._check_open()
        return self._member.lag

    def wake(self) -> None:
        """Let `poll` return; from any thread."""
        self._inbox.wake()

    def close(self) -> None:
        """Leave the group; see `Session`. Twice is once."""
        if self._is_closed:
            return
        self._is_closed = True
        try:
            if self._ended is None and self._unsent:
                self._send()
            self._link.ask("leave", self._member.leave())
        except HeadraceError:
            pass  # the server hands out again what it hears nothing of
        finally:
            self._ended = FailedPreconditionError("this session is closed; join again")
            self._link.close()

    def _check_open(self) -> None:
        if self._ended is not None:
            raise type(self._ended)(*self._ended.args) from self._ended

    def _begin(self) -> None:
        own = self._listener.gained(self._inbox.places) or {}
        self._has_begun = True
        strange = set(own) - set(self._inbox.places)
        if strange:
            raise InvalidArgumentError(f"{min(strange)} was not gained, and has an offset to read")
        if own and not self._member.is_alone:
            message = (
                f"other members of group '{self._membership.group}' run, and a member that brings "
                "offsets of its own has to be alone; stop them first"
            )
            raise FailedPreconditionError(message)
        for place, offset in own.items():
            work = groups.move(
                self._link,
                self._member.pulls[place].stream,
                place.topic,
                self._membership.group,
                offset=offset,
                ack_wait_s=self._membership.session_timeout_s,
            )
            self._link.ask(f"read {place.topic} from an offset of its own", work)

    def _tend(self) -> None:
        """What is due besides reading: words of progress, what was not sent, the lag."""
        if self._link.trouble:
            return
        now = self._clock.monotonic()
        if self._unsent and now >= self._retry_at:
            try:
                self._send()
            except UnavailableError as error:
                self._trouble = str(error)
                self._retry_at = now + _AWAY_PAUSE_S
        if now >= self._beat_at:
            self._link.begin(self._member.say_progress())
            self._beat_at = now + min(self._membership.session_timeout_s / _BEATS, _LAG_EVERY_S)
        if now >= self._lag_at:
            self._link.begin(self._member.measure())
            self._lag_at = now + _LAG_EVERY_S

    def _send(self) -> None:
        is_exact = self._membership.delivery is Delivery.EXACTLY_ONCE
        while self._unsent:
            self._link.ask("deliver", self._write(self._unsent[0], is_confirmed=is_exact))
            self._unsent.popleft()
        self._trouble = ""

    async def _write(self, unsent: _Unsent, *, is_confirmed: bool) -> None:
        await publish(self._link, unsent.messages)
        await acknowledge(self._link, unsent.replies, is_confirmed=is_confirmed)

    async def _came_back(self) -> None:
        await self._member.come_back()

    def _fail(self, error: HeadraceError) -> None:
        self._ended = self._ended or error
        self._inbox.wake()
