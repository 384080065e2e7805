"""A shard of Parquet that is read at once has the windows of one that is read in batches."""

from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from headrace.core import InvalidArgumentError
from headrace.jobs.messages import Sizes
from headrace.jobs.sources.parquet import ParquetSource, fits_in_memory
from headrace.jobs.sources.source import ReadRequest

SIZES = Sizes(shard_rows=20, shard_bytes=1 << 20, run_rows=4, window_rows=4, buffer_bytes=1000)
NUMBERS = ("id", "whole", "single", "double", "flag")
MAX_CONCURRENT, IN_BATCHES = 1 << 20, 0


def rows(count: int) -> pa.Table:
    """Numbers of several kinds; nulls, infinities and values that are no numbers among them."""
    odd = (1 / 3, float("nan"), float("-inf"))
    floats = [None if i % 5 == 0 else odd[i % 3] for i in range(count)]
    return pa.table(
        {
            "text": pa.array([f"t{i}" for i in range(count)]),
            "id": pa.array(range(count), pa.int64()),
            "whole": pa.array([None if i % 7 == 0 else i % 200 for i in range(count)], pa.uint8()),
            "single": pa.array(floats, pa.float32()),
            "double": pa.array(floats, pa.float64()),
            "flag": pa.array([i % 3 == 0 for i in range(count)], pa.bool_()),
        }
    )


def read(
    path: Path, *, window: int, whole_bytes: int, columns: tuple[str, ...] = NUMBERS
) -> list[pl.DataFrame]:
    source = ParquetSource([str(path)])
    wanted = ReadRequest(columns=columns, rows=window, whole_bytes=whole_bytes)
    return [
        part.frame for shard in source.cut(SIZES, columns) for part in source.read(shard, wanted)
    ]


@pytest.mark.parametrize("compression", ["snappy", "zstd", "none", "lz4", "gzip", "brotli"])
@pytest.mark.parametrize("window", [3, 10, 64])
def test_at_once_and_in_batches_are_the_same_windows(
    tmp_path: Path, compression: str, window: int
) -> None:
    path = tmp_path / "rows[1]*.parquet"  # a name, no pattern
    pq.write_table(rows(53), path, row_group_size=9, compression=compression)

    whole = read(path, window=window, whole_bytes=MAX_CONCURRENT)
    batches = read(path, window=window, whole_bytes=IN_BATCHES)
    assert sum(frame.height for frame in whole) == 53
    assert [frame.height for frame in whole] == [frame.height for frame in batches]
    for one, other in zip(whole, batches, strict=True):
        assert_frame_equal(one, other, check_exact=True)


@pytest.mark.parametrize(
    ("kinds", "count", "fits"),
    [
        ([pa.int64(), pa.float32()], 10, True),
        ([pa.int64(), pa.float32()], 11, False),
        ([pa.bool_(), pa.uint8()], 60, True),
        ([pa.int8()], None, False),
        ([pa.string()], 1, False),
        ([pa.float16()], 1, False),
        ([pa.list_(pa.float32(), 2)], 1, False),
        ([pa.int64(), pa.dictionary(pa.int32(), pa.string())], 1, False),
    ],
)
def test_only_numbers_that_fit_are_read_at_once(
    kinds: list[pa.DataType], count: int | None, *, fits: bool
) -> None:
    assert fits_in_memory(kinds, count, 120) == fits


@pytest.mark.parametrize("whole_bytes", [MAX_CONCURRENT, IN_BATCHES])
def test_a_damaged_page_is_told_with_the_name_of_its_file(tmp_path: Path, whole_bytes: int) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(rows(200), path, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(0).column(1).data_page_offset
    data[start : start + 60] = b"\xff" * 60
    path.write_bytes(data)
    with pytest.raises(InvalidArgumentError, match=r"rows.parquet cannot be read"):
        read(path, window=10, whole_bytes=whole_bytes)


def nested(count: int) -> pa.Table:
    people = [
        None
        if i % 7 == 3
        else {"age": None if i % 5 == 1 else i, "at": {"x": [i, 0.5], "t": f"t{i}"}}
        for i in range(count)
    ]
    kind = pa.struct(
        [
            ("age", pa.int64()),
            ("at", pa.struct([("x", pa.list_(pa.float64())), ("t", pa.string())])),
            ("dotted.name", pa.int8()),
        ]
    )
    return pa.table({"user": pa.array(people, kind), "user.own": pa.array(range(count))})


@pytest.mark.parametrize("whole_bytes", [MAX_CONCURRENT, IN_BATCHES])
@pytest.mark.parametrize(
    "columns", [("user.age", "user.own"), ("user.at.x", "user.at.t", "user.age")]
)
@pytest.mark.parametrize("group", [9, 1000])
def test_fields_of_structs_are_columns_by_dotted_names(
    tmp_path: Path, whole_bytes: int, columns: tuple[str, ...], group: int
) -> None:
    path = tmp_path / "rows.parquet"
    table = nested(53)
    pq.write_table(table, path, row_group_size=group)
    schema = ParquetSource([str(path)]).schema()
    assert schema.names == ["user.own", "user.age", "user.dotted.name", "user.at.x", "user.at.t"]
    assert schema.field("user.age").type == pa.int64()

    frame = pl.concat(read(path, window=10, whole_bytes=whole_bytes, columns=columns))

    expected = {
        "user.age": [(user or {}).get("age") for user in table["user"].to_pylist()],
        "user.at.x": [
            ((user or {}).get("at") or {}).get("x") for user in table["user"].to_pylist()
        ],
        "user.at.t": [
            ((user or {}).get("at") or {}).get("t") for user in table["user"].to_pylist()
        ],
        "user.own": list(range(53)),
    }
    assert frame.to_dict(as_series=False) == {name: expected[name] for name in columns}
    assert ParquetSource([str(path)]).row_bytes(columns) > 0


def test_a_column_of_a_dotted_name_comes_before_a_field(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"a": [{"b": 1}], "a.b": [2]}), path)
    (frame,) = read(path, window=10, whole_bytes=MAX_CONCURRENT, columns=("a.b",))
    assert frame["a.b"].to_list() == [2]


@pytest.mark.parametrize("columns", [NUMBERS, ("id", "text")])
@pytest.mark.parametrize("whole_bytes", [MAX_CONCURRENT, IN_BATCHES])
@pytest.mark.parametrize("group", [1000, 50])
def test_a_large_row_group_is_several_shards(
    tmp_path: Path, columns: tuple[str, ...], whole_bytes: int, group: int
) -> None:
    path = tmp_path / "rows.parquet"
    table = rows(117)
    pq.write_table(table, path, row_group_size=group)
    source = ParquetSource([str(path)])

    shards = source.cut(SIZES, columns)

    assert [shard.number for shard in shards] == list(range(len(shards)))
    assert [shard.rows for shard in shards] == (
        [29, 29, 29, 30] if group == 1000 else [16, 17, 17, 16, 17, 17, 17]
    )
    wanted = ReadRequest(columns=columns, rows=7, whole_bytes=whole_bytes)
    for shard in shards:
        parts = [part.frame for part in source.read(shard, wanted)]
        assert max(part.height for part in parts) <= 7
        assert sum(part.height for part in parts) == shard.rows
    assert_frame_equal(
        pl.concat(read(path, window=7, whole_bytes=whole_bytes, columns=columns)),
        pl.DataFrame(table.select(columns)),
        check_exact=True,
    )
