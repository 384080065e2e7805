"""Served rows are kept in files of bounded size, whole, and nobody waits for that."""

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from headrace.core import Array, Datatype
from headrace.features import (
    Entity,
    Feature,
    FeatureReader,
    FeatureRows,
    FeatureService,
    FeatureStatus,
    push_rows,
)
from headrace.features.served import ServedRow, list_served, read_served, value_of
from headrace.features.served_writer import ServedFeaturesWriter
from tests.unit.features.stores import MemoryStore
from tests.unit.features.tables import CUSTOMER, at, service, view
from tests.unit.features.test_lookup import TurnedClock

SHOP = Entity(name="shop", join_key="shop")
VIEW = view(
    Path("none"),
    Feature(name="x", datatype=Datatype.FP32),
    Feature(name="n", datatype=Datatype.INT64),
    Feature(name="text", datatype=Datatype.BYTES),
    Feature(name="b", datatype=Datatype.BOOL),
    entities=(CUSTOMER, SHOP),
)
SERVICE: FeatureService = service(VIEW)


def rows(*numbers: int) -> FeatureRows:
    """A read of so many rows, told apart by `n`."""
    count = len(numbers)
    text: Array = np.full(count, b"\xff\x00", dtype=np.object_)
    return FeatureRows(
        columns={
            "x": np.full(count, np.nan, np.float32),
            "n": np.array(numbers, np.int64),
            "text": text,
            "b": np.ones(count, np.bool_),
        },
        statuses={"stats": [FeatureStatus.PRESENT] * count},
        ages_s={"stats": np.full(count, 0.5)},
        reasons={},
        read_at=100.25,
    )


def keys(count: int) -> dict[str, list[object]]:
    return {"customer_id": list(range(count)), "shop": ["é"] * count}


def numbers(directory: Path) -> list[object]:
    return [row.columns["n"] for row in read_served(directory, SERVICE).rows]


@pytest.fixture
def many() -> Iterator[list[ServedFeaturesWriter]]:
    made: list[ServedFeaturesWriter] = []
    yield made
    for writer in made:
        writer.stop()


def test_what_is_kept_is_what_was_served(tmp_path: Path) -> None:
    store = MemoryStore()
    known = {"customer_id": 1, "shop": "é", "event_timestamp": at(0), "x": float("inf")}
    push_rows(VIEW, store, [known | {"n": -(1 << 63), "text": b"\xff\x00", "b": True}])
    asked: dict[str, Array | list[object]] = {
        "customer_id": np.array([[1], [2]]),
        "shop": [b"\xc3\xa9", "é"],
    }
    read = FeatureReader(SERVICE, store, clock=TurnedClock()).read(asked)
    writer = ServedFeaturesWriter(SERVICE, tmp_path / "served")

    writer.add(0.0, asked, read)
    writer.stop()

    first, second = read_served(tmp_path / "served", SERVICE).rows
    assert first == ServedRow(
        at_us=round(at(50).timestamp() * 1e6),
        service="service",
        schema_hash=SERVICE.schema_hash,
        keys={"customer_id": 1, "shop": "é"},
        columns={"x": "inf", "n": -(1 << 63), "text": "\xff\x00", "b": True},
        statuses={"stats": "PRESENT"},
        event_us={"stats": round(at(0).timestamp() * 1e6)},
    )
    assert value_of(Datatype.BYTES, first.columns["text"]) == b"\xff\x00"
    assert (second.keys, second.statuses) == ({"customer_id": 2, "shop": "é"}, {"stats": "MISSING"})
    assert (second.columns["x"], second.event_us) == ("nan", {})


def test_only_the_owner_may_read_them(tmp_path: Path) -> None:
    writer = ServedFeaturesWriter(SERVICE, tmp_path / "a" / "served")
    writer.add(0.0, keys(1), rows(1))
    writer.stop()

    (file,) = list_served(tmp_path / "a" / "served")
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_arrays_may_be_changed_after_they_were_taken(tmp_path: Path) -> None:
    writer = ServedFeaturesWriter(SERVICE, tmp_path)
    read, asked = rows(1, 2), keys(2)
    writer.add(0.0, asked, read)
    read.columns["n"][:] = 9
    asked["customer_id"].clear()
    writer.stop()

    assert numbers(tmp_path) == [1, 2]


def test_of_a_large_read_some_rows_are_taken_evenly(tmp_path: Path) -> None:
    writer = ServedFeaturesWriter(SERVICE, tmp_path, rows_of_read=4)
    writer.add(0.0, keys(100), rows(*range(100)))
    writer.stop()

    assert numbers(tmp_path) == [0, 25, 50, 75]
    assert writer.dropped == {}


@pytest.mark.parametrize(("ratio", "taken"), [(0.25, [0, 4, 8]), (1.0, list(range(10))), (0.0, [])])
def test_a_share_of_the_reads_is_taken(tmp_path: Path, ratio: float, taken: list[int]) -> None:
    writer = ServedFeaturesWriter(SERVICE, tmp_path, ratio=ratio)
    for number in range(10):
        writer.add(0.0, keys(1), rows(number))
    writer.stop()

    assert numbers(tmp_path) == taken if taken else not list_served(tmp_path)


