"""A member of a group that reads topics of NATS JetStream, and what it writes."""

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final, NamedTuple

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    UnavailableError,
)
from headrace.core.clock import Clock
from headrace.streaming.broker import Delivery, Membership, Rebalanced
from headrace.streaming.brokers import nats_groups as groups
from headrace.streaming.brokers.checks import check_done, check_records
from headrace.streaming.brokers.inbox import Inbox
from headrace.streaming.brokers.nats_link import NatsLink
from headrace.streaming.brokers.nats_member import NatsMember
from headrace.streaming.brokers.nats_writing import (
    Message,
    acknowledge,
    messages_of,
    publish,
)
from headrace.streaming.records import Lag, NewRecord, Place, Record

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
                self._ask(wanted)
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

    def _ask(self, most: int) -> None:
        waiting = self._inbox.waiting()
        for place in self._inbox.open_places():
            missing = self._member.pulls[place].missing(most - waiting)
            if missing > 0:
                self._link.begin(self._member.pulls[place].ask(missing))

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
