"""Comparison of served values with the values that training will see (skew).

Compares a sample of served rows with a join of the same entities at the same times.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

import numpy as np
import numpy.typing as npt

from headrace.core import Array, Datatype
from headrace.features.definitions import (
    FeatureService,
    FeatureView,
    OnDemandView,
    ServiceColumn,
    Value,
)
from headrace.features.served import Plain, ServedRow, ServedRows
from headrace.features.served_offline import OfflineRows, values_of
from headrace.features.values import moment

_MIN_ROWS: Final = 3
"""Minimum number of rows for a hint."""
_MIN_AGREEMENT_RATIO: Final = 0.9
"""Share of the rows that has to agree with a hint."""
_SPREAD: Final = 1e-3
Booleans = npt.NDArray[np.bool_]


def differing(left: Array, right: Array, tolerance: float) -> Booleans:
    """Return where values are unequal; NaN equals NaN, and numbers may differ by rounding.

    Args:
        tolerance: Relative to the larger number.
    """
    if left.dtype.kind != "f":
        return np.asarray(left != right, dtype=np.bool_)
    a, b = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(all="ignore"):
        is_near = np.abs(a - b) <= tolerance * np.maximum(np.abs(a), np.abs(b))
    # Infinity minus infinity is NaN, so equality is tested separately.
    is_equal = (a == b) | (is_near & np.isfinite(a) & np.isfinite(b)) | (np.isnan(a) & np.isnan(b))
    return np.asarray(~is_equal, dtype=np.bool_)


def largest_difference(left: Array, right: Array) -> tuple[float | None, float | None]:
    """Return the largest absolute and median relative difference; None for non-numeric columns."""
    if left.dtype.kind not in "fi":
        return None, None
    a, b = left.astype(np.float64), right.astype(np.float64)
    with np.errstate(all="ignore"):
        absolute = np.abs(a - b)
        relative = absolute / np.maximum(np.abs(a), np.abs(b))
    absolute, relative = absolute[np.isfinite(absolute)], relative[np.isfinite(relative)]
    if not len(absolute):
        return None, None
    return float(absolute.max()), float(np.median(relative)) if len(relative) else None


def looks_like(
    name: str, served: Array, offline: Mapping[str, Array], rows: Array, tolerance: float
) -> str:
    """Return a hint at the cause of the differences of column `name`; empty if unknown.

    Args:
        offline: The expected values, and the other columns of the same type.
        rows: Positions of rows that differ although they have the same event time.
    """
    if len(rows) < _MIN_ROWS:
        return ""
    served_rows = served[rows]
    for other, values in offline.items():
        if other == name or _is_constant(values[rows]):
            continue
        if np.mean(~differing(served_rows, values[rows], tolerance)) >= _MIN_AGREEMENT_RATIO:
            return f"the values of {other!r}"
    if served.dtype.kind not in "fi" or _is_constant(served_rows):
        return ""
    return _by_arithmetic(served_rows.astype(np.float64), offline[name][rows].astype(np.float64))


def _by_arithmetic(served: Array, offline: Array) -> str:
    """Return a hint if values differ from the offline ones by a constant factor or offset."""
    with np.errstate(all="ignore"):
        for values, text in (
            (served / offline, "{:.6g} times the offline value"),
            (served - offline, "the offline value {:+.6g}"),
        ):
            if not np.isfinite(values).all():
                continue
            middle = float(np.median(values))
            is_near = np.abs(values - middle) <= _SPREAD * abs(middle)
            if np.mean(is_near) >= _MIN_AGREEMENT_RATIO:
                return text.format(middle)
    return ""


def _is_constant(values: Array) -> bool:
    return len(set(values.tolist())) == 1


TOLERANCE: Final = 1e-6
"""Relative difference up to which numbers are equal: FP32 has about 1e-7."""
_EXAMPLES: Final = 5
_US: Final = 1_000_000


class SkewCause(StrEnum):
    """Why a served value differs from the joined one."""

    NOT_MATERIALIZED = "NOT_MATERIALIZED"
    """The source had a newer value by then, which was not yet in the online store."""
    MISSING_ONLINE = "MISSING_ONLINE"
    """The source had a value, and the online store had no value."""
    ARRIVED_LATE = "ARRIVED_LATE"
    """The source received the value after serving, with an earlier event time."""
    ONLY_ONLINE = "ONLY_ONLINE"
    """The online store had a value, or a newer one, that the source lacks: it was pushed."""
    DEFAULT_SERVED = "DEFAULT_SERVED"
    """A default was served for a record of the same time, although the source has a value."""
    OTHER_VALUE = "OTHER_VALUE"
    """Values of the same event time differ: another transformation, unit, type or order."""
    INPUT_DIFFERS = "INPUT_DIFFERS"
    """An on-demand feature differs because one of its inputs does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewExample:
    """One value that differs."""

    at: datetime
    keys: Mapping[str, int | str]
    served: Value
    offline: Value
    cause: SkewCause


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureSkew:
    """The skew of one column of a service."""

    feature: str

    view: str

    rows: int
    """Number of rows compared."""

    differing: int
    """Number of rows that differ from the join, without `waiting`."""

    waiting: int
    """Number of rows whose newer value was younger than the grace period."""

    share_ratio: float
    """`differing` / `rows`."""

    causes: Mapping[SkewCause, int]

    largest_absolute: float | None
    """None for non-numeric columns."""

    median_relative: float | None
    """None for non-numeric columns."""

    lag_s: float | None
    """The longest time for which a newer value had been available."""

    looks_like: str
    """A hint, such as `1000 times the offline value`; empty if unknown."""

    examples: tuple[SkewExample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewReport:
    """The skew of a service's features, in its order."""

    service: str

    rows: int
    """Number of rows compared."""

    other_schema: int
    """Number of rows of other definitions."""

    unreadable: int
    """Number of invalid lines."""

    since: datetime | None
    """Time of the first row."""

    until: datetime | None
    """Time of the last row."""

    features: tuple[FeatureSkew, ...]

    @property
    def skewed(self) -> tuple[FeatureSkew, ...]:
        """The features with differing rows."""
        return tuple(feature for feature in self.features if feature.differing)


def compare_served(
    samples: ServedRows,
    service: FeatureService,
    offline: OfflineRows,
    *,
    grace_s: Mapping[str, float] | None = None,
    tolerance: float = TOLERANCE,
) -> SkewReport:
    """Compare served rows with their offline values.

    Args:
        grace_s: By view: how long a newer value may take to reach the online store. Default 0.
        tolerance: Relative difference up to which numbers are equal.
    """
    rows = samples.rows
    comparison = _Comparison(rows, service, offline, grace_s or {}, tolerance)
    return SkewReport(
        service=service.name,
        rows=len(rows),
        other_schema=samples.other_schema,
        unreadable=samples.unreadable,
        since=moment(rows[0].at_us) if rows else None,
        until=moment(rows[-1].at_us) if rows else None,
        features=tuple(comparison.feature(column) for column in service.columns),
    )


class _Comparison:
    """Served and offline values of all columns, and where they differ."""

    def __init__(
        self,
        rows: Sequence[ServedRow],
        service: FeatureService,
        offline: OfflineRows,
        grace_s: Mapping[str, float],
        tolerance: float,
    ) -> None:
        self._rows = rows
        self._offline = offline
        self._grace_us = {name: round(grace * _US) for name, grace in grace_s.items()}
        self._service = service
        self._tolerance = tolerance
        self._served = {
            column.name: _array(column.feature.datatype, [row.columns[column.name] for row in rows])
            for column in service.columns
        }
        self._differs = {
            name: differing(array, offline.columns[name], tolerance)
            for name, array in self._served.items()
        }

    def feature(self, column: ServiceColumn) -> FeatureSkew:
        """Return the skew of one column."""
        served, expected = self._served[column.name], self._offline.columns[column.name]
        causes: Counter[SkewCause] = Counter()
        differences: list[tuple[int, SkewCause]] = []
        waiting, lag_us = 0, -1
        for row in np.flatnonzero(self._differs[column.name]).tolist():
            cause, row_lag_us = self._cause(column, row)
            if row_lag_us is None or row_lag_us >= self._grace_of(column):
                causes[cause] += 1
                differences.append((row, cause))
                lag_us = max(lag_us, -1 if row_lag_us is None else row_lag_us)
            else:
                waiting += 1
        differing_rows = np.array([row for row, _ in differences], dtype=np.int64)
        same_time = np.array(
            [row for row, cause in differences if cause in _OF_VALUE], dtype=np.int64
        )
        others = self._others(column)
        absolute, relative = largest_difference(served[differing_rows], expected[differing_rows])
        return FeatureSkew(
            feature=column.name,
            view=column.view.name,
            rows=len(self._rows),
            differing=len(differences),
            waiting=waiting,
            share_ratio=len(differences) / len(self._rows) if self._rows else 0.0,
            causes=dict(causes),
            largest_absolute=absolute,
            median_relative=relative,
            lag_s=lag_us / _US if lag_us >= 0 else None,
            looks_like=looks_like(column.name, served, others, same_time, self._tolerance),
            examples=tuple(
                self._example(column, *difference) for difference in differences[:_EXAMPLES]
            ),
        )

    def _others(self, column: ServiceColumn) -> dict[str, Array]:
        """Return the offline values of this column and of others of its type."""
        datatype = column.feature.datatype
        return {
            other.name: self._offline.columns[other.name]
            for other in self._service.columns
            if other.feature.datatype is datatype
        }

    def _grace_of(self, column: ServiceColumn) -> int:
        view = column.view
        names = (
            [source_view.name for source_view in view.views]
            if isinstance(view, OnDemandView)
            else [view.name]
        )
        return max((self._grace_us.get(name, 0) for name in names), default=0)

    def _cause(self, column: ServiceColumn, row: int) -> tuple[SkewCause, int | None]:
        """Return why a value differs, and how long a newer one had been available, if any."""
        view = column.view
        if isinstance(view, OnDemandView):
            return self._cause_of_on_demand(view, row)
        cause, lag_us = self._cause_of_view(view, row)
        if cause is None:
            filling = _array(column.feature.datatype, [_plain_filling(column)])
            is_default = not differing(
                self._served[column.name][row : row + 1], filling, self._tolerance
            ).any()
            cause = SkewCause.DEFAULT_SERVED if is_default else SkewCause.OTHER_VALUE
        return cause, lag_us

    def _cause_of_view(self, view: FeatureView, row: int) -> tuple[SkewCause | None, int | None]:
        """Return the cause that event times show; None if they are equal."""
        served_us = self._rows[row].event_us.get(view.name)
        found_us = self._offline.event_us[view.name][row]
        newer_us = self._offline.newer_us[view.name][row]
        lag_us = None if newer_us is None else self._rows[row].at_us - newer_us
        if served_us == found_us:
            return None, None
        if found_us is None or (served_us is not None and found_us < served_us):
            return SkewCause.ONLY_ONLINE, None
        created_us = self._offline.created_us[view.name][row]
        if created_us is not None and created_us > self._rows[row].at_us:
            return SkewCause.ARRIVED_LATE, None
        if served_us is None:
            return SkewCause.MISSING_ONLINE, lag_us
        return SkewCause.NOT_MATERIALIZED, lag_us

    def _cause_of_on_demand(
        self, on_demand_view: OnDemandView, row: int
    ) -> tuple[SkewCause, int | None]:
        for view in on_demand_view.views:
            cause, lag_us = self._cause_of_view(view, row)
            if cause is not None:
                return SkewCause.INPUT_DIFFERS, lag_us
        inputs = {(source.view.name, source.feature.name) for source in on_demand_view.inputs}
        for column in self._service.columns:
            is_input = (column.view.name, column.feature.name) in inputs
            if is_input and self._differs[column.name][row]:
                return SkewCause.INPUT_DIFFERS, None
        return SkewCause.OTHER_VALUE, None

    def _example(self, column: ServiceColumn, row: int, cause: SkewCause) -> SkewExample:
        return SkewExample(
            at=moment(self._rows[row].at_us),
            keys=self._rows[row].keys,
            served=_item(self._served[column.name][row]),
            offline=_item(self._offline.columns[column.name][row]),
            cause=cause,
        )


_OF_VALUE: Final = frozenset({SkewCause.OTHER_VALUE, SkewCause.DEFAULT_SERVED})


def _array(datatype: Datatype, values: Sequence[Plain]) -> Array:
    array: Array = np.empty(len(values), dtype=datatype.dtype)
    array[:] = values_of(datatype, values)
    return array


def _plain_filling(column: ServiceColumn) -> Plain:
    filling = column.feature.filling
    return filling.decode("latin-1") if isinstance(filling, bytes) else filling


def _item(value: object) -> Value:
    plain: Value = value.item() if isinstance(value, np.generic) else value  # type: ignore[assignment]  # bytes
    return plain
