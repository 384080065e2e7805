"""Comparison of the values that a service served with the values that training will see.

Compares a sample of served rows with what a join says of the same entities at the same times.
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

_FEWEST: Final = 3
"""Rows that a guess is made of."""
_MOST: Final = 0.9
"""So large a part of them has to agree."""
_SPREAD: Final = 1e-3
Booleans = npt.NDArray[np.bool_]


def differing(one: Array, other: Array, tolerance: float) -> Booleans:
    """Where values are not equal; NaN equals NaN, and numbers may differ by rounding.

    Args:
        tolerance: Relative to the larger number.
    """
    if one.dtype.kind != "f":
        return np.asarray(one != other, dtype=np.bool_)
    a, b = one.astype(np.float64), other.astype(np.float64)
    with np.errstate(all="ignore"):
        is_near = np.abs(a - b) <= tolerance * np.maximum(np.abs(a), np.abs(b))
    # Infinities minus themselves are NaN, so equal ones are asked for.
    is_equal = (a == b) | (is_near & np.isfinite(a) & np.isfinite(b)) | (np.isnan(a) & np.isnan(b))
    return np.asarray(~is_equal, dtype=np.bool_)


def largest_difference(one: Array, other: Array) -> tuple[float | None, float | None]:
    """The largest absolute and the median relative difference; None where there are no numbers."""
    if one.dtype.kind not in "fi":
        return None, None
    a, b = one.astype(np.float64), other.astype(np.float64)
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
    """What may have become of the column `name` in the rows where it differs; empty: no idea.

    Args:
        offline: What it should be, and the other columns of its type.
        rows: Positions of those that differ although they are of the same time.
    """
    if len(rows) < _FEWEST:
        return ""
    mine = served[rows]
    for other, values in offline.items():
        if other == name or _is_constant(values[rows]):
            continue
        if np.mean(~differing(mine, values[rows], tolerance)) >= _MOST:
            return f"the values of {other!r}"
    if served.dtype.kind not in "fi" or _is_constant(mine):
        return ""
    return _by_arithmetic(mine.astype(np.float64), offline[name][rows].astype(np.float64))


def _by_arithmetic(served: Array, offline: Array) -> str:
    """Whether all values are so many times, or so much more than, what they should be."""
    with np.errstate(all="ignore"):
        for values, text in (
            (served / offline, "{:.6g} times the offline value"),
            (served - offline, "the offline value {:+.6g}"),
        ):
            if not np.isfinite(values).all():
                continue
            middle = float(np.median(values))
            is_near = np.abs(values - middle) <= _SPREAD * abs(middle)
            if np.mean(is_near) >= _MOST:
                return text.format(middle)
    return ""


def _is_constant(values: Array) -> bool:
    return len(set(values.tolist())) == 1


TOLERANCE: Final = 1e-6
"""Numbers that differ less, relative to the larger one, are equal: FP32 has some 1e-7."""
_EXAMPLES: Final = 5
_US: Final = 1_000_000


class SkewCause(StrEnum):
    """Why a served value is not the one that a join finds."""

    NOT_MATERIALIZED = "NOT_MATERIALIZED"
    """The source had a newer value by then, which had not come to the online store."""
    MISSING_ONLINE = "MISSING_ONLINE"
    """The source had a value, and the online store had none."""
    ARRIVED_LATE = "ARRIVED_LATE"
    """The source got the value after the moment, with an earlier time: nobody could serve it."""
    ONLY_ONLINE = "ONLY_ONLINE"
    """The online store had a value, or a newer one, that the source has not: it was pushed."""
    DEFAULT_SERVED = "DEFAULT_SERVED"
    """A default was served of a record of the same time, where the source has a value."""
    OTHER_VALUE = "OTHER_VALUE"
    """Values of the same time differ: another transformation, unit, type or order."""
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
    """How one column of a service was served.

    `differing` of `rows` are not what a join finds, but for `waiting`: those whose newer value was
    younger than the grace. `largest_absolute` and `median_relative` are None of what is no number.
    `lag_s`: for how long, at most, a newer value had been there. `looks_like`: what may have
    happened, such as `1000 times the offline value`; empty if that cannot be told.
    """

    feature: str
    view: str
    rows: int
    differing: int
    waiting: int
    share_ratio: float
    causes: Mapping[SkewCause, int]
    largest_absolute: float | None
    median_relative: float | None
    lag_s: float | None
    looks_like: str
    examples: tuple[SkewExample, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewReport:
    """What was found in `rows`, served from `since` to `until`; features in the service's order."""

    service: str
    rows: int
    other_schema: int
    unreadable: int
    since: datetime | None
    until: datetime | None
    features: tuple[FeatureSkew, ...]

    @property
    def skewed(self) -> tuple[FeatureSkew, ...]:
        """The features that were served otherwise."""
        return tuple(one for one in self.features if one.differing)


