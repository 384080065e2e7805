"""What was read a moment ago, so that the store is not asked again? Also where nothing stood."""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping

from headrace.features.online import Place
from headrace.features.records import Record


class RecordCache:
    """Keeps up to `entries` records for `ttl_s`; the least used go first. Safe for threads."""

    def __init__(self, *, ttl_s: float, entries: int) -> None:
        self._ttl_s = ttl_s
        self._limit = entries if ttl_s > 0 else 0
        self._lock = threading.Lock()
        self._kept: OrderedDict[Place, tuple[float, Record | None]] = OrderedDict()

    @property
    def is_used(self) -> bool:
        """Whether anything is kept at all."""
        return self._limit > 0

    def get(self, places: Iterable[Place], now: float) -> dict[Place, Record | None]:
        """What is known about `places` and young enough; None of a place where nothing stands."""
        found: dict[Place, Record | None] = {}
        with self._lock:
            for place in places:
                kept = self._kept.get(place)
                if kept is not None and now < kept[0]:
                    self._kept.move_to_end(place)
                    found[place] = kept[1]
        return found

    def put(self, records: Mapping[Place, Record | None], now: float) -> None:
        """Remember what was read at `now`, in monotonic time."""
        with self._lock:
            for place, record in records.items():
                self._kept[place] = (now + self._ttl_s, record)
                self._kept.move_to_end(place)
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)
