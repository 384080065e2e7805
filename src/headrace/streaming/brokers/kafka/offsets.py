"""Positions of a member at its Kafka partitions: where it starts, and what it committed."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from confluent_kafka import Consumer, KafkaError, KafkaException
from confluent_kafka import TopicPartition as KafkaPartition

from headrace.core import InvalidArgumentError
from headrace.core.clock import Clock
from headrace.streaming.broker import Membership, StartPosition
from headrace.streaming.brokers.kafka.client import (
    SHOULD_WAIT,
    TIMED_OUT,
    error_of,
    failure,
    milliseconds,
    partitions_of,
)
from headrace.streaming.records import PartitionLag, Record, TopicPartition

_MOST_MARKS: Final = 10_000


class _Position:
    """One place: `done` and `read` are offsets to go on at."""

    __slots__ = ("done", "end", "marks", "read")

    def __init__(self, start: int | None) -> None:
        self.read = start
        self.done = start
        self.end: int | None = None
        self.marks: deque[tuple[int, float]] = deque()


class PartitionOffsets:
    """The places that a member holds. A sample of what was handed out keeps its time."""

    def __init__(self) -> None:
        self._held: dict[TopicPartition, _Position] = {}

    def __contains__(self, place: TopicPartition) -> bool:
        return place in self._held

    def __iter__(self) -> Iterator[TopicPartition]:
        return iter(self._held)

    def hold(self, starts: Mapping[TopicPartition, int]) -> None:
        """These are held from now on, and read from these offsets."""
        for place, start in starts.items():
            self._held[place] = _Position(start)

    def drop(self, places: Sequence[TopicPartition]) -> None:
        """The contrary."""
        for place in places:
            self._held.pop(place, None)

    def handed_out(self, first: Record, following: int) -> None:
        """A run of records of one place: its first, and the offset after its last."""
        position = self._held[first.place]
        position.read = following
        if len(position.marks) < _MOST_MARKS:
            position.marks.append((first.offset, first.timestamp_s))

    def reached_end(self, place: TopicPartition, offset: int) -> None:
        """Up to here there is nothing that was not handed out, only marks of transactions."""
        if place in self._held:
            self._held[place].end = offset

    def done(self, offsets: Mapping[TopicPartition, int]) -> None:
        """What is below these is done."""
        for place, offset in offsets.items():
            position = self._held.get(place)
            if position is None:
                continue
            position.done = offset
            marks = position.marks
            while len(marks) > 1 and marks[1][0] <= offset:
                marks.popleft()
            if marks and position.read is not None and offset >= position.read:
                marks.clear()

    def lag(
        self, place: TopicPartition, following: int | None, now_s: float
    ) -> PartitionLag | None:
        """How far it is behind; None if that is not known yet.

        Args:
            following: The next offset that will be written, as far as is known.
        """
        position = self._held[place]
        at = position.done
        if at is None:
            return None
        if position.read is not None and at >= position.read and position.end is not None:
            at = max(at, position.end)
        ends = [one for one in (following, position.end, position.read) if one is not None]
        records = max(max(ends, default=at) - at, 0)
        if not records:
            return PartitionLag(records=0, seconds=0.0)
        if not position.marks:
            return PartitionLag(records=records, seconds=None)
        return PartitionLag(records=records, seconds=max(now_s - position.marks[0][1], 0.0))


_ASK_S: Final = 5.0
_LEAST_S: Final = 0.1
_PAUSE_S: Final = 0.1
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigning:
    """Looks starts up by itself: the client would forget a start at the end in a crash.

    This happens within the client's `poll`, so that all of it together may take `longest_s`: who
    does not poll for longer is no member any more, and hears of it too late.
    """

    membership: Membership
    is_cooperative: bool
    longest_s: float
    address: str
    clock: Clock
    wait: Callable[[float], None] = time.sleep

    def due(self) -> float:
        """By when of the clock places that come now have to have their starts."""
        return self.clock.monotonic() + self.longest_s

    def starts(
        self,
        consumer: Consumer,
        places: Sequence[TopicPartition],
        own: Mapping[TopicPartition, int],
        *,
        until: float,
    ) -> tuple[dict[TopicPartition, int], dict[TopicPartition, int]]:
        """Offsets to read from, and those of them that the group is to keep as its beginning.

        Args:
            own: What the listener says; it goes before what the group kept.
            until: Of `due`, as it was when the places came.

        Raises:
            InvalidArgumentError: `own` names a place that is not among these.
            HeadraceError: The cluster does not say.
        """
        strange = set(own) - set(places)
        if strange:
            raise InvalidArgumentError(f"{min(strange)} was not gained, and has an offset to read")
        asked = [KafkaPartition(*place) for place in places if place not in own]
        # Of a group that reads committed records the client asks for stable offsets (KIP-447): what
        # a transaction that is open says is waited for, and is not read over.
        kept = self._asked(lambda s: _committed(consumer, asked, s), until) if asked else []
        starts = dict(own)
        new = []
        for one in kept:
            place = TopicPartition(one.topic, one.partition)
            if one.offset >= 0:
                starts[place] = one.offset
            else:
                new.append(place)
        fresh = self._beginnings(consumer, new, until) if new else {}
        return starts | fresh, fresh

    def take(self, consumer: Consumer, starts: Mapping[TopicPartition, int]) -> None:
        """Read these from there on."""
        partitions = partitions_of(dict(starts))
        if self.is_cooperative:
            consumer.incremental_assign(partitions)
        else:
            consumer.assign(partitions)

    def leave(self, consumer: Consumer, places: Sequence[TopicPartition]) -> None:
        """Read these no more."""
        if self.is_cooperative:
            consumer.incremental_unassign([KafkaPartition(*place) for place in places])
        else:
            consumer.unassign()

    def _beginnings(
        self, consumer: Consumer, places: Sequence[TopicPartition], until: float
    ) -> dict[TopicPartition, int]:
        """Where a group begins that has never read."""
        start_s = self.membership.start_s
        if start_s is None:
            which = 0 if self.membership.start is StartPosition.EARLIEST else 1
            return {place: self._ends(consumer, place, until)[which] for place in places}
        at_ms = milliseconds(start_s)
        wanted = [KafkaPartition(*place, at_ms) for place in places]
        found = self._asked(lambda s: consumer.offsets_for_times(wanted, timeout=s), until)
        starts = {TopicPartition(one.topic, one.partition): one.offset for one in found}
        for place, offset in starts.items():
            if offset < 0:  # nothing is that new
                starts[place] = self._ends(consumer, place, until)[1]
        return starts

    def _ends(self, consumer: Consumer, place: TopicPartition, until: float) -> tuple[int, int]:
        at = KafkaPartition(*place)
        return self._asked(lambda s: consumer.get_watermark_offsets(at, timeout=s), until)

    def _asked(self, ask: Callable[[float], _T | None], until: float) -> _T:
        """Asks again until then: a server may be about to come back, a transaction to end.

        `ask` gets how long it may take; some of the client's calls give None after that.
        """
        while True:
            left_s = until - self.clock.monotonic()
            try:
                answer = ask(min(max(left_s, _LEAST_S), _ASK_S))
                if answer is not None:
                    return answer
                told = KafkaError(TIMED_OUT)
            except KafkaException as error:
                told = error_of(error)
            if told.code() not in SHOULD_WAIT or self.clock.monotonic() >= until:
                doing = f"find where group '{self.membership.group}' is"
                raise failure(told, doing=doing, address=self.address)
            self.wait(_PAUSE_S)


def _committed(
    consumer: Consumer, asked: list[KafkaPartition], timeout_s: float
) -> list[KafkaPartition]:
    """Where the group is; raises too if that cannot be said of one of them."""
    found = consumer.committed(asked, timeout=timeout_s)
    for one in found:
        if one.error is not None:
            # It has no offset then, and looks as if the group had never read it.
            raise KafkaException(one.error)
    return found
