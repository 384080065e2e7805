"""Where does a member begin to read the places that it gains?"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from confluent_kafka import Consumer, KafkaException, TopicPartition

from headrace.core import InvalidArgumentError
from headrace.core.clock import Clock
from headrace.streaming.broker import Membership, Start
from headrace.streaming.brokers.kafka_errors import SHOULD_WAIT, error_of, failure
from headrace.streaming.brokers.kafka_records import milliseconds, partitions_of
from headrace.streaming.records import Place

_ASK_S: Final = 5.0
_LONGEST_S: Final = 20.0
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Assigning:
    """Looks starts up by itself: the client would forget a start at the end in a crash."""

    membership: Membership
    is_cooperative: bool
    address: str
    clock: Clock

    def starts(
        self, consumer: Consumer, places: Sequence[Place], own: Mapping[Place, int]
    ) -> tuple[dict[Place, int], dict[Place, int]]:
        """Offsets to read from, and those of them that the group is to keep as its beginning.

        Args:
            own: What the listener says; it goes before what the group kept.

        Raises:
            InvalidArgumentError: `own` names a place that is not among these.
            HeadraceError: The cluster does not say.
        """
        strange = set(own) - set(places)
        if strange:
            raise InvalidArgumentError(f"{min(strange)} was not gained, and has an offset to read")
        asked = [TopicPartition(*place) for place in places if place not in own]
        kept = self._asked(lambda: consumer.committed(asked, timeout=_ASK_S)) if asked else []
        starts = dict(own)
        new = []
        for one in kept:
            place = Place(one.topic, one.partition)
            if one.offset >= 0:
                starts[place] = one.offset
            else:
                new.append(place)
        fresh = self._beginnings(consumer, new) if new else {}
        return starts | fresh, fresh

    def take(self, consumer: Consumer, starts: Mapping[Place, int]) -> None:
        """Read these from there on."""
        partitions = partitions_of(dict(starts))
        if self.is_cooperative:
            consumer.incremental_assign(partitions)
        else:
            consumer.assign(partitions)

    def leave(self, consumer: Consumer, places: Sequence[Place]) -> None:
        """Read these no more."""
        if self.is_cooperative:
            consumer.incremental_unassign([TopicPartition(*place) for place in places])
        else:
            consumer.unassign()

    def _beginnings(self, consumer: Consumer, places: Sequence[Place]) -> dict[Place, int]:
        """Where a group begins that has never read."""
        start_s = self.membership.start_s
        if start_s is None:
            which = 0 if self.membership.start is Start.EARLIEST else 1
            return {
                place: self._asked(
                    lambda place=place: consumer.get_watermark_offsets(  # type: ignore[misc]  # mypy sees no type in a default
                        TopicPartition(*place), timeout=_ASK_S
                    )
                )[which]
                for place in places
            }
        at_ms = milliseconds(start_s)
        wanted = [TopicPartition(*place, at_ms) for place in places]
        found = self._asked(lambda: consumer.offsets_for_times(wanted, timeout=_ASK_S))
        starts = {Place(one.topic, one.partition): one.offset for one in found}
        for place, offset in starts.items():
            if offset < 0:  # nothing is that new
                at = TopicPartition(*place)
                ends = self._asked(lambda at=at: consumer.get_watermark_offsets(at, timeout=_ASK_S))  # type: ignore[misc]  # as above
                starts[place] = ends[1]
        return starts

    def _asked(self, ask: Callable[[], _T]) -> _T:
        """Asks again for a while: a server may be about to come back."""
        until = self.clock.monotonic() + _LONGEST_S
        while True:
            try:
                return ask()
            except KafkaException as error:
                told = error_of(error)
                if told.code() not in SHOULD_WAIT or self.clock.monotonic() >= until:
                    raise failure(
                        told,
                        doing=f"find where group '{self.membership.group}' is",
                        address=self.address,
                    ) from error
