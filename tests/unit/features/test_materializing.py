"""Materializing brings each entity's newest values to the store, however often it is ended."""

import math
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from headrace.core import Datatype, InvalidArgumentError
from headrace.features import Feature, FeatureView
from headrace.features.online_writers import materialize
from headrace.features.records import RecordLayout, encode_keys
from headrace.features.values import moment
from tests.unit.features.stores import MemoryStore
from tests.unit.features.tables import at, view, write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stats.parquet"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def stored(store: MemoryStore, of: FeatureView, key: int = 1) -> tuple[object, ...] | None:
    """When, and the values, None for a missing one."""
    (encoded,) = encode_keys(of, [[key]])
    read = RecordLayout(of).decode([store.records.get((encoded, of.name))])
    if not len(read.rows):
        return None
    flags = read.is_present[0]
    values = [c[0] if there else None for c, there in zip(read.columns, flags, strict=True)]
    return (moment(int(read.event_us[0])), *values)


def test_the_newest_values_at_the_end_are_stored(path: Path, store: MemoryStore) -> None:
    write(path, customer_id=[1, 1, 1, 2], event_timestamp=[5, 9, 20, 3], score=[1.0, 2.0, 3.0, 4.0])
    of = view(path)

    report = materialize(of, store, until=at(10))

    assert stored(store, of, 1) == (at(9), 2.0)
    assert stored(store, of, 2) == (at(3), 4.0)
    assert (report.entities, report.written, report.newest) == (2, 2, at(9))


def test_a_time_at_the_end_is_included(path: Path, store: MemoryStore) -> None:
    write(path, customer_id=[1], event_timestamp=[10], score=[1.0])
    of = view(path)

    materialize(of, store, until=at(10))

    assert stored(store, of) == (at(10), 1.0)


def test_the_later_creation_decides_between_equal_times(path: Path, store: MemoryStore) -> None:
    created = [at(2), at(1)]
    write(path, customer_id=[1, 1], event_timestamp=[5, 5], created=created, score=[1.0, 2.0])
    by_creation, by_place = view(path, created="created"), view(path)

    materialize(by_creation, store, until=at(10))
    assert stored(store, by_creation) == (at(5), 1.0)

    materialize(by_place, store, until=at(10))
    assert stored(store, by_place) == (at(5), 2.0)


def test_every_type_and_missing_values_are_kept(path: Path, store: MemoryStore) -> None:
    columns = {
        "f32": [0.5, None],
        "f64": [float("inf"), None],
        "i": [-(1 << 63), None],
        "b": [True, None],
        "s": ["é", None],
    }
    kinds = (Datatype.FP32, Datatype.FP64, Datatype.INT64, Datatype.BOOL, Datatype.BYTES)
    features = [Feature(name=n, datatype=d) for n, d in zip(columns, kinds, strict=True)]
    write(path, customer_id=[1, 2], event_timestamp=[5, 5], **columns)
    of = view(path, *features)

    materialize(of, store, until=at(10))

    assert stored(store, of, 1) == (at(5), 0.5, math.inf, -(1 << 63), True, "é".encode())
    assert stored(store, of, 2) == (at(5), None, None, None, None, None)


def test_an_incremental_run_reads_from_the_newest_time_on(path: Path, store: MemoryStore) -> None:
    of = view(path)
    write(path, customer_id=[1, 2], event_timestamp=[5, 9], score=[1.0, 2.0])
    materialize(of, store, until=at(10), incremental=True)
    write(path, customer_id=[1, 2, 3, 1], event_timestamp=[5, 9, 9, 12], score=[1.0, 2.0, 3.0, 4.0])

    report = materialize(of, store, until=at(20), incremental=True)

    # Two of the time that was newest, of which one is new, and one after it.
    assert (report.entities, report.since, report.newest) == (3, at(9), at(12))
    assert stored(store, of, 3) == (at(9), 3.0)
    assert stored(store, of, 1) == (at(12), 4.0)


def test_another_schema_begins_at_the_first_row(path: Path, store: MemoryStore) -> None:
    write(path, customer_id=[1], event_timestamp=[5], score=[1.0], more=[2.0])
    materialize(view(path), store, until=at(10), incremental=True)
    more = view(path, *(Feature(name=n, datatype=Datatype.FP64) for n in ("score", "more")))

    report = materialize(more, store, until=at(10), incremental=True)

    assert report.since is None
    assert stored(store, more) == (at(5), 1.0, 2.0)


def test_an_older_run_takes_nothing_back(path: Path, store: MemoryStore) -> None:
    write(path, customer_id=[1, 1], event_timestamp=[5, 9], score=[1.0, 2.0])
    of = view(path)
    materialize(of, store, until=at(10))

    report = materialize(of, store, until=at(6))

    assert (report.entities, report.written) == (1, 0)
    assert stored(store, of) == (at(9), 2.0)
    assert materialize(of, store, until=at(10), incremental=True).since == at(9)


@pytest.mark.parametrize("ended_at", [0, 1, 2])
def test_ended_in_the_middle_and_run_again_it_comes_to_the_same(
    path: Path, store: MemoryStore, ended_at: int
) -> None:
    write(path, customer_id=[1, 2, 3, 4, 5], event_timestamp=[1, 2, 3, 4, 5], score=[1.0] * 5)
    of = view(path)
    whole = MemoryStore()
    materialize(of, whole, until=at(10), incremental=True, rows_per_write=2)

    store.fails_at_write = ended_at
    with pytest.raises(KeyboardInterrupt):
        materialize(of, store, until=at(10), incremental=True, rows_per_write=2)
    store.fails_at_write = None
    materialize(of, store, until=at(10), incremental=True, rows_per_write=2)

    assert (store.records, store.watermarks) == (whole.records, whole.watermarks)


def test_progress_is_told(path: Path, store: MemoryStore) -> None:
    write(path, customer_id=[1, 2, 3], event_timestamp=[1, 2, 3], score=[1.0] * 3)
    told: list[tuple[int, int]] = []

    of = view(path)
    materialize(of, store, until=at(10), progress=lambda *now: told.append(now), rows_per_write=2)

    assert told == [(2, 3), (3, 3)]


def test_no_rows_are_no_mistake(path: Path, store: MemoryStore) -> None:
    write(path, customer_id=[1], event_timestamp=[5], score=[1.0])

    report = materialize(view(path), store, until=at(1))

    assert (report.entities, report.written, report.newest) == (0, 0, None)
    assert store.watermarks == {}


def test_an_end_without_a_zone_is_refused(path: Path, store: MemoryStore) -> None:
    naive = datetime(2026, 1, 1)  # noqa: DTZ001  # on purpose

    with pytest.raises(InvalidArgumentError, match="no time zone; write 2026-01-01T00:00:00"):
        materialize(view(path), store, until=naive)


def test_a_key_that_names_nobody_is_refused(path: Path, store: MemoryStore) -> None:
    write(path, customer_id=[1], event_timestamp=[5], score=[1.0])
    pl.read_parquet(path).with_columns(customer_id=pl.lit("a")).write_parquet(path)

    with pytest.raises(InvalidArgumentError, match="should contain integers, but contains String"):
        materialize(view(path), store, until=at(10))
    assert store.records == {}
