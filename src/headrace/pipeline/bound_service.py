"""Feature service bound to its online store, and its behaviour while the store is unavailable.

A run never waits longer than its limit. After a failure the store is not tried for a backoff that
grows: otherwise requests would wait for it one after the other and add to its load.
"""

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final, cast

import numpy as np

from headrace.core import (
    Array,
    Clock,
    DeadlineExceededError,
    FailedPreconditionError,
    FeatureLookup,
    FeaturesUnavailableError,
    FetchedFeatures,
    NotFoundError,
    OnUnavailable,
    SystemClock,
    Tensors,
    UnavailableError,
)
from headrace.core.backoff import Backoff
from headrace.core.variables import url_filled_in
from headrace.features import (
    FeatureReader,
    FeatureRows,
    FeatureService,
    FeatureStatus,
    OnlineStore,
    open_online_store,
)
from headrace.features.wire import column_specs, decode_service, key_specs, request_specs
from headrace.pipeline.feature_step import with_features
from headrace.pipeline.pipeline import close_all
from headrace.runtimes import LoadOptions, Model, Runtime

_log = logging.getLogger(__name__)

_MAX_PAUSE_S: Final = 2.0
STORE_URL: Final = "the URL of the online store"
_AWAY: Final = (UnavailableError, DeadlineExceededError, FailedPreconditionError)

OnRows = Callable[[float, Mapping[str, Array], FeatureRows], None]
"""Called for each batch that was looked up, with the time, the join keys and the rows."""


class LookupCounts:
    """Lookup results: rows by view and status, and failed reads."""

    def __init__(self, views: tuple[str, ...]) -> None:
        self.rows = {(view, status): 0 for view in views for status in FeatureStatus}
        self._views = views
        self.failures = 0
        self.pauses = 0
        self._lock = threading.Lock()

    def count_rows(self, statuses: Mapping[str, Sequence[FeatureStatus]]) -> None:
        """Count the rows of a batch."""
        with self._lock:
            for view, of_rows in statuses.items():
                for status in of_rows:
                    self.rows[view, status] += 1

    def count_complete_row(self) -> None:
        """Count a row with fresh values in all views."""
        with self._lock:
            for view in self._views:
                self.rows[view, FeatureStatus.PRESENT] += 1

    def count_failure(self, *, attempted: bool) -> None:
        """Count a batch whose features could not be read; `attempted`: the store was tried."""
        with self._lock:
            self.failures += attempted
            self.pauses += not attempted