def compare_served(
    samples: ServedRows,
    service: FeatureService,
    offline: OfflineRows,
    *,
    grace_s: Mapping[str, float] | None = None,
    tolerance: float = TOLERANCE,
) -> SkewReport:
    """Compare served rows with what `offline_rows` says of them.

    Args:
        grace_s: By view: how long a newer value may take to come to the online store. 0 by itself.
        tolerance: How much numbers may differ, relative to the larger one.
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
    """Served and offline values of all columns, and which of them differ."""

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
            one.name: _array(one.feature.datatype, [row.columns[one.name] for row in rows])
            for one in service.columns
        }
        self._differs = {
            name: differing(array, offline.columns[name], tolerance)
            for name, array in self._served.items()
        }

    def feature(self, column: ServiceColumn) -> FeatureSkew:
        """What is to be said about one column."""
        served, expected = self._served[column.name], self._offline.columns[column.name]
        causes: Counter[SkewCause] = Counter()
        kept: list[tuple[int, SkewCause]] = []
        waiting, lag_us = 0, -1
        for row in np.flatnonzero(self._differs[column.name]).tolist():
            cause, row_lag_us = self._cause(column, row)
            if row_lag_us is None or row_lag_us >= self._grace_of(column):
                causes[cause] += 1
                kept.append((row, cause))
                lag_us = max(lag_us, -1 if row_lag_us is None else row_lag_us)
            else:
                waiting += 1
        at = np.array([row for row, _ in kept], dtype=np.int64)
        same_time = np.array([row for row, cause in kept if cause in _OF_VALUE], dtype=np.int64)
        others = self._others(column)
        absolute, relative = largest_difference(served[at], expected[at])
        return FeatureSkew(
            feature=column.name,
            view=column.view.name,
            rows=len(self._rows),
            differing=len(kept),
            waiting=waiting,
            share_ratio=len(kept) / len(self._rows) if self._rows else 0.0,
            causes=dict(causes),
            largest_absolute=absolute,
            median_relative=relative,
            lag_s=lag_us / _US if lag_us >= 0 else None,
            looks_like=looks_like(column.name, served, others, same_time, self._tolerance),
            examples=tuple(self._example(column, *one) for one in kept[:_EXAMPLES]),
        )

    def _others(self, column: ServiceColumn) -> dict[str, Array]:
        """The offline values of this column and of others of its type."""
        datatype = column.feature.datatype
        return {
            one.name: self._offline.columns[one.name]
            for one in self._service.columns
            if one.feature.datatype is datatype
        }

    def _grace_of(self, column: ServiceColumn) -> int:
        view = column.view
        names = [one.name for one in view.views] if isinstance(view, OnDemandView) else [view.name]
        return max((self._grace_us.get(name, 0) for name in names), default=0)

    def _cause(self, column: ServiceColumn, row: int) -> tuple[SkewCause, int | None]:
        """Why a value differs, and for how long a newer one had been there, if it had."""
        view = column.view
        if isinstance(view, OnDemandView):
            return self._cause_of_made(view, row)
        cause, lag_us = self._cause_of_view(view, row)
        if cause is None:
            filling = _array(column.feature.datatype, [_plain_filling(column)])
            is_default = not differing(
                self._served[column.name][row : row + 1], filling, self._tolerance
            ).any()
            cause = SkewCause.DEFAULT_SERVED if is_default else SkewCause.OTHER_VALUE
        return cause, lag_us

    def _cause_of_view(self, view: FeatureView, row: int) -> tuple[SkewCause | None, int | None]:
        """What records say: None for those of the same time."""
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

    def _cause_of_made(self, made: OnDemandView, row: int) -> tuple[SkewCause, int | None]:
        for view in made.views:
            cause, lag_us = self._cause_of_view(view, row)
            if cause is not None:
                return SkewCause.INPUT_DIFFERS, lag_us
        inputs = {(one.view.name, one.feature.name) for one in made.inputs}
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
    made: Array = np.empty(len(values), dtype=datatype.dtype)
    made[:] = values_of(datatype, values)
    return made


def _plain_filling(column: ServiceColumn) -> Plain:
    filling = column.feature.filling
    return filling.decode("latin-1") if isinstance(filling, bytes) else filling


def _item(value: object) -> Value:
    plain: Value = value.item() if isinstance(value, np.generic) else value  # type: ignore[assignment]  # bytes
    return plain
