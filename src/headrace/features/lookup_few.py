"""The few rows of one request, without NumPy's cost for each column: the same values, sooner.

Of one row and thirty columns, making arrays one by one takes several times as long as reading.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.core import Array, Datatype
from headrace.features.definitions import Feature, Policy, Status, Value
from headrace.features.records import Record, RecordLayout, objects

MOST_ROWS: Final = 16
_US: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FewRows:
    """What some records say; as `ViewRows`."""

    columns: dict[str, Array]
    inputs: dict[str, Array]
    statuses: list[Status]
    ages_s: Array


class FewReader:
    """Makes columns of a few records of one view.

    Args:
        features: Those that are wanted, at `positions` of the view's.
        ttl_us: None for never stale.
    """

    def __init__(
        self,
        layout: RecordLayout,
        features: Sequence[Feature],
        positions: Sequence[int],
        *,
        ttl_us: int | None,
        on_stale: Policy,
    ) -> None:
        self._layout = layout
        self._ttl_us = ttl_us
        self._serves_stale = on_stale is Policy.FLAG
        self._positions = list(positions)
        self._fillings: list[Value] = [feature.filling for feature in features]
        self._groups: list[tuple[Datatype, list[int], list[str]]] = []
        for datatype in dict.fromkeys(feature.datatype for feature in features):
            some = [i for i, feature in enumerate(features) if feature.datatype is datatype]
            self._groups.append((datatype, some, [features[i].name for i in some]))

    def read(self, records: Sequence[Record | None], now_us: int) -> FewRows | None:
        """What at most `MOST_ROWS` records say; None if one cannot be read."""
        rows: list[Sequence[Value]] = []
        inputs: list[Sequence[Value]] = []
        statuses: list[Status] = []
        ages: list[float] = []
        for record in records:
            values = fresh = self._fillings
            if record is None:
                status, age_s = Status.MISSING, np.nan
            else:
                unpacked = self._layout.unpack(record)
                if unpacked is None:
                    return None
                age_us = now_us - unpacked.event_us
                is_stale = self._ttl_us is not None and age_us > self._ttl_us
                status, age_s = Status.STALE if is_stale else Status.PRESENT, age_us / _US
                if not is_stale or self._serves_stale:
                    values = self._values(unpacked.values, unpacked.flags)
                if not is_stale:
                    fresh = values
            rows.append(values)
            inputs.append(fresh)
            statuses.append(status)
            ages.append(age_s)
        columns = self._columns(rows)
        is_flagged = self._serves_stale and Status.STALE in statuses
        return FewRows(
            columns=columns,
            inputs=self._columns(inputs) if is_flagged else columns,
            statuses=statuses,
            ages_s=np.array(ages),
        )

    def _values(self, values: Sequence[Value], flags: int) -> list[Value]:
        """The wanted values, defaults where a record has none."""
        return [
            values[at] if flags >> at & 1 else filling
            for at, filling in zip(self._positions, self._fillings, strict=True)
        ]

    def _columns(self, rows: Sequence[Sequence[Value]]) -> dict[str, Array]:
        made: dict[str, Array] = {}
        for datatype, some, names in self._groups:
            if datatype is Datatype.BYTES:
                made |= {
                    name: objects([row[i] for row in rows])
                    for i, name in zip(some, names, strict=True)
                }
                continue
            # One array of all columns: its rows are contiguous, and views cost little.
            table = np.array([[row[i] for row in rows] for i in some], datatype.dtype)
            made.update(zip(names, table, strict=True))
        return made
