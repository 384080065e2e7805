"""Member of a subscription to Pulsar topics."""

import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Final, cast

import pulsar

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    UnavailableError,
    UnsupportedError,
)
from headrace.core.clock import Clock
from headrace.streaming.broker import Membership, Rebalanced, Start
from headrace.streaming.brokers.checks import check_done, check_records
from headrace.streaming.brokers.inbox import Inbox
from headrace.streaming.brokers.pulsar_link import PulsarLink
from headrace.streaming.brokers.pulsar_messages import (
    Message,
    MessageId,
    offset_of,
    record_of,
)
from headrace.streaming.records import Lag, NewRecord, Place, Record

_WAIT_S: Final = 0.2


class PulsarReader:
    """One thread and one consumer of a topic, which it closes."""

    def __init__(
        self, consumer: pulsar.Consumer, place: Place, inbox: Inbox[MessageId], name: str
    ) -> None:
        self._consumer = consumer
        self._place = place
        self._inbox = inbox
        self._name = name
        self._is_closed = threading.Event()
        self.newest = 0
        """The highest offset that came."""
        self._thread = threading.Thread(target=self._run, name="pulsar-reader", daemon=True)
        self._thread.start()

    @property
    def trouble(self) -> str:
        """Why nothing comes; empty if all is well."""
        return "" if self._consumer.is_connected() else f"{self._name} is away"

    def last_offset(self) -> int:
        """Of the last message that was written; of the newest that came if nobody can tell."""
        try:
            return offset_of(cast("MessageId", self._consumer.get_last_message_id()))
        except pulsar.PulsarException:
            return self.newest  # not of a topic that has none

    def acknowledge(self, message_id: MessageId) -> None:
        """Be done with a message."""
        self._consumer.acknowledge(message_id)

    def close(self) -> None:
        """End the thread and leave; the broker hands out again at once what is not done."""
        self._is_closed.set()
        self._thread.join()
        try:
            self._consumer.close()
        except pulsar.PulsarException:
            return  # the broker is away, and knows it

    def _run(self) -> None:
        while not self._is_closed.is_set():
            most, places = self._inbox.wait_for_want(_WAIT_S)
            if not most or self._place not in places:
                if most:
                    self._is_closed.wait(_AWAY_PAUSE_S)
                continue
            try:
                message = cast("Message", self._consumer.receive(int(_WAIT_S * 1000)))
            except pulsar.Timeout:
                continue
            except pulsar.PulsarException:
                self._is_closed.wait(_AWAY_PAUSE_S)
                continue
            self.newest = max(self.newest, offset_of(message.message_id()))
            self._inbox.offer([(record_of(self._place, message), message.message_id())])


_LAG_EVERY_S: Final = 1.0
_AWAY_PAUSE_S: Final = 0.1
_ACKS_WITHIN_S: Final = 0.15  # the client sends acknowledgements every 0.1 s
_QUEUE: Final = 1000
_BATCH_BITS: Final = 12
_LEDGER_BITS: Final = 32


