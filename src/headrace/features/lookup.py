"""Which values does a request's row take? The newest ones of its entities, in the model's order.

Values older than their view's time to live are not given for present: a join of training data
leaves them out too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np

from headrace.core import (
    Array,
    Clock,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    SystemClock,
)
from headrace.features.definitions import Entity, FeatureService, FeatureView, Policy, Status
from headrace.features.keys import Key, encode_keys, show_key
from headrace.features.lookup_cache import RecordCache
from headrace.features.online import DEFAULT_TIMEOUT_S, ForeignStore, OnlineStore, Place
from headrace.features.records import (
    Booleans,
    DecodedRecords,
    Record,
    RecordLayout,
)

MAX_ROWS: Final = 10_000
_US: Final = 1_000_000


class FeaturesNotFoundError(NotFoundError):
    """An entity has no value in a view, or none that is fresh, and the view says `reject`."""

    def __init__(self, *, entity: str, view: str, status: Status, why: str) -> None:
        super().__init__(f"{entity} has no {why} in feature view '{view}'")
        self.entity = entity
        self.view = view
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureRows:
    """What a service says of some rows.

    `columns`, in the service's order, and `ages_s`, by view and NaN where MISSING, have a value for
    each row. `reasons` says of MISSING rows why a record that is there was not taken.
    """

    columns: Mapping[str, Array]
    statuses: Mapping[str, Sequence[Status]]
    ages_s: Mapping[str, Array]
    reasons: Mapping[str, Mapping[int, str]]

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
        self._entities = service.entities
        self._views = [_ViewReader(view, service) for view in service.views]
        self._view_names = [view.name for view in service.views]
        self._names = [column.name for column in service.columns]
        # As most services are: all columns of one view, then those of the next.
        self._is_in_order = self._names == [name for view in self._views for name in view.names]

    def read(
        self, keys: Mapping[str, Sequence[object] | Array], *, deadline: float | None = None
    ) -> FeatureRows:
        """The service's columns for each row.

        Args:
            keys: For each join key of the service, a value for each row: [rows] or [rows, 1].
            deadline: Monotonic time at which the caller stops waiting; None for never.

        Raises:
            InvalidArgumentError: With all that is wrong with `keys`.
            FeaturesNotFoundError: A view says `reject`, of the first such row.
            DeadlineExceededError: The store did not answer in time.
            UnavailableError: The store cannot be reached.
            FailedPreconditionError: It cannot be read; the message says how to mend it.
        """
        columns = _checked(self._entities, keys)
        keys_of = self._encoded(columns)
        names = self._view_names
        records = self._records(keys_of, deadline)
        now_us = round(self._clock.now() * _US)
        read = [
            view.read([records.get((key, name)) for key in some], some, now_us)
            for view, name, some in zip(self._views, names, keys_of, strict=True)
        ]
        found: dict[str, Array] = {}
        statuses, ages_s, reasons = {}, {}, {}
        for name, one in zip(names, read, strict=True):
            found |= one.columns
            statuses[name], ages_s[name], reasons[name] = one.statuses, one.ages_s, one.reasons
        if not self._is_in_order:
            found = {name: found[name] for name in self._names}
        return FeatureRows(columns=found, statuses=statuses, ages_s=ages_s, reasons=reasons)

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


class _ViewRows(msgspec.Struct, frozen=True, kw_only=True):
    """What one view says of the rows; columns by the service's names."""

    columns: dict[str, Array]
    statuses: list[Status]
    ages_s: Array
    reasons: Mapping[int, str]


