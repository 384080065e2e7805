"""Which values does a request's row take? The newest ones of its entities, in the model's order.

Values older than their view's time to live are not given for present: a join of training data
leaves them out too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from headrace.core import (
    Array,
    Clock,
    DeadlineExceededError,
    InvalidArgumentError,
    SystemClock,
)
from headrace.features.definitions import FeatureService, Status
from headrace.features.keys import Key, encode_keys
from headrace.features.lookup_asked import Asked, Asking
from headrace.features.lookup_cache import RecordCache
from headrace.features.lookup_row import RowLayout
from headrace.features.lookup_view import ViewReader, ViewRows, computed_rows
from headrace.features.on_demand import OnDemandFunction
from headrace.features.on_demand_request import request_arrays
from headrace.features.online import DEFAULT_TIMEOUT_S, ForeignStore, OnlineStore, Place
from headrace.features.records import Record

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
    statuses: Mapping[str, Sequence[Status]]
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
        asked: Asked,
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
