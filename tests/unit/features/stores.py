"""An online store in memory, which can be made to fail, and says what it was asked."""

from collections.abc import Mapping, Sequence

from headrace.features.online.store import Place
from headrace.features.records import Key, Record, record_time_us


class MemoryStore:
    """Keeps records in a dict, by the rules of `OnlineStore`."""

    def __init__(self) -> None:
        self.name = "memory"
        self.records: dict[Place, Record] = {}
        self.watermarks: dict[str, int] = {}
        self.reads: list[tuple[list[Key], list[str], float]] = []
        self.writes = 0
        self.fails_at_write: int | None = None
        self.fails_to_read: Exception | None = None

    def read(
        self, keys: Sequence[Key], views: Sequence[str], *, timeout_s: float = 5.0
    ) -> Mapping[Place, Record]:
        self.reads.append((list(keys), list(views), timeout_s))
        if self.fails_to_read is not None:
            raise self.fails_to_read
        wanted = {(key, view) for key in keys for view in views}
        return {place: record for place, record in self.records.items() if place in wanted}

    def write(self, view: str, keys: Sequence[Key], records: Sequence[Record]) -> int:
        if self.writes == self.fails_at_write:
            raise KeyboardInterrupt
        self.writes += 1
        written = 0
        for key, record in zip(keys, records, strict=True):
            old = self.records.get((key, view))
            if old is None or record_time_us(old) <= record_time_us(record):
                self.records[key, view] = record
                written += 1
        return written

    def watermark(self, name: str) -> int | None:
        return self.watermarks.get(name)

    def raise_watermark(self, name: str, event_us: int) -> None:
        self.watermarks[name] = max(event_us, self.watermarks.get(name, event_us))

    def close(self) -> None:
        pass
