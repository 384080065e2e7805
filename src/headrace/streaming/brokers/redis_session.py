"""Group member that reads Redis streams and writes to them."""

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, cast

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    UnavailableError,
)
from headrace.core.clock import Clock
from headrace.streaming.broker import Delivery, Membership, Rebalanced
from headrace.streaming.brokers import redis_scripts as scripts
from headrace.streaming.brokers.checks import check_done, check_records
from headrace.streaming.brokers.inbox import Inbox
from headrace.streaming.brokers.redis_link import (
    TIMEOUT_S,
    Call,
    RedisLink,
    Trim,
    add_arguments,
    deliver_call,
    id_of,
    members_key,
    offset_of,
    record_of,
    written_s,
)
from headrace.streaming.records import Lag, NewRecord, Place, Record

_BLOCK_S: Final = 0.2  # so long an answer that nobody waits for any more keeps `close` waiting
_LOOK_S: Final = 0.5
_END_WITHIN_S: Final = 1.0  # of a server that does not answer; the thread ends later then
_MOST_BYTES: Final = 32 << 20  # of one answer, by the size of those before
Entries = Sequence[tuple[bytes, list[bytes] | None]]
Came = list[tuple[Record, bytes]]


class RedisReader:
    """One thread, one connection. It stops at an error; `trouble` then says it, until `go_on`."""

    def __init__(self, url: str, group: str, consumer: str, inbox: Inbox[bytes]) -> None:
        self._link = RedisLink(url, timeout_s=_BLOCK_S + TIMEOUT_S)
        self._group = ("XREADGROUP", "GROUP", group, consumer)
        self._inbox = inbox
        self._go = threading.Event()
        self._is_closed = False
        self._record_bytes = 0.0
        self._thread = threading.Thread(target=self._run, name="redis-reader", daemon=True)
        self.error: HeadraceError | None = None

    def go_on(self) -> None:
        """Begin, or begin again."""
        self.error = None
        self._go.set()
        if self._thread.ident is None:
            self._thread.start()

    def close(self) -> None:
        """End the thread; what comes in that moment stays with the member."""
        self._is_closed = True
        self._go.set()
        self._inbox.close()
        if self._thread.ident is None:
            self._link.close()
        else:
            self._thread.join(_END_WITHIN_S)

    def _run(self) -> None:
        try:
            self._read_on()
        finally:
            self._link.close()

    def _read_on(self) -> None:
        while not self._is_closed:
            self._go.wait(_LOOK_S)
            if not self._go.is_set():
                continue
            most, places = self._inbox.wait_for_want(_LOOK_S)
            if not most or not places or self._is_closed:
                continue
            try:
                fits = max(int(_MOST_BYTES / max(self._record_bytes, 1)), 1)
                self._read(min(most, fits), places)
            except HeadraceError as error:
                self._go.clear()
                self.error = error
                self._inbox.wake()

    def _read(self, most: int, places: Sequence[Place]) -> None:
        topics = [place.topic for place in places]
        block_ms = int(_BLOCK_S * 1000)
        command: list[str | int] = [*self._group, "COUNT", most, "BLOCK", block_ms, "STREAMS"]
        answer = self._link.ask("read", *command, *topics, *(">" for _ in topics))
        by_topic = dict(zip(topics, places, strict=True))
        streams = cast("Sequence[tuple[bytes, Entries]] | None", answer)
        for topic, entries in streams or ():
            self._inbox.offer(self._came(by_topic[topic.decode()], entries))

    def _came(self, place: Place, entries: Entries) -> Came:
        found: Came = []
        for entry_id, fields in entries:
            if fields is not None:
                found.append((record_of(place, entry_id, fields), entry_id))
                size = sum(map(len, fields))
                self._record_bytes += (size - self._record_bytes) / 8
        return found


_BEATS: Final = 3  # signs of life within the time after which a member counts as dead
_LAG_EVERY_S: Final = 1.0
_AWAY_PAUSE_S: Final = 0.1
_MOST_TAKEN_OVER: Final = 1000
_PAGE: Final = 500


