"""What of a record goes into windows, and which records say nothing that does."""

import math
from datetime import UTC, datetime

import msgspec
import pytest

from headrace.core import HeadraceError, InvalidArgumentError
from headrace.core.spec.stream_parts import (
    Function,
    StreamFormatSpec,
    StreamWindowSpec,
    StreamWindowsSpec,
)
from headrace.streaming.formats import FieldLayout, Fields
from headrace.streaming.formats.json_objects import make_reader
from headrace.streaming.records import Record
from headrace.streaming.windows.panes import Events, WindowEvent, fields_of, plan_windows
from tests.unit.streaming.parts import record

NOW_S = 1_700_000_000.0
SUM = StreamWindowSpec(name="s", size_s=10, function=Function.SUM, field="v", key="k")
COUNT = StreamWindowSpec(name="n", size_s=10)


def events(told: StreamWindowsSpec, *records: Record) -> list[WindowEvent | HeadraceError | None]:
    names = fields_of(told)
    layout = FieldLayout(inputs=(), outputs=(), passed=names)
    reads = make_reader(StreamFormatSpec(), layout) if names else None
    return Events(told, plan_windows(told), reads).from_records(records, now_s=NOW_S)


def of_fields(**fields: object) -> WindowEvent | HeadraceError | None:
    value = {"t": NOW_S, "k": "a", "v": 1, **fields}
    (found,) = events(
        StreamWindowsSpec(windows=[SUM], time="t"),
        record(msgspec.json.encode(value), timestamp_s=NOW_S),
    )
    return found


def test_records_own_keys_and_times_need_no_reading() -> None:
    found = events(
        StreamWindowsSpec(windows=[COUNT]),
        record(b"no json", key=b"k", timestamp_s=NOW_S),
        record(b"", key=None, timestamp_s=NOW_S),
        record(b"", key=b"k", timestamp_s=0.0),
        record(b"", key=b"k" * 1025, timestamp_s=NOW_S),
        record(b"", key=b"k", timestamp_s=NOW_S + 301),
    )

    assert found[0] == WindowEvent(1_700_000_000_000_000, (b"k",), ())
    for error, why in zip(
        found[1:],
        ("has no key", "has no timestamp", "has 1025 bytes", "301 s in the future"),
        strict=True,
    ):
        assert isinstance(error, InvalidArgumentError)
        assert why in str(error)


def test_a_record_without_a_value_is_not_counted() -> None:
    tombstone = record(None, key=b"k", timestamp_s=NOW_S)
    value = msgspec.json.encode({"k": "a", "v": 2.5})
    own, (empty, counted) = (
        events(StreamWindowsSpec(windows=[COUNT]), tombstone),
        events(StreamWindowsSpec(windows=[SUM]), tombstone, record(value, timestamp_s=NOW_S)),
    )

    assert (own, empty) == ([None], None)
    assert counted == WindowEvent(1_700_000_000_000_000, (b'"a"',), (2.5,))


def test_errors_leave_the_others_their_own_values() -> None:
    found = events(
        StreamWindowsSpec(windows=[SUM]),
        *[
            record(value, timestamp_s=NOW_S)
            for value in (b'{"k": 1, "v": 1}', b"{", b'{"k": 3, "v": 3}')
        ],
    )

    assert [one.values if isinstance(one, WindowEvent) else None for one in found] == [
        (1.0,),
        None,
        (3.0,),
    ]


@pytest.mark.parametrize(
    ("value", "at_us"),
    [
        (1.5, 1_500_000),
        (0, 0),
        ("1970-01-01T00:00:02+00:00", 2_000_000),
        ("1970-01-01T01:00:02.25+01:00", 2_250_000),
        ("1970-01-01T00:00:02Z", 2_000_000),
    ],
)
def test_times_are_unix_seconds_or_iso_with_a_zone(value: object, at_us: int) -> None:
    found = of_fields(t=value)

    assert isinstance(found, WindowEvent)
    assert found.at_us == at_us


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"t": None}, "'t' must be a time: Unix seconds or ISO 8601 with a zone, not null"),
        ({"t": "2026-01-01T00:00:00"}, "with a zone"),
        ({"t": "soon"}, "not 'soon'"),
        ({"t": -1}, "not -1"),
        ({"t": True}, "not True"),
        ({"t": 10**400}, "'t' must be a time"),
        ({"t": 1e300}, "'t' must be a time"),
        ({"t": NOW_S + 400}, "'t' is 400 s in the future; windows accept up to 300 s"),
        ({"k": None}, "'k' is a window key: it must be text or an integer, not null"),
        ({"k": 1.5}, "not 1.5"),
        ({"k": True}, "not True"),
        ({"k": ["a"]}, "not ['a']"),
        ({"k": "x" * 1100}, "'k' has 1102 bytes"),
        ({"v": "1"}, "'v' must be a finite number or null to be aggregated, not '1'"),
        ({"v": True}, "not True"),
        ({"v": 10**400}, "a finite number"),
    ],
)
def test_what_means_nothing_is_an_error_that_names_the_field(
    fields: dict[str, object], why: str
) -> None:
    found = of_fields(**fields)

    assert isinstance(found, InvalidArgumentError)
    assert why in str(found)


def test_a_missing_value_is_none_and_texts_are_no_numbers() -> None:
    missing, text, number = of_fields(v=None), of_fields(k="1"), of_fields(k=1)

    assert isinstance(missing, WindowEvent)
    assert missing.values == (None,)
    assert isinstance(text, WindowEvent)
    assert isinstance(number, WindowEvent)
    assert text.keys != number.keys


def test_times_that_are_values_of_a_format_count_too() -> None:
    class Typed:
        """As Avro's logical types are."""

        def decode(self, records: object) -> object:
            del records
            at = datetime(1970, 1, 1, 0, 0, 3, tzinfo=UTC)
            return Fields(columns={"t": [at], "k": [b"\xff"], "v": [math.nan]})

    told = StreamWindowsSpec(windows=[SUM], time="t")
    (found,) = Events(told, plan_windows(told), Typed()).from_records(  # type: ignore[arg-type]  # as a format
        [record(b"", timestamp_s=NOW_S)], now_s=NOW_S
    )

    assert isinstance(found, InvalidArgumentError)
    assert "not nan" in str(found)
