"""Group member that reads an embedded log and writes to it."""

import logging
import sqlite3
import threading
from collections.abc import Mapping, Sequence
from typing import Final

from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    UnavailableError,
)
from headrace.core.clock import Clock
from headrace.streaming.broker import Membership, Rebalanced
from headrace.streaming.brokers.log import group as groups
from headrace.streaming.brokers.log.file import LogFile, LogFullError
from headrace.streaming.brokers.log.records import (
    MAX_READ_BYTES,
    Catalogue,
    append,
    check_new,
    ends,
    forget_old,
    read,
    time_of,
)
from headrace.streaming.records import NewRecord, PartitionLag, Record, TopicPartition

_LOGGER: Final = logging.getLogger(__name__)


_FIRST_PAUSE_S: Final = 0.0005
_DEAF_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.05  # of who is rung; against what nobody rings for
_BEATS: Final = 3  # signs of life within the time after which a member counts as dead
_AWAY: Final = (UnavailableError, LogFullError)
_AWAY_PAUSE_S: Final = 0.1


class LogSession:
    """See `Session`. Both deliveries are one transaction of outputs and offsets.

    Places are read in turn, so that none starves.

    Args:
        file: Its own connection; it closes it.
    """

    def __init__(
        self, file: LogFile, membership: Membership, listener: Rebalanced, clock: Clock
    ) -> None:
        self._file = file
        self._membership = membership
        self._listener = listener
        self._clock = clock
        self._topics = Catalogue()
        self._ids: dict[TopicPartition, int] = {}
        """The places that it has, with their ids in the file."""
        self._next: dict[TopicPartition, int] = {}
        self._paused: set[TopicPartition] = set()
        self._turn = 0
        self._is_closed = False
        self._woken = threading.Event()
        self._trouble = ""
        self._ended: HeadraceError | None = None
        self._generation = -1
        self._look_at = 0.0
        self._may_have_more = True
        with file.writing("join a group of") as db:
            self._epoch = groups.enter(db, self._topics, membership, clock.now())
        self._is_rung = file.bell.listen(f"{self._epoch:x}")

    @property
    def trouble(self) -> str:
        """Why nothing comes or goes; see `Session`."""
        return self._trouble

    def poll(self, most: int, timeout_s: float) -> list[Record]:
        """Records that are there; see `Session`. At most some 32 MB of them at once."""
        self._check_open()
        deadline = self._clock.monotonic() + timeout_s
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                found = self._step(most)
                self._trouble = ""
            except _AWAY as error:
                found, pause_s, self._trouble = [], _AWAY_PAUSE_S, str(error)
            left_s = deadline - self._clock.monotonic()
            if found or left_s <= 0:
                return found
            if not self._woken.is_set():
                self._file.bell.wait(min(pause_s, left_s))
            if self._woken.is_set():
                self._woken.clear()
                return []
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S if self._is_rung else _DEAF_PAUSE_S)

    def pause(self, places: Sequence[TopicPartition]) -> None:
        """Hand out nothing of these; see `Session`."""
        self._paused.update(places)

    def resume(self, places: Sequence[TopicPartition]) -> None:
        """Hand them out again; see `Session`."""
        self._paused.difference_update(places)
        self._may_have_more = True

    def deliver(self, records: Sequence[NewRecord], done: Mapping[TopicPartition, int]) -> None:
        """Outputs and offsets in one transaction; see `Session`."""
        self._check_open()
        if not (records or done):
            return
        try:
            check_new(records)
            now_s = self._clock.now()
            with self._file.writing("deliver to") as db:
                groups.check_not_replaced(db, self._membership, self._epoch, gone_is_fine=False)
                ids = {self._topics.place_id(db, place): place for place in done}
                names = {id_: f"{place.topic}/{place.partition}" for id_, place in ids.items()}
                groups.check_claims(db, self._membership, self._epoch, names)
                append(db, self._topics, records, now_s)
                groups.move(
                    db, self._membership.group, {id_: done[place] for id_, place in ids.items()}
                )
        except HeadraceError as error:
            self._ended = error
            raise
        self._may_have_more = True  # one may read what it writes, and is not told of its own writes

    def flush(self, timeout_s: float) -> bool:  # noqa: ARG002  # what was delivered is safe
        """True; see `Session`."""
        self._check_open()
        return True

    def lag(self) -> Mapping[TopicPartition, PartitionLag]:
        """Read from the file; see `Session`."""
        self._check_open()
        now_s = self._clock.now()
        found: dict[TopicPartition, PartitionLag] = {}
        with self._file.reading("look at") as db:
            for place, place_id in self._ids.items():
                first, following = ends(db, place_id)
                at = max(groups.position(db, self._membership.group, place_id) or 0, first)
                oldest_s = time_of(db, place_id, at)
                waits_s = 0.0 if oldest_s is None else max(now_s - oldest_s, 0.0)
                found[place] = PartitionLag(records=max(following - at, 0), seconds=waits_s)
        return found

    def wake(self) -> None:
        """Let `poll` return; from any thread."""
        self._woken.set()
        self._file.bell.wake()

    def close(self) -> None:
        """Leave the group; see `Session`. Twice is once."""
        if self._is_closed:
            return
        self._is_closed = True
        self._ended = FailedPreconditionError("this session is closed; join again")
        try:
            with self._file.writing("leave a group of") as db:
                groups.leave(db, self._membership, self._epoch)
        except _AWAY:
            pass  # the others see it when its time is over
        finally:
            self._file.close()

    def _check_open(self) -> None:
        if self._ended is not None:
            raise type(self._ended)(*self._ended.args) from self._ended

    def _step(self, most: int) -> list[Record]:
        """What is there now, after places have come and gone."""
        changed = self._file.has_changed()
        if changed or self._clock.monotonic() >= self._look_at:
            self._may_have_more = self._may_have_more or changed
            self._regroup()
        if not self._may_have_more or most <= 0:
            return []
        with self._file.reading("read") as db:
            found, self._may_have_more = self._take(db, most)
        return found

    def _take(self, db: sqlite3.Connection, most: int) -> tuple[list[Record], bool]:
        """What comes next, and whether there may be more."""
        places = [place for place in self._ids if place not in self._paused]
        self._turn += 1
        found: list[Record] = []
        size = 0
        for number in range(len(places)):
            place = places[(self._turn + number) % len(places)]
            some = read(
                db, place, self._ids[place], offset=self._next[place], most=most - len(found)
            )
            if some:
                self._next[place] = some[-1].offset + 1
                found += some
                size += sum(len(record.value or b"") for record in some)
            if len(found) >= most or size >= MAX_READ_BYTES:
                return found, True
        return found, False

    def _regroup(self) -> None:
        is_due = self._clock.monotonic() >= self._look_at
        if not is_due:
            with self._file.reading("look at") as db:
                if groups.generation(db, self._membership.group) == self._generation:
                    return
        now_s = self._clock.now()
        held = {id_: place for place, id_ in self._ids.items()}
        try:
            with self._file.writing("look at") as db:
                moves = groups.look(
                    db,
                    self._topics,
                    self._membership,
                    self._epoch,
                    held=frozenset(held),
                    now_s=now_s,
                )
                for name in self._membership.topics:
                    forget_old(db, self._topics.topic(db, name), now_s)
                self._generation = groups.generation(db, self._membership.group)
        except _AWAY:
            raise
        except HeadraceError as error:
            self._ended = error
            raise
        beat_s = self._membership.session_timeout_s / _BEATS
        self._look_at = self._clock.monotonic() + beat_s
        if moves.lost:
            places = [held[id_] for id_ in moves.lost]
            self._drop(places)
            self._listener.lost(places)
        if moves.surplus:
            places = [held[id_] for id_ in moves.surplus]
            self._listener.losing(places)
            self._drop(places)
            with self._file.writing("give away a part of") as db:
                groups.give_away(db, self._membership.group, self._epoch, moves.surplus)
        if moves.gained:
            self._gain(moves.gained)

    def _gain(self, ids: Sequence[int]) -> None:
        with self._file.reading("look at") as db:
            names = (self._topics.topic(db, name) for name in self._membership.topics)
            all_places = {
                id_: TopicPartition(topic.name, number)
                for topic in names
                for number, id_ in enumerate(topic.places)
            }
            places = {all_places[id_]: id_ for id_ in sorted(ids)}
            starts = {place: self._start(db, place, id_) for place, id_ in places.items()}
        own = self._listener.gained(list(places)) or {}
        strange = set(own) - set(places)
        if strange:
            raise InvalidArgumentError(f"{min(strange)} was not gained, and has an offset to read")
        self._ids.update(places)
        self._next.update({**starts, **own})
        self._may_have_more = True

    def _start(self, db: sqlite3.Connection, place: TopicPartition, place_id: int) -> int:
        """Where the group is at a place."""
        first, _ = ends(db, place_id)
        at = groups.position(db, self._membership.group, place_id) or 0
        if at < first:
            _LOGGER.warning(
                "%s/%d: records %d to %d were forgotten before group '%s' read them; keep "
                "more (retention_s, retention_bytes) or read faster",
                *(place.topic, place.partition, at, first - 1, self._membership.group),
            )
        return max(at, first)

    def _drop(self, places: Sequence[TopicPartition]) -> None:
        for place in places:
            self._ids.pop(place, None)
            self._next.pop(place, None)
            self._paused.discard(place)