class RedisSession:
    """See `Session`. It waits its time by turns with signs of life; a thread reads."""

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
        self._membership = membership
        self._consumer = consumer
        self._listener = listener
        self._trim = trim
        self._clock = clock
        places = [Place(topic, 0) for topic in dict.fromkeys(membership.topics)]
        self._inbox: Inbox[bytes] = Inbox(places)
        self._link = RedisLink(url)
        self._reader = RedisReader(url, membership.group, consumer, self._inbox)
        self._unsent: deque[Call] = deque()
        self._trouble = ""
        self._ended: HeadraceError | None = None
        self._is_closed = False
        self._is_lost = False
        self._retry_at = 0.0
        self._has_begun = False
        self._has_more = True
        self._beat_at = 0.0
        self._lag_at = 0.0
        self._lag: dict[Place, Lag] = {}

    @property
    def trouble(self) -> str:
        """Why nothing comes or goes; see `Session`."""
        return self._trouble

    def poll(self, most: int, timeout_s: float) -> list[Record]:
        """Records that are there; see `Session`."""
        self._check_open()
        deadline = self._clock.monotonic() + timeout_s
        while True:
            self._tend(most)
            now = self._clock.monotonic()
            wait_s = min(deadline - now, max(self._beat_at - now, 0))
            if self._trouble:
                wait_s = min(wait_s, _AWAY_PAUSE_S)
            # What cannot be written is kept: more of it may not come meanwhile.
            found = self._inbox.poll(0 if self._unsent else most, wait_s)
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
        """Answers and acknowledgements in one script; see `Session`.

        At least once, what a server that is away did not take is kept, and sent when it is back.
        """
        self._check_open()
        try:
            check_records(records)
            check_done(self._membership, done)
            now_s = self._clock.now()
            written = [(one.topic, add_arguments(one, self._trim, now_s)) for one in records]
            handed = {place: self._inbox.done(place, upto) for place, upto in done.items()}
            tokens = {place: [token for _, token in held] for place, held in handed.items() if held}
            if not (records or tokens):
                return
            is_strict = self._membership.delivery is Delivery.EXACTLY_ONCE
            owner = (self._membership.group, self._consumer)
            self._unsent.append(deliver_call(owner, written, tokens, is_strict=is_strict))
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
        """Wait until what a server that was away did not take is there; see `Session`."""
        self._check_open()
        deadline = self._clock.monotonic() + timeout_s
        while self._unsent:
            self._tend(0)
            left_s = deadline - self._clock.monotonic()
            if self._unsent and left_s <= 0:
                return False
            if self._unsent:
                self._inbox.poll(0, min(left_s, _AWAY_PAUSE_S))
        return True

    def lag(self) -> Mapping[Place, Lag]:
        """As it was a second ago; see `Session`."""
        self._check_open()
        return self._lag

    def wake(self) -> None:
        """Let `poll` return; from any thread."""
        self._inbox.wake()

    def close(self) -> None:
        """Leave the group; see `Session`. Twice is once."""
        if self._is_closed:
            return
        self._is_closed = True
        self._reader.close()
        try:
            if self._ended is None:
                self._send()
            for place in self._inbox.places:
                arguments = (self._membership.group, self._consumer)
                self._link.run("leave", scripts.LEAVE, self._keys(place), arguments)
        except HeadraceError:
            pass  # the others see it when its time is over
        finally:
            self._ended = FailedPreconditionError("this session is closed; join again")
            self._link.close()

    def _check_open(self) -> None:
        if self._ended is not None:
            raise type(self._ended)(*self._ended.args) from self._ended

    def _tend(self, most: int) -> None:
        """What is due besides reading: begin, be seen, get over what went wrong."""
        now = self._clock.monotonic()
        if self._reader.error is not None and not self._is_lost:
            self._is_lost = True
            self._trouble = str(self._reader.error)
        if self._trouble and now < self._retry_at:
            return
        try:
            if not self._has_begun:
                self._begin()
            self._send()
            if self._is_lost:
                self._recover()
            may_take_over = self._has_more and most > 0 and not self._inbox.waiting()
            if now >= self._beat_at or may_take_over:
                self._look(most)
            if now >= self._lag_at:
                self._lag = {place: self._lag_of(place) for place in self._inbox.places}
                self._lag_at = now + _LAG_EVERY_S
            self._trouble = ""
        except UnavailableError as error:
            # An answer that was lost may have handed something to this member.
            self._is_lost = True
            self._trouble = str(error)
            self._retry_at = now + _AWAY_PAUSE_S
        except HeadraceError as error:
            self._ended = error
            raise

    def _begin(self) -> None:
        own = self._listener.gained(self._inbox.places) or {}
        self._has_begun = True
        strange = set(own) - set(self._inbox.places)
        if strange:
            raise InvalidArgumentError(f"{min(strange)} was not gained, and has an offset to read")
        for place, offset in own.items():
            arguments = (self._membership.group, id_of(offset - 1), self._consumer)
            doing = f"read {place.topic} from an offset of its own"
            self._link.run(doing, scripts.MOVE, self._keys(place), arguments)
        self._reader.go_on()

    def _look(self, most: int) -> None:
        """Say that this member lives, and take over what dead ones had in hand."""
        name = self._consumer.rpartition("#")[0]
        timeout_ms = max(int(self._membership.session_timeout_s * 1000), 1)
        self._has_more = False
        for place in self._inbox.places:
            left = min(max(most - self._inbox.waiting(), 0), _MOST_TAKEN_OVER)
            arguments = (self._membership.group, self._consumer, f"{name}#", timeout_ms, left)
            answer = self._link.run(
                f"read {place.topic}", scripts.LOOK, self._keys(place), arguments
            )
            has_more, entries = cast("tuple[int, list[tuple[bytes, list[bytes], int]]]", answer)
            self._has_more = self._has_more or bool(has_more)
            self._inbox.offer(
                (record_of(place, entry_id, fields, deliveries=deliveries), entry_id)
                for entry_id, fields, deliveries in entries
            )
        self._beat_at = self._clock.monotonic() + self._membership.session_timeout_s / _BEATS

    def _recover(self) -> None:
        """Find what was handed to this member in answers that did not arrive."""
        group = self._membership.group
        for place in self._inbox.places:
            last = b"0-0"
            while True:
                command = ("XREADGROUP", "GROUP", group, self._consumer, "COUNT", _PAGE)
                answer = self._link.ask("read again", *command, "STREAMS", place.topic, last)
                ((_, entries),) = cast("Sequence[tuple[bytes, Entries]]", answer)
                for entry_id, fields in entries:
                    last = entry_id
                    if fields is None:
                        self._link.ask("skip what was trimmed", "XACK", place.topic, group, last)
                        continue
                    record = record_of(place, last, fields, deliveries=2)
                    if not self._inbox.knows(place, record.offset):
                        self._inbox.offer([(record, last)])
                if not entries:
                    break
        self._is_lost = False
        self._reader.go_on()

    def _send(self) -> None:
        while self._unsent:
            keys, arguments = self._unsent[0]
            self._link.run("deliver", scripts.DELIVER, keys, arguments)
            self._unsent.popleft()

    def _lag_of(self, place: Place) -> Lag:
        arguments = (self._membership.group,)
        answer = self._link.run("ask for the lag", scripts.LAG, (place.topic,), arguments)
        records, oldest = cast("tuple[int, bytes]", answer)
        if not records:
            return Lag(records=0, seconds=0)
        waits_s = self._clock.now() - written_s(offset_of(oldest))
        return Lag(records=records, seconds=max(waits_s, 0))

    def _keys(self, place: Place) -> tuple[str, str]:
        return place.topic, members_key(place.topic, self._membership.group)
