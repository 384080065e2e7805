"""Values of one view for some rows, from its records; defaults for rows without values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from headrace.core import Array, NotFoundError
from headrace.features.definitions import (
    FeatureService,
    FeatureStatus,
    FeatureView,
    MissingValuePolicy,
)
from headrace.features.on_demand import OnDemandFunction
from headrace.features.records import Booleans, DecodedRecords, Key, Record, RecordLayout, show_key

_US: Final = 1_000_000
_SEVERITY: Final = {status: i for i, status in enumerate(FeatureStatus)}


class FeaturesNotFoundError(NotFoundError):
    """An entity has no value in a view, or no fresh one, and the view's policy is `reject`."""

    def __init__(self, *, entity: str, view: str, status: FeatureStatus, reason: str) -> None:
        super().__init__(f"{entity} has no {reason} in feature view '{view}'")
        self.entity = entity
        self.view = view
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewRows:
    """The values of one view for some rows, by feature."""

    columns: dict[str, Array]
    """The served values."""

    inputs: dict[str, Array]
    """The inputs of on-demand views: differ from `columns` only if stale values are served, as
    training has defaults in their place."""

    statuses: Sequence[FeatureStatus]

    ages_s: Array
    """NaN for rows without a record."""

    reasons: Mapping[int, str]
    """By row: why an existing record could not be used."""


class ViewReader:
    """Decodes the records of a view into columns."""

    def __init__(self, view: FeatureView, service: FeatureService) -> None:
        self.view = view
        self.entity_names = tuple(entity.name for entity in view.entities)
        self._layout = RecordLayout(view)
        # The features of a view that are served or that functions need, without duplicates.
        features = [column.feature for column in service.columns if column.view == view]
        for on_demand_view in service.on_demand_views:
            features += [source.feature for source in on_demand_view.inputs if source.view == view]
        self._features = list(dict.fromkeys(features))
        positions = {feature.name: i for i, feature in enumerate(view.features)}
        self._feature_names = [feature.name for feature in self._features]
        selected = [positions[name] for name in self._feature_names]
        # None: all of them in order, the usual case.
        self._positions = None if selected == list(range(len(view.features))) else selected
        self._ttl_us = None if view.ttl_s is None else round(view.ttl_s * _US)

    def read(self, records: Sequence[Record | None], keys: Sequence[Key], now_us: int) -> ViewRows:
        """Decode a record per row; raise FeaturesNotFoundError by policy, naming `keys`."""
        decoded = self._layout.decode(records, self._positions)
        age_us = now_us - decoded.event_us
        if decoded.is_whole and len(age_us) == len(records) and self._is_fresh(age_us):
            columns = dict(zip(self._feature_names, decoded.columns, strict=True))
            return ViewRows(
                columns=columns,
                inputs=columns,
                statuses=[FeatureStatus.PRESENT] * len(records),
                ages_s=age_us / _US,
                reasons=decoded.reasons,
            )
        is_stale = (
            np.zeros(len(age_us), dtype=np.bool_) if self._ttl_us is None else age_us > self._ttl_us
        )
        self._reject(decoded, is_stale, keys)
        has_stale = bool(is_stale.any())
        is_fresh = decoded.is_present
        if has_stale:
            is_fresh = is_fresh & ~is_stale[:, np.newaxis]
        ages_s = np.full(len(records), np.nan)
        ages_s[decoded.rows] = age_us / _US
        columns = inputs = self._filled(decoded, is_fresh, len(records))
        if has_stale and self.view.on_stale is MissingValuePolicy.FLAG:
            columns = self._filled(decoded, decoded.is_present, len(records))
        return ViewRows(
            columns=columns,
            inputs=inputs,
            statuses=_statuses(decoded, is_stale, len(records)),
            ages_s=ages_s,
            reasons=decoded.reasons,
        )

    def _is_fresh(self, age_us: Array) -> bool:
        """Whether no value is older than the view's time to live."""
        if self._ttl_us is None or not len(age_us):
            return True
        # For one row, the usual case, NumPy's maximum would take longer than all the rest.
        return bool((age_us[0] if len(age_us) == 1 else age_us.max()) <= self._ttl_us)

    def _filled(self, decoded: DecodedRecords, is_known: Booleans, rows: int) -> dict[str, Array]:
        """Return a value for each row and column: the stored one, else the feature's default."""
        columns = {}
        for i, feature in enumerate(self._features):
            values, is_row_known = decoded.columns[i], is_known[:, i]
            columns[feature.name] = np.full(rows, feature.filling, dtype=values.dtype)
            columns[feature.name][decoded.rows[is_row_known]] = values[is_row_known]
        return columns

    def _reject(self, decoded: DecodedRecords, is_stale: Booleans, keys: Sequence[Key]) -> None:
        """Raise for the first row that the view's policy rejects."""
        if self.view.on_missing is MissingValuePolicy.REJECT and len(decoded.rows) < len(keys):
            readable = set(decoded.rows.tolist())
            row = next(row for row in range(len(keys)) if row not in readable)
            reason = decoded.reasons.get(row)
            raise FeaturesNotFoundError(
                entity=show_key(keys[row]),
                view=self.view.name,
                status=FeatureStatus.MISSING,
                reason="value" if reason is None else f"value that can be read ({reason})",
            )
        if self.view.on_stale is MissingValuePolicy.REJECT and is_stale.any():
            row = int(decoded.rows[int(is_stale.argmax())])
            raise FeaturesNotFoundError(
                entity=show_key(keys[row]),
                view=self.view.name,
                status=FeatureStatus.STALE,
                reason=f"value that is at most {self.view.ttl_s:g} s old",
            )


def _statuses(decoded: DecodedRecords, is_stale: Booleans, rows: int) -> list[FeatureStatus]:
    if len(decoded.rows) == rows and not is_stale.any():
        return [FeatureStatus.PRESENT] * rows
    statuses = [FeatureStatus.MISSING] * rows
    for row, stale in zip(decoded.rows.tolist(), is_stale.tolist(), strict=True):
        statuses[row] = FeatureStatus.STALE if stale else FeatureStatus.PRESENT
    return statuses


def computed_rows(
    function: OnDemandFunction,
    read: Mapping[str, ViewRows],
    request: Mapping[str, Array],
    rows: int,
) -> ViewRows:
    """Compute an on-demand view from the rows read; age and status are those of its worst input."""
    view = function.view
    inputs = {
        source.name: read[source.view.name].inputs[source.feature.name] for source in view.inputs
    }
    columns = function(
        inputs | {column.name: request[column.name] for column in view.request}, rows
    )
    inputs_rows = [read[source_view.name] for source_view in view.views]
    return ViewRows(
        columns=columns,
        inputs={},
        statuses=worst_statuses([view_rows.statuses for view_rows in inputs_rows], rows),
        ages_s=np.max([np.zeros(rows), *(view_rows.ages_s for view_rows in inputs_rows)], axis=0),
        reasons={},
    )


def worst_statuses(
    statuses_by_view: Sequence[Sequence[FeatureStatus]], rows: int
) -> list[FeatureStatus]:
    """Return for each row the worst of several views' statuses; PRESENT without views."""
    if not statuses_by_view:
        return [FeatureStatus.PRESENT] * rows
    return [
        max(statuses, key=_SEVERITY.__getitem__) for statuses in zip(*statuses_by_view, strict=True)
    ]
