"""Records come back as they were, missing values and all; others' and damaged ones are told."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Datatype, InvalidArgumentError
from headrace.features import DataSource, Entity, Feature, FeatureView
from headrace.features.definitions import Value
from headrace.features.records import (
    MAX_EVENT_US,
    MAX_RECORD_BYTES,
    RecordLayout,
    ValueColumn,
    record_time_us,
)

DATATYPES = (Datatype.FP32, Datatype.FP64, Datatype.INT64, Datatype.BOOL, Datatype.BYTES)


def view(*datatypes: Datatype, name: str = "v") -> FeatureView:
    return FeatureView(
        name=name,
        entities=(Entity(name="e", join_key="e"),),
        features=tuple(Feature(name=f"f{i}", datatype=one) for i, one in enumerate(datatypes)),
        source=DataSource(path=Path("x.parquet")),
    )


def column(datatype: Datatype, values: list[Value | None]) -> ValueColumn:
    there = [value is not None for value in values]
    filled = [(b"" if datatype is Datatype.BYTES else 0) if v is None else v for v in values]
    made = np.empty(len(values), dtype=datatype.dtype)
    made[:] = filled
    return ValueColumn(values=made, is_present=np.array(there, dtype=np.bool_))


def values(datatype: Datatype) -> st.SearchStrategy[Value | None]:
    found: st.SearchStrategy[Value]
    match datatype:
        case Datatype.FP32:
            found = st.floats(width=32)
        case Datatype.FP64:
            found = st.floats()
        case Datatype.INT64:
            found = st.integers(-(1 << 63), (1 << 63) - 1)
        case Datatype.BOOL:
            found = st.booleans()
        case _:
            found = st.binary(max_size=20)
    return st.none() | found


@st.composite
def tables(draw: st.DrawFn) -> tuple[tuple[Datatype, ...], list[int], list[list[Value | None]]]:
    datatypes = tuple(draw(st.lists(st.sampled_from(DATATYPES), min_size=1, max_size=12)))
    rows = draw(st.integers(0, 5))
    times = draw(
        st.lists(st.integers(1 - MAX_EVENT_US, MAX_EVENT_US - 1), min_size=rows, max_size=rows)
    )
    columns = [draw(st.lists(values(one), min_size=rows, max_size=rows)) for one in datatypes]
    return datatypes, times, columns


def same(left: object, right: object) -> bool:
    if isinstance(left, float) and isinstance(right, float) and math.isnan(left):
        return math.isnan(right)
    return left == right


@pytest.mark.slow
@given(tables())
def test_records_come_back_as_they_were(
    table: tuple[tuple[Datatype, ...], list[int], list[list[Value | None]]],
) -> None:
    datatypes, times, columns = table
    layout = RecordLayout(view(*datatypes))
    given_columns = [column(one, of) for one, of in zip(datatypes, columns, strict=True)]

    records = layout.encode(np.array(times, dtype=np.int64), given_columns)
    read = layout.decode(records)

    assert [record_time_us(one) for one in records] == times == read.event_us.tolist()
    for i, before in enumerate(columns):
        flags = read.is_present[:, i]
        back = zip(read.columns[i].tolist(), flags, strict=True)
        assert all(map(same, [value if there else None for value, there in back], before))


@pytest.mark.slow
@given(tables(), st.data())
def test_a_record_is_read_alone_as_among_others(
    table: tuple[tuple[Datatype, ...], list[int], list[list[Value | None]]], data: st.DataObject
) -> None:
    """One is read in another way than many, for speed."""
    datatypes, times, columns = table
    layout = RecordLayout(view(*datatypes))
    given_columns = [column(one, of) for one, of in zip(datatypes, columns, strict=True)]
    records = layout.encode(np.array(times, dtype=np.int64), given_columns)
    position = st.integers(0, len(datatypes) - 1)
    chosen = data.draw(st.none() | st.lists(position, max_size=len(datatypes), unique=True))
    all_read = layout.decode([*records, None], chosen)

    for row, record in enumerate(records):
        read = layout.decode([record], chosen)

        assert read.rows.tolist() == [0]
        assert read.event_us.tolist() == [times[row]]
        assert read.is_present.tolist() == [all_read.is_present[row].tolist()]
        assert read.is_whole == all(of[row] is not None for of in columns)
        for alone, among in zip(read.columns, all_read.columns, strict=True):
            assert alone.dtype == among.dtype
            assert alone.flags.writeable
            assert same(alone.tolist()[0], among.tolist()[row])


@given(st.binary(max_size=64), st.integers(0, 60))
def test_a_damaged_record_is_told_or_read_but_never_fails(noise: bytes, at: int) -> None:
    layout = RecordLayout(view(Datatype.BYTES, Datatype.BOOL, Datatype.BYTES))
    texts = column(Datatype.BYTES, [b"abc"])
    (good,) = layout.encode(np.array([5]), [texts, column(Datatype.BOOL, [True]), texts])

    read = layout.decode([good[:at] + noise + good[at + len(noise) :], noise, good])

    assert 2 in read.rows
    assert set(read.rows) | set(read.reasons) == {0, 1, 2}


def test_a_record_of_another_schema_is_told() -> None:
    (old,) = RecordLayout(view(Datatype.FP32)).encode(np.array([5]), [column(Datatype.FP32, [1.0])])
    layout = RecordLayout(view(Datatype.INT64))

    read = layout.decode([None, old])

    assert read.rows.tolist() == []
    assert read.reasons.keys() == {1}
    assert "another schema; materialize the view again" in read.reasons[1]


def test_a_record_of_thirty_floats_has_no_fat() -> None:
    layout = RecordLayout(view(*[Datatype.FP32] * 30))

    (made,) = layout.encode(np.array([5]), [column(Datatype.FP32, [1.0])] * 30)

    assert len(made) == 8 + 8 + 4 + 30 * 4


def test_a_huge_value_is_refused() -> None:
    layout = RecordLayout(view(Datatype.BYTES))

    with pytest.raises(InvalidArgumentError, match="store large values elsewhere"):
        layout.encode(np.array([5]), [column(Datatype.BYTES, [b"x" * MAX_RECORD_BYTES])])


@pytest.mark.parametrize("time", [MAX_EVENT_US, -MAX_EVENT_US, -(1 << 63)])
def test_a_time_that_cannot_be_compared_is_refused(time: int) -> None:
    layout = RecordLayout(view(Datatype.FP32))

    with pytest.raises(InvalidArgumentError, match="2255"):
        layout.encode(np.array([time]), [column(Datatype.FP32, [1.0])])
