"""Lookup of feature values for the rows of a request, with a cache of recent reads.

Values older than their view's time to live are not given for present: a join of training data
leaves them out too.

An array for each column, and their statuses and ages, take several times as long as the read.
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
Given = Mapping[str, Sequence[object] | Array]


@dataclass(frozen=True, slots=True, kw_only=True)
class LookupRequest:
    """`keys` by join key and `values` by request column, a value for each of `rows`."""

    keys: Mapping[str, Sequence[object]]
    values: Mapping[str, Sequence[object] | Array]
    rows: int


class Asking:
    """What one service takes; made once, as its names are asked for at each read."""

    def __init__(self, service: FeatureService) -> None:
        self._joins = [entity.join_key for entity in service.entities]
        self._taken = [column.name for column in service.request_columns]

    def asked(self, keys: Given, values: Given) -> LookupRequest:
        """What is asked, in order; InvalidArgumentError with all that is wrong.

        Values themselves are looked at where they become keys and arrays.
        """
        joins, taken = self._joins, self._taken
        wrong = [f"the join key {name!r} is missing" for name in joins if name not in keys]
        wrong += _unknown(keys, joins, "join key") + _unknown(values, taken, "request column")
        columns: dict[str, Sequence[object] | Array] = {}
        for name, given in (*keys.items(), *values.items()):
            column = _column(given)
            if column is None:
                wrong.append(f"{name!r} should be a list of values, one a row")
            else:
                columns[name] = column
        lengths = {name: len(columns[name]) for name in (*joins, *taken) if name in columns}
        if len(set(lengths.values())) > 1:
            what = "columns" if values else "join keys"
            wrong.append(f"{what} have different numbers of rows: {lengths}")
        rows = max(lengths.values(), default=0)
        if rows > MAX_ROWS:
            wrong.append(f"there are more than {MAX_ROWS} rows; ask in several parts")
        if wrong:
            raise InvalidArgumentError("; ".join(wrong))
        return LookupRequest(
            keys={name: _listed(columns[name]) for name in joins},
            values={name: columns[name] for name in taken if name in columns},
            rows=rows,
        )


def _listed(column: Sequence[object] | Array) -> Sequence[object]:
    return column.tolist() if isinstance(column, np.ndarray) else column


def _unknown(given: Given, known: Sequence[str], what: str) -> list[str]:
    wrong = [name for name in given if name not in known]
    takes = f"the service takes: {', '.join(known) or 'none'}" if wrong else ""
    return [f"{str(name)[:60]!r} is no {what}; {takes}" for name in wrong]


def _column(column: object) -> Sequence[object] | Array | None:
    if isinstance(column, np.ndarray):
        is_column = column.ndim == 1 or (column.ndim == 2 and column.shape[1] == 1)  # noqa: PLR2004  # [rows, 1]
        return column.reshape(-1) if is_column else None
    if isinstance(column, Sequence) and not isinstance(column, str | bytes | bytearray):
        return column
    return None


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


_US: Final = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRows:
    """What a service says of some rows.

    `columns`, in the service's order, and `ages_s`, by view and NaN where MISSING, have a value for
    each row. `reasons` says of MISSING rows why a record that is there was not taken. Of an
    on-demand view they are those of its worst input. `request`: the values that came with the
    request, by request column. `at`: when it was read, in Unix time.
    """

    columns: Mapping[str, Array]
    statuses: Mapping[str, Sequence[FeatureStatus]]
    ages_s: Mapping[str, Array]
    reasons: Mapping[str, Mapping[int, str]]
    request: Mapping[str, Array] = field(default_factory=dict)
    at: float = 0.0

    def matrix(self) -> Array:
        """All columns beside each other as FP32 [rows, columns]; InvalidArgumentError for BYTES."""
        texts = [name for name, column in self.columns.items() if column.dtype == np.object_]
        if texts:
            raise InvalidArgumentError(f"BYTES fit no matrix of FP32: {', '.join(texts)}")
        return np.stack([c.astype(np.float32) for c in self.columns.values()], axis=1)


class FeatureReader:
    """Reads the columns of one service. Safe to use from several threads; `read` blocks.

    Args:
        cache_ttl_s: How long what was read, also that there is nothing, is taken to be still so.
            0 asks the store each time. How old a value is counts from its event all the same.
        timeout_s: How long a read may take whose caller has no deadline.

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
        self._asking = Asking(service)
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
        """The service's columns for each row.

        Args:
            keys: For each join key of the service, a value for each row: [rows] or [rows, 1].
            values: The same for each request column of the service's on-demand views; those with a
                default may be left out, or have None in some rows.
            deadline: Monotonic time at which the caller stops waiting; None for never.

        Raises:
            InvalidArgumentError: With all that is wrong with `keys` or `values`.
            RuntimeFailedError: The function of an on-demand view failed.
            FeaturesNotFoundError: A view says `reject`, of the first such row.
            DeadlineExceededError: The store did not answer in time.
            UnavailableError: The store cannot be reached.
            FailedPreconditionError: It cannot be read; the message says how to mend it.
        """
        asked = self._asking.asked(keys, values or {})
        keys_of = self._encoded(asked.keys)
        return self._rows(asked, keys_of, self._records(keys_of, deadline))

    def read_row(
        self,
        keys: Mapping[str, Sequence[object] | Array],
        *,
        values: Mapping[str, Sequence[object] | Array] | None = None,
        deadline: float | None = None,
    ) -> list[float] | FeatureRows:
        """As `read`, but of one row in which nothing is missing or stale just the numbers.

        They stand in the service's order, and become the same floats as those of `read` do.
        """
        asked = self._asking.asked(keys, values or {})
        keys_of = self._encoded(asked.keys)
        records = self._records(keys_of, deadline)
        if asked.rows == 1 and self._row.is_usable:
            now_us = round(self._clock.now() * _US)
            found = self._row.values([some[0] for some in keys_of], records, now_us)
            if found is not None:
                return found
        return self._rows(asked, keys_of, records)

    def _rows(
        self,
        asked: LookupRequest,
        keys_of: Sequence[Sequence[Key]],
        records: Mapping[Place, Record | None],
    ) -> FeatureRows:
        """What the records say of the rows."""
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
            statuses={name: one.statuses for name, one in read.items()},
            ages_s={name: one.ages_s for name, one in read.items()},
            reasons={name: one.reasons for name, one in read.items()},
            request=request,
            at=now,
        )

    def _encoded(self, columns: Mapping[str, Sequence[object]]) -> list[list[Key]]:
        """The keys of each view's rows; views of the same entities share them."""
        made: dict[tuple[str, ...], list[Key]] = {}
        for view in self._views:
            if view.entity_names not in made:
                values = [columns[name] for name in view.view.join_keys]
                made[view.entity_names] = encode_keys(view.view, values)
        return [made[view.entity_names] for view in self._views]

    def _records(
        self, keys_of: Sequence[Sequence[Key]], deadline: float | None
    ) -> Mapping[Place, Record | None]:
        """What each view has of its keys, from the cache where that is young enough."""
        now = self._clock.monotonic()
        timeout_s = self._timeout_s if deadline is None else min(self._timeout_s, deadline - now)
        if timeout_s <= 0:
            raise DeadlineExceededError("the deadline passed before features were read")
        if not self._cache.is_used:
            keys = list(dict.fromkeys(key for some in keys_of for key in some))
            return self._store.read(keys, self._view_names, timeout_s=timeout_s)
        places = dict.fromkeys(
            (key, name)
            for name, some in zip(self._view_names, keys_of, strict=True)
            for key in some
        )
        known = self._cache.get(places, now)
        wanted = [place for place in places if place not in known]
        if not wanted:
            return known
        keys = list(dict.fromkeys(key for key, _ in wanted))
        views = list(dict.fromkeys(view for _, view in wanted))
        fresh = self._store.read(keys, views, timeout_s=timeout_s)
        self._cache.put({place: fresh.get(place) for place in wanted}, now)
        return {**known, **fresh}
