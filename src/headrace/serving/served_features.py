"""Which features were served? A share of the look-ups, until the control plane fetches them."""

import threading
from collections.abc import Mapping
from typing import Final

import msgspec

from headrace.core import Array
from headrace.features import EvenShare, FeatureRows, ServedSample, served_rows, served_sample
from headrace.pipeline import BoundFeatures
from headrace.serving.report import FeaturesPage
from headrace.serving.shelf import Shelf

_ROWS_OF_READ: Final = 16
_MOST: Final = 4096
_PAGE: Final = 256
_VALUE_BYTES: Final = 64


class ServedFeatures:
    """Keeps samples of what one source gave. `add` is called by the threads that run batches."""

    def __init__(self, source: BoundFeatures) -> None:
        self._source = source
        self._share = EvenShare(0.0)
        self._lock = threading.Lock()
        self._shelf: Shelf[ServedSample] = Shelf(
            most_items=_MOST, most_bytes=16 << 20, page_items=_PAGE, page_bytes=1 << 20
        )

    def keep(self, ratio: float) -> None:
        """Keep this share of the look-ups from now on."""
        if ratio == self._share.ratio:
            return
        with self._lock:
            self._share = EvenShare(ratio)
            if not ratio:
                self._shelf.clear()
        self._source.wants_rows = self._takes
        self._source.on_rows = self.add if ratio else None

    def add(self, now: float, keys: Mapping[str, Array], rows: FeatureRows) -> None:
        """Keep some rows of one look-up."""
        count = len(next(iter(keys.values()), ()))
        sample = served_sample(now, keys, rows, count, min(count, _ROWS_OF_READ))
        with self._lock:
            self._shelf.add(sample, sample.count * len(rows.columns) * _VALUE_BYTES)

    def _takes(self) -> bool:
        """Whether the look-up that comes now is kept."""
        with self._lock:
            return self._share.takes()

    def page(self, after: int) -> FeaturesPage:
        """What was kept after a cursor."""
        with self._lock:
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


def served_of(model: object) -> ServedFeatures | None:
    """For a model that looks features up; None for another."""
    for step in getattr(model, "steps", ()):
        source = getattr(step.model, "source", None)
        if isinstance(source, BoundFeatures):
            return ServedFeatures(source)
    return None
