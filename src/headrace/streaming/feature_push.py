"""Pusher of records to an online store, as rows of a feature view.

A bad row fails only its own record. Pushing a row again changes nothing, as an older row never
replaces a newer one; so a crash causes no lost or wrong values.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from headrace.core import HeadraceError, InvalidArgumentError
from headrace.core.spec.stream_parts import FormatKind
from headrace.core.variables import url_filled_in
from headrace.features import (
    FeatureView,
    OnlineStore,
    applied_definitions,
    open_online_store,
    push_rows,
)
from headrace.features.applied import online_store_url
from headrace.features.online_writers import refusals
from headrace.features.wire import decode_view
from headrace.streaming.codec import Added
from headrace.streaming.codecs import make_reader
from headrace.streaming.formats import Column, FieldLayout, ValueReader
from headrace.streaming.records import Record, unix_time
from headrace.streaming.settings import WorkerSettings


class Pusher:
    """Pushes records to an online store. Used by one thread.

    Args:
        fields: The record field, or window, of each join key and feature of the view.
        time: The field of the event time; empty for the record's timestamp.
    """

    def __init__(
        self,
        view: FeatureView,
        store: OnlineStore,
        reads: ValueReader | None,
        *,
        fields: Mapping[str, str],
        time: str,
    ) -> None:
        self._view = view
        self._store = store
        self._reads = reads
        self._fields = fields
        self._time = time

    def push(self, records: Sequence[Record], added: Added) -> dict[int, HeadraceError]:
        """Write the rows of records; return errors by record position.

        Args:
            added: Fields of the records in addition to their own, without errors.

        Raises:
            HeadraceError: The store is unavailable, or cannot be written.
        """
        errors: dict[int, HeadraceError] = {}
        columns: Mapping[str, Column] = {}
        if self._reads is not None:
            fields = self._reads.decode(records)
            columns, errors = fields.columns, dict(fields.errors)
        rows: list[dict[str, object]] = []
        positions: list[int] = []
        readable = [position for position in range(len(records)) if position not in errors]
        columns = {**columns, **added.select(readable).columns}
        for row_index, position in enumerate(readable):
            try:
                rows.append(self._row(records[position], row_index, columns))
                positions.append(position)
            except InvalidArgumentError as wrong:
                errors[position] = wrong
        refused = refusals(self._view, rows)
        fit = [row for index, row in enumerate(rows) if index not in refused]
        if fit:
            push_rows(self._view, self._store, fit)
        for row_index, reason in refused.items():
            text = f"not a valid row of view '{self._view.name}': {reason}"
            errors[positions[row_index]] = InvalidArgumentError(text)
        return errors

    def _row(
        self, record: Record, row_index: int, columns: Mapping[str, Column]
    ) -> dict[str, object]:
        row = {name: columns[field][row_index] for name, field in self._fields.items()}
        if all(row[feature.name] is None for feature in self._view.features):
            names = ", ".join(self._fields[feature.name] for feature in self._view.features)
            msg = f"the record has none of the features of view '{self._view.name}': {names}"
            raise InvalidArgumentError(msg)
        at_s = (
            unix_time(self._time, columns[self._time][row_index])
            if self._time
            else record.timestamp_s
        )
        if at_s <= 0:
            msg = "the record has no timestamp; name a field with the event time in `time`"
            raise InvalidArgumentError(msg)
        row[self._view.source.timestamp_field] = datetime.fromtimestamp(at_s, UTC)
        return row


def make_pusher(settings: WorkerSettings) -> Pusher:
    """Return the pusher of a stream; it connects to the store with the first row.

    Raises:
        NotFoundError: The view is not applied.
        InvalidArgumentError: The settings do not fit the view, or name no store.
        FailedPreconditionError: No definitions are applied, or an environment variable is not set.
    """
    push_settings = settings.features
    assert push_settings is not None
    home = Path(push_settings.home or settings.home or ".")
    if push_settings.definition:
        view = decode_view(push_settings.definition)
    else:
        view = applied_definitions(home).view(push_settings.view)
    names = [*view.join_keys, *(feature.name for feature in view.features)]
    unknown = sorted(push_settings.fields.keys() - set(names))
    if unknown:
        msg = (
            f"features.fields names '{unknown[0]}', but view '{view.name}' has: {', '.join(names)}"
        )
        raise InvalidArgumentError(msg)
    fields = {name: push_settings.fields.get(name, name) for name in names}
    windows = set() if settings.windows is None else {w.name for w in settings.windows.windows}
    record_fields = [
        name for name in (*fields.values(), push_settings.time) if name and name not in windows
    ]
    if record_fields and settings.format.kind in {FormatKind.RAW, FormatKind.OPEN_INFERENCE}:
        msg = f"features need a format with fields, and the format {settings.format.kind} has none"
        raise InvalidArgumentError(msg)
    layout = FieldLayout(inputs=(), outputs=(), passed=tuple(dict.fromkeys(record_fields)))
    if url := push_settings.online_store:
        url = url_filled_in(url, description="the URL of the online store")
    return Pusher(
        view,
        open_online_store(url or online_store_url(home), timeout_s=push_settings.timeout_s),
        make_reader(settings.format, layout) if record_fields else None,
        fields=fields,
        time=push_settings.time,
    )
