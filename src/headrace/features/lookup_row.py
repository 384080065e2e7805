"""The numbers of one row, where all of them are as most requests find them: there, and fresh.

An array for each column, and their statuses and ages, take several times as long as the read.
"""

from collections.abc import Mapping, Sequence
from typing import Final

from headrace.core import Datatype
from headrace.features.definitions import FeatureService, OnDemandView
from headrace.features.keys import Key
from headrace.features.online import Place
from headrace.features.records import Record, RecordLayout

_US: Final = 1_000_000
_HEAD: Final = 3
"""What stands before the values of an unpacked record: time, hash, flags."""
_EXACT: Final = 1 << 53
"""Larger whole numbers may become other floats by way of a double."""


class RowLayout:
    """How the columns of a service stand in its records."""

    def __init__(self, service: FeatureService) -> None:
        views = service.views
        self._views = [
            (view.name, RecordLayout(view), None if view.ttl_s is None else round(view.ttl_s * _US))
            for view in views
        ]
        self._places: list[int] = []
        starts: dict[str, int] = {}
        start = 0
        for view in views:
            starts[view.name] = start
            start += len(view.features)
        for column in service.columns:
            if not isinstance(column.view, OnDemandView):
                at = column.view.features.index(column.feature)
                self._places.append(starts[column.view.name] + at)
        self._is_in_order = self._places == list(range(start))
        self._whole_numbers = [
            i for i, one in enumerate(service.columns) if one.feature.datatype is Datatype.INT64
        ]
        self.is_usable = not service.on_demand_views and all(
            column.feature.datatype is not Datatype.BYTES for column in service.columns
        )
        """Whether all columns are numbers that are stored."""

    def values(
        self, keys: Sequence[Key], records: Mapping[Place, Record | None], now_us: int
    ) -> list[float] | None:
        """The columns in the service's order; None where one is missing, stale or cannot be read.

        Args:
            keys: Of each view, in the service's order.
        """
        found: list[float] = []
        for (name, layout, ttl_us), key in zip(self._views, keys, strict=True):
            record = records.get((key, name))
            unpacked = None if record is None else layout.unpack_whole(record)
            if unpacked is None or (ttl_us is not None and now_us - unpacked[0] > ttl_us):
                return None
            found += unpacked[_HEAD:]
        if not self._is_in_order:
            found = [found[at] for at in self._places]
        for i in self._whole_numbers:
            if not -_EXACT <= found[i] <= _EXACT:
                return None
        return found