class _ViewReader:
    """Makes columns of a view's records."""

    def __init__(self, view: FeatureView, service: FeatureService) -> None:
        self.view = view
        self.entity_names = tuple(entity.name for entity in view.entities)
        self._layout = RecordLayout(view)
        columns = [column for column in service.columns if column.view == view]
        positions = {feature.name: i for i, feature in enumerate(view.features)}
        chosen = [positions[column.feature.name] for column in columns]
        # None: all of them in order, as most services take a view.
        self._positions = None if chosen == list(range(len(view.features))) else chosen
        self.names = [column.name for column in columns]
        self._fillings = [column.feature.filling for column in columns]
        self._ttl_us = None if view.ttl_s is None else round(view.ttl_s * _US)

    def read(self, records: Sequence[Record | None], keys: Sequence[Key], now_us: int) -> _ViewRows:
        decoded = self._layout.decode(records, self._positions)
        age_us = now_us - decoded.event_us
        if decoded.is_whole and len(age_us) == len(records) and self._is_fresh(age_us):
            return _ViewRows(
                columns=dict(zip(self.names, decoded.columns, strict=True)),
                statuses=[Status.PRESENT] * len(records),
                ages_s=age_us / _US,
                reasons=decoded.reasons,
            )
        is_stale = (
            np.zeros(len(age_us), dtype=np.bool_) if self._ttl_us is None else age_us > self._ttl_us
        )
        self._reject(decoded, is_stale, keys)
        is_known = decoded.is_present
        if self.view.on_stale is Policy.DEFAULTS:
            is_known = is_known & ~is_stale[:, np.newaxis]
        ages_s = np.full(len(records), np.nan)
        ages_s[decoded.rows] = age_us / _US
        return _ViewRows(
            columns=self._filled(decoded, is_known, len(records)),
            statuses=_statuses(decoded, is_stale, len(records)),
            ages_s=ages_s,
            reasons=decoded.reasons,
        )

    def _is_fresh(self, age_us: Array) -> bool:
        """Whether none is older than the view's time to live."""
        if self._ttl_us is None or not len(age_us):
            return True
        # Of one row, as most requests have, NumPy's maximum would take longer than all the rest.
        return bool((age_us[0] if len(age_us) == 1 else age_us.max()) <= self._ttl_us)

    def _filled(self, decoded: DecodedRecords, is_known: Booleans, rows: int) -> dict[str, Array]:
        """A value for each row and column: what is known, else the feature's default."""
        made = {}
        for i, (name, filling) in enumerate(zip(self.names, self._fillings, strict=True)):
            values, known = decoded.columns[i], is_known[:, i]
            made[name] = np.full(rows, filling, dtype=values.dtype)
            made[name][decoded.rows[known]] = values[known]
        return made

    def _reject(self, decoded: DecodedRecords, is_stale: Booleans, keys: Sequence[Key]) -> None:
        """Raise for the first row that the view does not let pass."""
        if self.view.on_missing is Policy.REJECT and len(decoded.rows) < len(keys):
            there = set(decoded.rows.tolist())
            row = next(row for row in range(len(keys)) if row not in there)
            reason = decoded.reasons.get(row)
            raise FeaturesNotFoundError(
                entity=show_key(keys[row]),
                view=self.view.name,
                status=Status.MISSING,
                why="value" if reason is None else f"value that can be read ({reason})",
            )
        if self.view.on_stale is Policy.REJECT and is_stale.any():
            row = int(decoded.rows[int(is_stale.argmax())])
            raise FeaturesNotFoundError(
                entity=show_key(keys[row]),
                view=self.view.name,
                status=Status.STALE,
                why=f"value that is at most {self.view.ttl_s:g} s old",
            )


def _statuses(decoded: DecodedRecords, is_stale: Booleans, rows: int) -> list[Status]:
    if len(decoded.rows) == rows and not is_stale.any():
        return [Status.PRESENT] * rows
    made = [Status.MISSING] * rows
    for row, stale in zip(decoded.rows.tolist(), is_stale.tolist(), strict=True):
        made[row] = Status.STALE if stale else Status.PRESENT
    return made


def _checked(
    entities: Sequence[Entity], keys: Mapping[str, Sequence[object] | Array]
) -> dict[str, Sequence[object]]:
    """A list of values for each join key, all of one length."""
    wanted = [entity.join_key for entity in entities]
    wrong = [f"the join key {name!r} is missing" for name in wanted if name not in keys]
    known = f"the service takes: {', '.join(wanted)}"
    wrong += [f"{str(name)[:60]!r} is no join key; {known}" for name in keys if name not in wanted]
    columns: dict[str, Sequence[object]] = {}
    for name in wanted:
        if name in keys:
            column = _listed(keys[name])
            if column is None:
                wrong.append(f"{name!r} should be a list of values, one a row")
            else:
                columns[name] = column
    lengths = {name: len(column) for name, column in columns.items()}
    if len(set(lengths.values())) > 1:
        wrong.append(f"join keys have different numbers of rows: {lengths}")
    if max(lengths.values(), default=0) > MAX_ROWS:
        wrong.append(f"there are more than {MAX_ROWS} rows; ask in several parts")
    if wrong:
        raise InvalidArgumentError("; ".join(wrong))
    return columns


def _listed(column: object) -> Sequence[object] | None:
    if isinstance(column, np.ndarray):
        is_column = column.ndim == 1 or (column.ndim == 2 and column.shape[1] == 1)  # noqa: PLR2004  # [rows, 1]
        return column.reshape(-1).tolist() if is_column else None
    if isinstance(column, Sequence) and not isinstance(column, str | bytes | bytearray):
        return column
    return None