class PulsarSession:
    """See `Session`. At least once; the broker sees by the connection that a member lives.

    Args:
        link: The broker's, which it does not close.
    """

    def __init__(
        self, link: PulsarLink, membership: Membership, listener: Rebalanced, clock: Clock
    ) -> None:
        self._membership = membership
        self._listener = listener
        self._clock = clock
        places = [Place(topic, 0) for topic in dict.fromkeys(membership.topics)]
        self._inbox: Inbox[MessageId] = Inbox(places)
        self._readers: dict[Place, PulsarReader] = {}
        self._unsent: deque[tuple[Sequence[NewRecord], Mapping[Place, Sequence[MessageId]]]]
        self._unsent = deque()
        self._trouble = ""
        self._ended: HeadraceError | None = None
        self._is_closed = False
        self._has_begun = False
        self._lag_at = self._retry_at = self._acked_at = 0.0
        self._lag: dict[Place, Lag] = {}
        self._link = link
        try:
            for place in places:
                self._readers[place] = PulsarReader(
                    self._subscribe(place), place, self._inbox, self._link.name
                )
        except BaseException:
            self.close()
            raise

    @property
    def trouble(self) -> str:
        """Why nothing comes or goes; see `Session`."""
        away = (reader.trouble for reader in self._readers.values())
        return next((trouble for trouble in away if trouble), self._trouble)

    def poll(self, most: int, timeout_s: float) -> list[Record]:
        """Records that are there; see `Session`."""
        deadline = self._clock.monotonic() + timeout_s
        while True:
            self._check_open()
            if not self._has_begun:
                self._begin()
            self._tend()
            left_s = deadline - self._clock.monotonic()
            # What cannot be written is kept: more of it may not come meanwhile.
            wanted = 0 if self._unsent else most
            found = self._inbox.poll(wanted, min(left_s, _LAG_EVERY_S))
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
        """Answers, and when the broker has them acknowledgements; see `Session`.

        What a broker that is away did not take is kept, and sent when it is back.
        """
        self._check_open()
        try:
            check_records(records)
            check_done(self._membership, done)
            tokens = {
                place: [token for _, token in self._inbox.done(place, upto)]
                for place, upto in done.items()
            }
            self._unsent.append((records, tokens))
            self._send()
        except UnavailableError as error:
            self._trouble = str(error)
        except HeadraceError as error:
            self._ended = error
            raise

    def flush(self, timeout_s: float) -> bool:
        """Wait until the broker has all that was delivered; see `Session`."""
        self._check_open()
        deadline = self._clock.monotonic() + timeout_s
        while self._unsent:
            self._tend()
            left_s = deadline - self._clock.monotonic()
            if self._unsent and left_s <= 0:
                return False
            if self._unsent:
                self._inbox.poll(0, min(left_s, _AWAY_PAUSE_S))
        time.sleep(max(self._acked_at + _ACKS_WITHIN_S - self._clock.monotonic(), 0))
        return True

    def lag(self) -> Mapping[Place, Lag]:
        """As it was a second ago, what other members have in hand perhaps counted in."""
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
        self._inbox.close()
        try:
            if self._ended is None and not self.trouble:
                self._send()
        except HeadraceError:
            pass  # it is handed out again
        finally:
            for reader in self._readers.values():
                reader.close()
            self._ended = FailedPreconditionError("this session is closed; join again")

    def _check_open(self) -> None:
        if self._ended is not None:
            raise type(self._ended)(*self._ended.args) from self._ended

    def _subscribe(self, place: Place) -> pulsar.Consumer:
        is_first = self._membership.start is Start.EARLIEST
        position = pulsar.InitialPosition.Earliest if is_first else pulsar.InitialPosition.Latest
        with self._link.telling(f"join group {self._membership.group}"):
            return self._link.client.subscribe(
                self._link.full_name(place.topic),
                self._membership.group,
                consumer_type=pulsar.ConsumerType.Shared,
                consumer_name=self._membership.member,
                initial_position=position,
                receiver_queue_size=_QUEUE,
            )

    def _begin(self) -> None:
        own = self._listener.gained(self._inbox.places) or {}
        self._has_begun = True
        if set(own) - set(self._inbox.places):
            message = f"{min(own)} was not gained, and has an offset to read"
            raise InvalidArgumentError(message)
        if own:
            message = (
                "a member cannot read a topic of Pulsar from an offset of its own: start its "
                "state anew, or use a log, Kafka, NATS or Redis"
            )
            self._ended = UnsupportedError(message)
            raise self._ended

    def _tend(self) -> None:
        """What is due besides reading: what was not sent, the lag."""
        now = self._clock.monotonic()
        if any(reader.trouble for reader in self._readers.values()):
            return
        try:
            if self._unsent and now >= self._retry_at:
                self._retry_at = now + _AWAY_PAUSE_S
                self._send()
            if now >= self._lag_at:
                self._lag_at = now + _LAG_EVERY_S
                for place in self._readers:
                    self._lag[place] = self._lag_of(place)
        except UnavailableError as error:
            self._trouble = str(error)
        except HeadraceError as error:
            self._ended = error
            raise

    def _send(self) -> None:
        while self._unsent:
            records, tokens = self._unsent[0]
            self._link.write(records)
            with self._link.telling("acknowledge"):
                for place, ids in tokens.items():
                    for message_id in ids:
                        self._readers[place].acknowledge(message_id)
            self._unsent.popleft()
            self._acked_at = self._clock.monotonic()
        self._trouble = ""

    def _lag_of(self, place: Place) -> Lag:
        """What is in hand, and the entries that were written after the newest that came."""
        reader = self._readers[place]
        last = reader.last_offset()
        held = [record for record, _ in self._inbox.held() if record.place == place]
        beyond = 0
        if last > reader.newest:
            is_same = last >> _LEDGER_BITS == reader.newest >> _LEDGER_BITS
            beyond = (last >> _BATCH_BITS) - (reader.newest >> _BATCH_BITS) if is_same else 1
        oldest = self._inbox.oldest(place)
        seconds = None if beyond else 0.0
        if oldest is not None:
            seconds = max(self._clock.now() - oldest.timestamp_s, 0)
        return Lag(records=len(held) + beyond, seconds=seconds)