def test_no_rows_are_nothing(tmp_path: Path) -> None:
    writer = ServedFeaturesWriter(SERVICE, tmp_path)
    writer.add(0.0, keys(0), rows())
    writer.stop()

    assert (writer.written, writer.dropped, numbers(tmp_path)) == (0, {}, [])


def test_what_finds_no_room_is_dropped_and_counted(
    tmp_path: Path, many: list[ServedFeaturesWriter]
) -> None:
    fifo = tmp_path / "blocked"
    fifo.mkdir()
    writer = ServedFeaturesWriter(SERVICE, fifo, max_waiting_rows=10)
    many.append(writer)
    with writer._changed:  # the thread that writes waits for this, as it would for a disk
        for _ in range(3):
            writer.add(0.0, keys(4), rows(1, 2, 3, 4))
        assert writer.dropped == {"queue": 4}
    writer.stop()

    assert writer.written == 8


def test_after_the_stop_nothing_is_taken(tmp_path: Path) -> None:
    writer = ServedFeaturesWriter(SERVICE, tmp_path)
    writer.stop()
    writer.add(0.0, keys(1), rows(1))
    writer.stop()

    assert (writer.written, writer.dropped) == (0, {"queue": 1})


def test_a_directory_that_cannot_be_written_costs_rows_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "served").write_text("a file")
    writer = ServedFeaturesWriter(SERVICE, tmp_path / "served")
    writer.add(0.0, keys(2), rows(1, 2))
    writer.stop()

    assert (writer.written, writer.dropped) == (0, {"disk": 2})
    assert "cannot write served features" in caplog.text


def test_many_threads_lose_nothing(tmp_path: Path) -> None:
    writer = ServedFeaturesWriter(SERVICE, tmp_path, max_file_bytes=4096)

    def add(first: int) -> None:
        for number in range(first, first + 50):
            writer.add(0.0, keys(1), rows(number))

    threads = [threading.Thread(target=add, args=(n * 50,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.stop()

    assert sorted(map(str, numbers(tmp_path))) == sorted(map(str, range(200)))
    assert (writer.written, writer.dropped) == (200, {})


def test_the_oldest_files_go_and_the_newest_stay(tmp_path: Path) -> None:
    for number in range(8):
        writer = ServedFeaturesWriter(
            SERVICE, tmp_path, max_file_bytes=1, max_total_bytes=1000, rows_of_read=1
        )
        writer.add(0.0, keys(1), rows(number))
        writer.stop()

    kept = numbers(tmp_path)

    assert sum(file.stat().st_size for file in list_served(tmp_path)) <= 1300
    assert kept == list(range(8))[-len(kept) :]
    assert 1 <= len(kept) < 8


def test_half_a_line_and_foreign_lines_are_told_apart(tmp_path: Path) -> None:
    writer = ServedFeaturesWriter(SERVICE, tmp_path)
    writer.add(0.0, keys(2), rows(1, 2))
    writer.stop()
    (file,) = list_served(tmp_path)
    first, second = file.read_bytes().splitlines(keepends=True)
    wrong = first.replace(b'"n":1', b'"n":1.5')
    less = first.replace(b'"n":1,', b"")
    file.write_bytes(first + b"no JSON\n" + wrong + less + b"\xff" * 10 + b"\n" + second[:40])

    read = read_served(tmp_path, SERVICE)

    assert ([row.columns["n"] for row in read.rows], read.unreadable) == ([1], 4)


def test_a_line_without_an_end_is_read_in_pieces(tmp_path: Path) -> None:
    file = tmp_path / "served.jsonl"
    file.write_bytes(b"x" * (9 << 20))

    read = read_served(file, SERVICE)

    assert (read.rows, read.unreadable) == ([], 2)


def test_the_newest_rows_since_a_time_are_read(tmp_path: Path) -> None:
    writer = ServedFeaturesWriter(SERVICE, tmp_path)
    writer.add(0.0, keys(5), rows(0, 1, 2, 3, 4))
    writer.stop()

    limited = read_served(tmp_path, SERVICE, limit=2)
    later = read_served(tmp_path, SERVICE, since_us=100_250_001)

    assert [row.columns["n"] for row in limited.rows] == [3, 4]
    assert len(read_served(tmp_path, SERVICE, since_us=100_250_000).rows) == 5
    assert len(later.rows) == 0


def test_a_file_that_another_replica_removed_is_made_anew(tmp_path: Path) -> None:
    writer = ServedFeaturesWriter(SERVICE, tmp_path)
    writer._file.append(b"")
    for file in list_served(tmp_path):
        os.unlink(file)  # noqa: PTH108  # as the other one does

    writer.add(0.0, keys(1), rows(7))
    writer.stop()

    assert numbers(tmp_path) == [7]
