"""Values of one view for some rows, from its records; defaults where these have none."""

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
_BADNESS: Final = {status: i for i, status in enumerate(FeatureStatus)}


class FeaturesNotFoundError(NotFoundError):
    """An entity has no value in a view, or none that is fresh, and the view says `reject`."""

    def __init__(self, *, entity: str, view: str, status: FeatureStatus, why: str) -> None:
        super().__init__(f"{entity} has no {why} in feature view '{view}'")
        self.entity = entity
        self.view = view
        self.status = status


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewRows:
    """What one view says of the rows, by feature.

    `inputs` are what on-demand views get of it: other than `columns` only where stale values are
    served, as training has defaults in their place.
    """

    columns: dict[str, Array]
    inputs: dict[str, Array]
    statuses: Sequence[FeatureStatus]
    ages_s: Array
    reasons: Mapping[int, str]


class ViewReader:
    """Makes columns of a view's records."""

    def __init__(self, view: FeatureView, service: FeatureService) -> None:
        self.view = view
        self.entity_names = tuple(entity.name for entity in view.entities)
        self._layout = RecordLayout(view)
        # The features of a view that are served or that functions take, each once.
        found = [column.feature for column in service.columns if column.view == view]
        for one in service.on_demand_views:
            found += [taken.feature for taken in one.inputs if taken.view == view]
        self._features = list(dict.fromkeys(found))
        positions = {feature.name: i for i, feature in enumerate(view.features)}
        self._feature_names = [feature.name for feature in self._features]
        chosen = [positions[name] for name in self._feature_names]
        # None: all of them in order, as most services take a view.
        self._positions = None if chosen == list(range(len(view.features))) else chosen
        self._ttl_us = None if view.ttl_s is None else round(view.ttl_s * _US)

    def read(self, records: Sequence[Record | None], keys: Sequence[Key], now_us: int) -> ViewRows:
        """A record for each row, and its key for messages; FeaturesNotFoundError if refused."""
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
        """Whether none is older than the view's time to live."""
        if self._ttl_us is None or not len(age_us):
            return True
        # Of one row, as most requests have, NumPy's maximum would take longer than all the rest.
        return bool((age_us[0] if len(age_us) == 1 else age_us.max()) <= self._ttl_us)

    def _filled(self, decoded: DecodedRecords, is_known: Booleans, rows: int) -> dict[str, Array]:
        """A value for each row and column: what is known, else the feature's default."""
        made = {}
        for i, one in enumerate(self._features):
            values, known = decoded.columns[i], is_known[:, i]
            made[one.name] = np.full(rows, one.filling, dtype=values.dtype)
            made[one.name][decoded.rows[known]] = values[known]
        return made

    def _reject(self, decoded: DecodedRecords, is_stale: Booleans, keys: Sequence[Key]) -> None:
        """Raise for the first row that the view does not let pass."""
        if self.view.on_missing is MissingValuePolicy.REJECT and len(decoded.rows) < len(keys):
            there = set(decoded.rows.tolist())
            row = next(row for row in range(len(keys)) if row not in there)
            reason = decoded.reasons.get(row)
            raise FeaturesNotFoundError(
                entity=show_key(keys[row]),
                view=self.view.name,
                status=FeatureStatus.MISSING,
                why="value" if reason is None else f"value that can be read ({reason})",
            )
        if self.view.on_stale is MissingValuePolicy.REJECT and is_stale.any():
            row = int(decoded.rows[int(is_stale.argmax())])
            raise FeaturesNotFoundError(
                entity=show_key(keys[row]),
                view=self.view.name,
                status=FeatureStatus.STALE,
                why=f"value that is at most {self.view.ttl_s:g} s old",
            )


def _statuses(decoded: DecodedRecords, is_stale: Booleans, rows: int) -> list[FeatureStatus]:
    if len(decoded.rows) == rows and not is_stale.any():
        return [FeatureStatus.PRESENT] * rows
    made = [FeatureStatus.MISSING] * rows
    for row, stale in zip(decoded.rows.tolist(), is_stale.tolist(), strict=True):
        made[row] = FeatureStatus.STALE if stale else FeatureStatus.PRESENT
    return made


def computed_rows(
    function: OnDemandFunction,
    read: Mapping[str, ViewRows],
    request: Mapping[str, Array],
    rows: int,
) -> ViewRows:
    """What an on-demand view makes of what was read; as old, and as present, as its worst input."""
    view = function.view
    inputs = {one.name: read[one.view.name].inputs[one.feature.name] for one in view.inputs}
    columns = function(inputs | {one.name: request[one.name] for one in view.request}, rows)
    of_views = [read[one.name] for one in view.views]
    return ViewRows(
        columns=columns,
        inputs={},
        statuses=worst_statuses([one.statuses for one in of_views], rows),
        ages_s=np.max([np.zeros(rows), *(one.ages_s for one in of_views)], axis=0),
        reasons={},
    )


def worst_statuses(of_views: Sequence[Sequence[FeatureStatus]], rows: int) -> list[FeatureStatus]:
    """For each row the worst of several views' statuses; PRESENT where there are none."""
    if not of_views:
        return [FeatureStatus.PRESENT] * rows
    return [max(some, key=_BADNESS.__getitem__) for some in zip(*of_views, strict=True)]
