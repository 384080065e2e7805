"""What does a vector of Hopsworks' say of one entity? JSON values, in the form of our records."""

import base64
import binascii
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from headrace.core import Datatype, InvalidArgumentError
from headrace.features.definitions import FeatureView, Value
from headrace.features.records import Record, RecordLayout
from headrace.features.times import microseconds
from headrace.features.values import misfit

DAMAGED: Final[Record] = b""
_US: Final = 1_000


class VectorReader:
    """Makes records of one view's vectors."""

    def __init__(self, view: FeatureView) -> None:
        self._view = view
        self._layout = RecordLayout(view)
        self._time = view.source.timestamp_field

    def columns(self, metadata: Sequence[tuple[str, str]]) -> Mapping[str, tuple[int, str]]:
        """Where each column stands in a vector, and its type there.

        Raises:
            InvalidArgumentError: A feature of the view is in none, or its time, which a time to
                live needs.
        """
        found = {name: (i, kind) for i, (name, kind) in enumerate(metadata)}
        missing = [one.name for one in self._view.features if one.name not in found]
        if missing:
            there = ", ".join(found)
            message = (
                f"view '{self._view.name}' of Hopsworks has no {missing[0]!r}; it has: {there}"
            )
            raise InvalidArgumentError(message)
        if self._view.ttl_s is not None and self._time not in found:
            message = (
                f"view '{self._view.name}' of Hopsworks gives no {self._time!r}, so that ttl_s "
                "cannot count; add that column to it, or leave ttl_s out"
            )
            raise InvalidArgumentError(message)
        return found

    def record(
        self, vector: Sequence[Any], columns: Mapping[str, tuple[int, str]], now_us: int
    ) -> Record | None:
        """The record of a vector; None if nothing is known, `DAMAGED` if it cannot be read."""
        values: list[Value | None] = []
        for feature in self._view.features:
            at, kind = columns[feature.name]
            try:
                values.append(_value(vector[at], kind, feature.datatype))
            except (ValueError, IndexError, TypeError):
                return DAMAGED
        if all(value is None for value in values):
            return None
        at, _ = columns.get(self._time, (-1, ""))
        event_us = now_us if at < 0 else _time_us(vector[at])
        return DAMAGED if event_us is None else self._layout.pack(event_us, values)


def _value(said: Any, kind: str, datatype: Datatype) -> Value | None:  # noqa: ANN401  # of JSON
    if said is None:
        return None
    if kind == "binary":
        try:
            said = base64.b64decode(said, validate=True)
        except binascii.Error as error:
            raise ValueError from error
    if datatype is Datatype.BOOL and said in {0, 1}:
        said = bool(said)
    if misfit(datatype, said):
        raise ValueError
    match datatype:
        case Datatype.FP32 | Datatype.FP64:
            return float(said)
        case Datatype.BYTES:
            return said.encode() if isinstance(said, str) else bytes(said)
        case _:
            value: Value = said
            return value


def _time_us(said: object) -> int | None:
    """Of text, in UTC if it has no zone, or of milliseconds."""
    try:
        if isinstance(said, int) and not isinstance(said, bool):
            return said * _US
        if isinstance(said, str):
            time = datetime.fromisoformat(said)
            return microseconds(time if time.tzinfo else time.replace(tzinfo=UTC))
    except (ValueError, OverflowError):
        return None
    return None
