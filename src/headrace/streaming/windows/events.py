"""What of a record goes into windows: its time, its keys, its values."""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from headrace.core import HeadraceError, InvalidArgumentError
from headrace.core.spec_stream_parts import StreamWindowsSpec
from headrace.streaming.formats import Column, Format
from headrace.streaming.records import LAST_S, Record, unix_time
from headrace.streaming.windows.panes import Plan
from headrace.streaming.windows.settings import microseconds

_LONGEST_KEY: Final = 1024
_SHOWN: Final = 60


class Event(NamedTuple):
    """A record as windows see it; keys and values in the plan's order, None for no value."""

    at_us: int
    keys: tuple[bytes, ...]
    values: tuple[float | None, ...]


class Events:
    """Makes events of records."""

    def __init__(self, settings: StreamWindowsSpec, plan: Plan, reads: Format | None) -> None:
        self._time = settings.time
        self._ahead_s = settings.ahead_s
        self._plan = plan
        self._reads = reads
        """None where records' own keys and times are all that is asked for."""

    def of(self, records: Sequence[Record], *, now_s: float) -> list[Event | HeadraceError | None]:
        """Return the event of each record, or why it has none; None for one without a value.

        Args:
            now_s: Unix time: a timestamp that lies much after it is nobody's.
        """
        columns: Mapping[str, Column] = {}
        errors: Mapping[int, HeadraceError] = {}
        if self._reads is not None:
            fields = self._reads.decode(records)
            columns, errors = fields.columns, fields.errors
        found: list[Event | HeadraceError | None] = []
        at = 0
        for place, record in enumerate(records):
            if record.value is None:
                found.append(None)
                continue
            error = errors.get(place)
            if error is not None:
                found.append(error)
                continue
            try:
                found.append(self._event(record, columns, at, now_s))
            except InvalidArgumentError as wrong:
                found.append(wrong)
            at += 1
        return found

    def _event(self, record: Record, columns: Mapping[str, Column], at: int, now_s: float) -> Event:
        plan = self._plan
        if self._time:
            at_s = unix_time(self._time, columns[self._time][at])
            written_s = record.timestamp_s or now_s
        else:
            at_s, written_s = record.timestamp_s, now_s
            if not 0 < at_s < LAST_S:
                msg = "the record has no timestamp, and windows go by it: name a field in `time`"
                raise InvalidArgumentError(msg)
        if at_s - written_s > self._ahead_s:
            what = f"'{self._time}'" if self._time else "the timestamp"
            msg = (
                f"{what} is {at_s - written_s:.0f} s in the future; windows take up to "
                f"{self._ahead_s:g} s"
            )
            raise InvalidArgumentError(msg)
        keys = tuple(
            [_key(name, columns[name][at]) if name else _own_key(record) for name in plan.keys]
        )
        values = tuple([_value(name, columns[name][at]) for name in plan.fields])
        return Event(microseconds(at_s), keys, values)


def fields_of(settings: StreamWindowsSpec) -> tuple[str, ...]:
    """The fields of records that windows need."""
    wanted = [settings.time]
    for window in settings.windows:
        wanted += [window.key, window.field]
    return tuple(dict.fromkeys(filter(None, wanted)))


def _own_key(record: Record) -> bytes:
    if record.key is None:
        raise InvalidArgumentError("the record has no key, and windows go by it")
    if len(record.key) > _LONGEST_KEY:
        raise InvalidArgumentError(_too_long("the record's key", len(record.key)))
    return record.key


def _key(name: str, value: object) -> bytes:
    """Text and whole numbers, apart: '1' is not 1."""
    if isinstance(value, bool) or not isinstance(value, str | int | bytes):
        msg = f"'{name}' is a key of windows: a text or a whole number, not {_shown(value)}"
        raise InvalidArgumentError(msg)
    key = b"b" + value if isinstance(value, bytes) else msgspec.json.encode(value)
    if len(key) > _LONGEST_KEY:
        raise InvalidArgumentError(_too_long(f"'{name}'", len(key)))
    return key


def _value(name: str, value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    msg = f"'{name}' is added up in windows: a finite number or null, not {_shown(value)}"
    raise InvalidArgumentError(msg)


def _too_long(what: str, size: int) -> str:
    return f"{what} has {size} bytes; a key of windows has at most {_LONGEST_KEY}"


def _shown(value: object) -> str:
    return "null" if value is None else repr(value)[:_SHOWN]
