"""Samples of served features: a share of the look-ups, until the control plane fetches them."""

import threading
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from headrace.core import Array
from headrace.features import EvenShare, FeatureRows, ServedSample, served_rows, served_sample
from headrace.pipeline import BoundFeatures
from headrace.serving.report import FeaturesPage
from headrace.serving.samples import Shelf

_ROWS_OF_READ: Final = 16
_MOST: Final = 4096
_PAGE: Final = 256
_VALUE_BYTES: Final = 64
_EARLY_S: Final = 60.0
"""A control plane says within seconds what share it wants; without one nothing has to be kept."""


class ServedFeatures:
    """Samples of what one source gave, added by the threads that run batches.

    The first look-ups come before the control plane can say which share it wants. They are kept for
    a minute, as many as fit, and the first `keep` takes its share of them.
    """

    def __init__(self, source: BoundFeatures) -> None:
        self._share: EvenShare | None = None
        self._begun_at: float | None = None
        self._lock = threading.Lock()
        self._shelf: Shelf[ServedSample] = Shelf(
            most_items=_MOST, most_bytes=16 << 20, page_items=_PAGE, page_bytes=1 << 20
        )
        self.follow(source)

    def follow(self, source: BoundFeatures) -> None:
        """Keep what this source gives, as what the one before gave: a pool loads models again."""
        with self._lock:
            self._source = source
            source.wants_rows = self._takes
            source.on_rows = self.add if self._share is None or self._share.ratio else None

    def keep(self, ratio: float) -> None:
        """Keep this share of the look-ups from now on."""
        with self._lock:
            if self._share is not None and ratio == self._share.ratio:
                return
            early = list(self._drained()) if self._share is None else []
            self._share = EvenShare(ratio)
            if not ratio:
                self._shelf.clear()
            for sample in early:
                if self._share.takes():
                    self._shelf.add(sample, _size_bytes(sample))
            self._source.on_rows = self.add if ratio else None

    def add(self, now: float, keys: Mapping[str, Array], rows: FeatureRows) -> None:
        """Keep some rows of one look-up."""
        count = len(next(iter(keys.values()), ()))
        sample = served_sample(now, keys, rows, count, min(count, _ROWS_OF_READ))
        with self._lock:
            self._shelf.add(sample, _size_bytes(sample))
            self._begun_at = now if self._begun_at is None else self._begun_at
            if self._share is None and (self._shelf.dropped or now > self._begun_at + _EARLY_S):
                self._source.on_rows = None
                self._shelf.dropped = 0
                if now > self._begun_at + _EARLY_S:
                    self._shelf.clear()

    def _takes(self) -> bool:
        """Whether the look-up that comes now is kept."""
        with self._lock:
            return self._share is None or self._share.takes()

    def _drained(self) -> Iterator[ServedSample]:
        cursor = 0
        while (page := self._shelf.page(cursor)).items:
            yield from page.items
            cursor = page.cursor

    def page(self, after: int) -> FeaturesPage:
        """What was kept after a cursor; nothing before `keep` was called."""
        with self._lock:
            if self._share is None:
                return FeaturesPage(cursor=after, service=self._source.service, lines=[])
            page = self._shelf.page(after)
        encode = msgspec.json.Encoder().encode
        source = self._source
        return FeaturesPage(
            cursor=page.cursor,
            service=source.service,
            lines=[
                encode(row).decode()
                for one in page.items
                for row in served_rows(
                    source.service, source.schema_hash, one.at, one.keys, one.rows
                )
            ],
            dropped=page.dropped,
        )


def _size_bytes(sample: ServedSample) -> int:
    return sample.count * len(sample.rows.columns) * _VALUE_BYTES


def served_of(model: object, before: ServedFeatures | None = None) -> ServedFeatures | None:
    """For a model that looks features up; None for another.

    Args:
        before: What kept samples of the model when it was loaded before; it goes on.
    """
    for step in getattr(model, "steps", ()):
        source = getattr(step.model, "source", None)
        if isinstance(source, BoundFeatures):
            if before is None:
                return ServedFeatures(source)
            before.follow(source)
            return before
    return None
