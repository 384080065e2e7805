"""Reads for a member of a group of a Redis stream, in a thread, as `poll` wants records."""

import threading
from collections.abc import Sequence
from typing import Final, cast

from headrace.core import HeadraceError
from headrace.streaming.brokers.inbox import Inbox
from headrace.streaming.brokers.redis_entries import record_of
from headrace.streaming.brokers.redis_link import TIMEOUT_S, RedisLink
from headrace.streaming.records import Place, Record

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
                self._read(min(most, self._fits()), places)
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

    def _fits(self) -> int:
        return max(int(_MOST_BYTES / max(self._record_bytes, 1)), 1)
