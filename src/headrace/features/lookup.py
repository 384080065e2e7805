"""Lookup of feature values for the rows of a request, with a cache of recent reads.

Values older than their view's time to live do not count as present, as in a join of training data.
Building an array per column with statuses and ages takes several times as long as the read, so a
single row of present numbers has a shorter path.
"""

import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from headrace.core import (
    Array,
    Clock,
    Datatype,
    DeadlineExceededError,
    InvalidArgumentError,
    SystemClock,
)
from headrace.features.definitions import FeatureService, FeatureStatus, OnDemandView
from headrace.features.lookup_view import ViewReader, ViewRows, computed_rows
from headrace.features.on_demand import OnDemandFunction, request_arrays
from headrace.features.online.store import DEFAULT_TIMEOUT_S, ForeignStore, OnlineStore, Place
from headrace.features.records import Key, Record, RecordLayout, encode_keys

MAX_ROWS: Final = 10_000
RawColumns = Mapping[str, Sequence[object] | Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupRequest:
    """The validated input of a lookup."""

    keys: Mapping[str, Sequence[object]]
    """A value per row, by join key."""

    values: Mapping[str, Sequence[object] | Array]
    """A value per row, by request column."""

    rows: int


class RequestParser:
    """Validates the input of lookups of one service; created once and used for each read."""

    def __init__(self, service: FeatureService) -> None:
        self._joins = [entity.join_key for entity in service.entities]
        self._taken = [column.name for column in service.request_columns]

    def parse(self, keys: RawColumns, request_values: RawColumns) -> LookupRequest:
        """Return the columns in order; raise InvalidArgumentError with all problems.

        Values themselves are checked where they are converted to keys and arrays.
        """
        joins, taken = self._joins, self._taken
        problems = [f"the join key {name!r} is missing" for name in joins if name not in keys]
        problems += _unknown(keys, joins, "join key") + _unknown(
            request_values, taken, "request column"
        )
        columns: dict[str, Sequence[object] | Array] = {}
        for name, raw in (*keys.items(), *request_values.items()):
            column = _column(raw)
            if column is None:
                problems.append(f"{name!r} should be a list of values, one a row")
            else:
                columns[name] = column
        lengths = {name: len(columns[name]) for name in (*joins, *taken) if name in columns}
        if len(set(lengths.values())) > 1:
            description = "columns" if request_values else "join keys"
            problems.append(f"{description} have different numbers of rows: {lengths}")
        rows = max(lengths.values(), default=0)
        if rows > MAX_ROWS:
            problems.append(f"there are more than {MAX_ROWS} rows; ask in several parts")
        if problems:
            raise InvalidArgumentError("; ".join(problems))
        return LookupRequest(
            keys={name: _listed(columns[name]) for name in joins},
            values={name: columns[name] for name in taken if name in columns},
            rows=rows,
        )


def _listed(column: Sequence[object] | Array) -> Sequence[object]:
    return column.tolist() if isinstance(column, np.ndarray) else column


def _unknown(provided: RawColumns, expected: Sequence[str], description: str) -> list[str]:
    unknown = [name for name in provided if name not in expected]
    takes = f"the service takes: {', '.join(expected) or 'none'}" if unknown else ""
    return [f"{str(name)[:60]!r} is no {description}; {takes}" for name in unknown]


def _column(column: object) -> Sequence[object] | Array | None:
    if isinstance(column, np.ndarray):
        is_column = column.ndim == 1 or (column.ndim == 2 and column.shape[1] == 1)  # noqa: PLR2004  # [rows, 1]
        return column.reshape(-1) if is_column else None
    if isinstance(column, Sequence) and not isinstance(column, str | bytes | bytearray):
        return column
    return None


class RecordCache:
    """LRU cache of up to `entries` records for `ttl_s`. Thread-safe."""

    def __init__(self, *, ttl_s: float, entries: int) -> None:
        self._ttl_s = ttl_s
        self._limit = entries if ttl_s > 0 else 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[Place, tuple[float, Record | None]] = OrderedDict()

    @property
    def is_used(self) -> bool:
        """Whether the cache is enabled."""
        return self._limit > 0

    def get(self, addresses: Iterable[Place], now: float) -> dict[Place, Record | None]:
        """Return the unexpired cached records of `places`; None where the store has no record."""
        hits: dict[Place, Record | None] = {}
        with self._lock:
            for address in addresses:
                entry = self._entries.get(address)
                if entry is not None and now < entry[0]:
                    self._entries.move_to_end(address)
                    hits[address] = entry[1]
        return hits

    def put(self, records: Mapping[Place, Record | None], now: float) -> None:
        """Store records read at `now`, in monotonic time."""
        with self._lock:
            for address, record in records.items():
                self._entries[address] = (now + self._ttl_s, record)
                self._entries.move_to_end(address)
            while len(self._entries) > self._limit:
                self._entries.popitem(last=False)


_HEAD: Final = 3
"""Number of fields before the values of an unpacked record: time, hash, flags."""
_EXACT: Final = 1 << 53
"""Larger integers may become other floats when converted through a double."""


class RowLayout:
    """Positions of a service's columns in its records."""

    def __init__(self, service: FeatureService) -> None:
        views = service.views
        self._views = [
            (view.name, RecordLayout(view), None if view.ttl_s is None else round(view.ttl_s * _US))
            for view in views
        ]
        self._positions: list[int] = []
        starts: dict[str, int] = {}
        start = 0
        for view in views:
            starts[view.name] = start
            start += len(view.features)
        for column in service.columns:
            if not isinstance(column.view, OnDemandView):
                position = column.view.features.index(column.feature)
                self._positions.append(starts[column.view.name] + position)
        self._is_in_order = self._positions == list(range(start))
        self._whole_numbers = [
            i
            for i, column in enumerate(service.columns)
            if column.feature.datatype is Datatype.INT64
        ]
        self.is_usable = not service.on_demand_views and all(
            column.feature.datatype is not Datatype.BYTES for column in service.columns
        )
        """Whether all columns are stored numbers."""

    def values(
        self, keys: Sequence[Key], records: Mapping[Place, Record | None], now_us: int
    ) -> list[float] | None:
        """Return the columns in the service's order; None if one is missing, stale or unreadable.

        Args:
            keys: One of each view, in the service's order.
        """
        values: list[float] = []
        for (name, layout, ttl_us), key in zip(self._views, keys, strict=True):
            record = records.get((key, name))
            unpacked = None if record is None else layout.unpack_record(record)
            if unpacked is None or (ttl_us is not None and now_us - unpacked[0] > ttl_us):
                return None
            values += unpacked[_HEAD:]
        if not self._is_in_order:
            values = [values[position] for position in self._positions]
        for i in self._whole_numbers:
            if not -_EXACT <= values[i] <= _EXACT:
                return None
        return values


_US: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRows:
    """The values of a service for some rows."""

    columns: Mapping[str, Array]
    """A value per row, in the service's order."""

    statuses: Mapping[str, Sequence[FeatureStatus]]
    """A status per row, by view. An on-demand view has the status of its worst input."""

    ages_s: Mapping[str, Array]
    """An age per row, by view; NaN where MISSING."""

    reasons: Mapping[str, Mapping[int, str]]
    """By view and row: why an existing record could not be used."""

    request: Mapping[str, Array] = field(default_factory=dict)
    """The values of the request, by request column."""
    read_at: float = 0.0

    def matrix(self) -> Array:
        """Return all columns as FP32 [rows, columns]; raise InvalidArgumentError for BYTES."""
        texts = [name for name, column in self.columns.items() if column.dtype == np.object_]
        if texts:
            raise InvalidArgumentError(
                f"BYTES columns cannot be in an FP32 matrix: {', '.join(texts)}"
            )
        return np.stack([c.astype(np.float32) for c in self.columns.values()], axis=1)


class FeatureReader:
    """Reads the columns of one service. Safe to use from several threads; `read` blocks.

    Args:
        cache_ttl_s: How long a read, also of a missing record, is cached; 0 disables the cache.
            The age of a value counts from its event time in any case.
        timeout_s: Limit of a read whose caller has no deadline.

    Raises:
        UnsupportedModelError: The function of an on-demand view cannot be loaded.
    """

    def __init__(
        self,
        service: FeatureService,
        store: OnlineStore,
        *,
        clock: Clock | None = None,
        cache_ttl_s: float = 0.0,
        cache_entries: int = 100_000,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.service = service
        if isinstance(store, ForeignStore):
            store.expect(service.views)
        self._store = store
        self._clock = clock or SystemClock()
        self._timeout_s = timeout_s
        self._cache = RecordCache(ttl_s=cache_ttl_s, entries=cache_entries)
        self._views = [ViewReader(view, service) for view in service.views]
        self._view_names = [view.view.name for view in self._views]
        self._request_parser = RequestParser(service)
        self._row = RowLayout(service)
        self._request = service.request_columns
        self._functions = [OnDemandFunction(view) for view in service.on_demand_views]
        self._names = [
            (column.view.name, column.feature.name, column.name) for column in service.columns
        ]

    def read(
        self,
        keys: Mapping[str, Sequence[object] | Array],
        *,
        values: Mapping[str, Sequence[object] | Array] | None = None,
        deadline: float | None = None,
    ) -> FeatureRows:
        """Return the service's columns for each row.

        Args:
            keys: For each join key of the service, a value for each row: [rows] or [rows, 1].
            values: The same for each request column of the service's on-demand views; those with a
                default may be absent, or None in some rows.
            deadline: Monotonic time at which the caller stops waiting; None for never.

        Raises:
            InvalidArgumentError: `keys` or `values` are invalid; lists all problems.
            RuntimeFailedError: The function of an on-demand view failed.
            FeaturesNotFoundError: A view with policy `reject` has no value; names the first such
                row.
            DeadlineExceededError: The store did not answer in time.
            UnavailableError: The store cannot be reached.
            FailedPreconditionError: The store cannot be read; the message contains the remedy.
        """
        lookup = self._request_parser.parse(keys, values or {})
        keys_of = self._encoded(lookup.keys)
        return self._rows(lookup, keys_of, self._records(keys_of, deadline))

    def read_row(
        self,
        keys: Mapping[str, Sequence[object] | Array],
        *,
        values: Mapping[str, Sequence[object] | Array] | None = None,
        deadline: float | None = None,
    ) -> list[float] | FeatureRows:
        """Return `read` of the keys; for one row without missing or stale values, a list of floats.

        The floats are in the service's order and equal those of `read`.
        """
        lookup = self._request_parser.parse(keys, values or {})
        keys_of = self._encoded(lookup.keys)
        records = self._records(keys_of, deadline)
        if lookup.rows == 1 and self._row.is_usable:
            now_us = round(self._clock.now() * _US)
            numbers = self._row.values([keys[0] for keys in keys_of], records, now_us)
            if numbers is not None:
                return numbers
        return self._rows(lookup, keys_of, records)

    def _rows(
        self,
        asked: LookupRequest,
        keys_of: Sequence[Sequence[Key]],
        records: Mapping[Place, Record | None],
    ) -> FeatureRows:
        """Decode the records of the rows."""
        request = request_arrays(self._request, asked.values, asked.rows)
        now = self._clock.now()
        now_us = round(now * _US)
        read: dict[str, ViewRows] = {
            name: view.read([records.get((key, name)) for key in some], some, now_us)
            for view, name, some in zip(self._views, self._view_names, keys_of, strict=True)
        }
        for function in self._functions:
            read[function.view.name] = computed_rows(function, read, request, asked.rows)
        return FeatureRows(
            columns={name: read[view].columns[feature] for view, feature, name in self._names},
            statuses={name: rows.statuses for name, rows in read.items()},
            ages_s={name: rows.ages_s for name, rows in read.items()},
            reasons={name: rows.reasons for name, rows in read.items()},
            request=request,
            read_at=now,
        )

    def _encoded(self, columns: Mapping[str, Sequence[object]]) -> list[list[Key]]:
        """Return the keys of each view's rows; views of the same entities share them."""
        encoded: dict[tuple[str, ...], list[Key]] = {}
        for view in self._views:
            if view.entity_names not in encoded:
                values = [columns[name] for name in view.view.join_keys]
                encoded[view.entity_names] = encode_keys(view.view, values)
        return [encoded[view.entity_names] for view in self._views]

    def _records(
        self, keys_of: Sequence[Sequence[Key]], deadline: float | None
    ) -> Mapping[Place, Record | None]:
        """Return the records of each view's keys, from the cache if they are recent enough."""
        now = self._clock.monotonic()
        timeout_s = self._timeout_s if deadline is None else min(self._timeout_s, deadline - now)
        if timeout_s <= 0:
            raise DeadlineExceededError("the deadline passed before features were read")
        if not self._cache.is_used:
            keys = list(dict.fromkeys(key for some in keys_of for key in some))
            return self._store.read(keys, self._view_names, timeout_s=timeout_s)
        addresses = dict.fromkeys(
            (key, name)
            for name, some in zip(self._view_names, keys_of, strict=True)
            for key in some
        )
        cached = self._cache.get(addresses, now)
        missing = [address for address in addresses if address not in cached]
        if not missing:
            return cached
        keys = list(dict.fromkeys(key for key, _ in missing))
        views = list(dict.fromkeys(view for _, view in missing))
        fresh = self._store.read(keys, views, timeout_s=timeout_s)
        self._cache.put({address: fresh.get(address) for address in missing}, now)
        return {**cached, **fresh}
