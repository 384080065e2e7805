"""A member of a group of NATS, in the event loop of the client: joins, hears of others, leaves."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import nats.errors
from nats.aio.msg import Msg

from headrace.core import ConflictError, HeadraceError
from headrace.core.clock import Clock
from headrace.streaming.broker import Membership
from headrace.streaming.brokers import nats_groups as groups
from headrace.streaming.brokers.inbox import Inbox
from headrace.streaming.brokers.nats_link import NatsLink
from headrace.streaming.brokers.nats_pull import NatsPull
from headrace.streaming.records import Lag, Place

if TYPE_CHECKING:
    from nats.aio.subscription import Subscription

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