class BoundFeatures:
    """Reader of one service's columns in one online store. Implements `FeatureSource`."""

    def __init__(
        self,
        service: FeatureService,
        store: OnlineStore,
        *,
        timeout_s: float,
        cache_ttl_s: float = 0.0,
        on_unavailable: OnUnavailable = OnUnavailable.REJECT,
        may_wait: bool = True,
        clock: Clock | None = None,
    ) -> None:
        self.service = service.name
        self.schema_hash = service.schema_hash
        self.keys = key_specs(service)
        self.columns = column_specs(service)
        self.request = request_specs(service)
        self.views = tuple(view.name for view in service.all_views)
        self.may_wait = may_wait
        self.counts = LookupCounts(self.views)
        self.on_rows: OnRows | None = None
        self.wants_rows: Callable[[], bool] = lambda: True
        """Whether `on_rows` accepts the current read."""
        self._clock = clock or SystemClock()
        self._blank = FeatureReader(service, cast("OnlineStore", _Nothing()), clock=self._clock)
        self._store = store
        self._reader = FeatureReader(
            service, store, clock=self._clock, cache_ttl_s=cache_ttl_s, timeout_s=timeout_s
        )
        self._timeout_s = timeout_s
        self._on_unavailable = on_unavailable
        self._failed_in_a_row = 0
        self._paused_until = 0.0

    def fetch(
        self, keys: Tensors, request: Tensors, *, deadline: float | None = None
    ) -> FetchedFeatures:
        """Return the features of the entities in each row; see `FeatureSource`."""
        is_wanted = self._is_selected()
        fetched = self._fetch(keys, request, deadline, self._reader.read, is_wanted=is_wanted)
        assert not isinstance(fetched, list), "read returns rows"
        return fetched

    def fetch_row(
        self, keys: Tensors, request: Tensors, *, deadline: float | None = None
    ) -> list[float] | FetchedFeatures:
        """Return one row's features; only its numbers, in order, if all are present and fresh."""
        is_wanted = self._is_selected()
        read = self._reader.read if is_wanted else self._reader.read_row
        return self._fetch(keys, request, deadline, read, is_wanted=is_wanted)

    def _is_selected(self) -> bool:
        return self.on_rows is not None and self.wants_rows()

    def _fetch(
        self,
        keys: Tensors,
        request: Tensors,
        deadline: float | None,
        read: Callable[..., FeatureRows | list[float]],
        *,
        is_wanted: bool,
    ) -> FetchedFeatures | list[float]:
        now = self._clock.monotonic()
        if now < self._paused_until:
            self.counts.count_failure(attempted=False)
            return self._without(keys, request, UnavailableError("paused after a recent failure"))
        # Half of the remaining time is reserved for the model.
        until = now + self._timeout_s
        until = until if deadline is None else min(until, now + (deadline - now) / 2)
        try:
            rows = read(keys, values=request, deadline=until)
        except _AWAY as error:
            self.counts.count_failure(attempted=True)
            self._failed_in_a_row += 1
            backoff = Backoff(first_s=self._timeout_s, limit_s=_MAX_PAUSE_S)
            pause_s = backoff.delay_s(self._failed_in_a_row)
            self._paused_until = self._clock.monotonic() + pause_s
            if self._failed_in_a_row == 1:
                _log.warning("features cannot be read: %s", error, extra={"service": self.service})
            return self._without(keys, request, error)
        self._failed_in_a_row = 0
        if isinstance(rows, list):
            self.counts.count_complete_row()
            return rows
        if is_wanted and self.on_rows is not None:
            self.on_rows(self._clock.now(), keys, rows)
        return self._fetched(rows)

    def close(self) -> None:
        """Close the store."""
        self._store.close()

    def _without(self, keys: Tensors, request: Tensors, error: Exception) -> FetchedFeatures:
        """Return the substitutes for features that cannot be read, or raise the error."""
        message = f"features of '{self.service}' cannot be read: {error}"
        if self._on_unavailable is OnUnavailable.REJECT:
            raise FeaturesUnavailableError(message) from error
        try:
            rows = self._blank.read(keys, values=request)
        except NotFoundError as refused:
            # Whether the entity exists is unknown while the store is unavailable.
            raise FeaturesUnavailableError(message) from refused
        return self._fetched(rows)

    def _fetched(self, rows: FeatureRows) -> FetchedFeatures:
        self.counts.count_rows(rows.statuses)
        return FetchedFeatures(
            columns=dict(rows.columns),
            statuses={view: _texts(some) for view, some in rows.statuses.items()},
        )


class _Nothing:
    """An empty online store."""

    name = "nothing"

    def read(
        self,
        keys: Sequence[bytes],
        views: Sequence[str],
        *,
        timeout_s: float = 0.0,
    ) -> Mapping[tuple[bytes, str], bytes]:
        """Return no records."""
        del keys, views, timeout_s
        return {}


def bind(settings: FeatureLookup) -> BoundFeatures:
    """Return the features in a replica's settings; the first read connects.

    Raises:
        InvalidArgumentError: The settings are invalid.
        FailedPreconditionError: A library or a variable of the environment is missing.
    """
    url = url_filled_in(settings.online_store, description=STORE_URL)
    store = open_online_store(url, timeout_s=settings.timeout_s, read_only=True)
    return BoundFeatures(
        decode_service(settings.service),
        store,
        timeout_s=settings.timeout_s,
        cache_ttl_s=settings.cache_ttl_s,
        on_unavailable=settings.on_unavailable,
        may_wait=is_remote(url),
    )


def load_with_features(
    runtime: Runtime, path: Path, options: LoadOptions, settings: FeatureLookup
) -> Model:
    """Return a model that looks up features: at its feature step, or else before the whole model.

    Raises:
        InvalidArgumentError: The service's columns do not fit the model.
        HeadraceError: See `bind` and `Runtime.load`.
    """
    features = bind(settings)
    try:
        model = runtime.load(path, replace(options, features=features))
    except BaseException:
        features.close()
        raise
    if getattr(model, "takes_features", False):
        return model
    try:
        return with_features(model, features, settings.inputs, show_status=settings.show_status)
    except BaseException:
        close_all([model.close, features.close])
        raise


def is_remote(url: str) -> bool:
    """Whether a store is reached over a connection, so that reads may block."""
    return "://" in url and not url.startswith("sqlite:///")


def _texts(statuses: Sequence[FeatureStatus]) -> Array:
    texts = np.empty(len(statuses), np.object_)
    texts[:] = [_BYTES[status] for status in statuses]
    return texts


_BYTES: Final = {status: status.value.encode() for status in FeatureStatus}
