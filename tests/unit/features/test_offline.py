"""A join gives each row what was known at its time: every row once, nothing from the future."""

import tempfile
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.core import Datatype, InvalidArgumentError
from headrace.features import Entity, Feature
from headrace.features.offline import join_as_of
from tests.unit.features.tables import CUSTOMER, TIMES, at, rows, service, view, write

NAIVE = datetime(2026, 1, 1)  # noqa: DTZ001  # on purpose


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "stats.parquet"


def test_a_row_gets_the_newest_value_known_at_its_time(path: Path) -> None:
    write(
        path, customer_id=[1, 1, 1, 2], event_timestamp=[0, 50, 90, 0], score=[1.0, 2.0, 3.0, 9.0]
    )
    asked = rows(customer_id=[1, 2, 1, 1], event_timestamp=[60, 10, 50, 89.999999])

    joined = join_as_of(asked, service(view(path)))

    assert joined["score"].to_list() == [2.0, 9.0, 2.0, 2.0]
    assert joined["stats__status"].to_list() == ["PRESENT"] * 4


def test_a_value_is_stale_only_beyond_its_time_to_live(path: Path) -> None:
    write(path, customer_id=[1], event_timestamp=[0], score=[1.0])
    asked = rows(customer_id=[1, 1, 1, 2], event_timestamp=[100, 100.000001, -1, 0])

    joined = join_as_of(asked, service(view(path, ttl_s=100.0)))

    assert joined["score"].to_list() == [1.0, None, None, None]
    assert joined["stats__status"].to_list() == ["PRESENT", "STALE", "MISSING", "MISSING"]


def test_what_has_no_time_to_live_never_goes_stale(path: Path) -> None:
    write(path, customer_id=[1], event_timestamp=[0], score=[1.0])

    joined = join_as_of(
        rows(customer_id=[1], event_timestamp=[1e9]), service(view(path, ttl_s=None))
    )

    assert joined["score"].to_list() == [1.0]


def test_the_later_creation_decides_between_equal_times(path: Path) -> None:
    write(
        path,
        customer_id=[1, 1, 1],
        event_timestamp=[0, 0, 0],
        created=[at(9), at(7), None],
        score=[1.0, 2.0, 3.0],
    )
    asked = rows(customer_id=[1], event_timestamp=[5])

    assert join_as_of(asked, service(view(path, created="created")))["score"].to_list() == [1.0]
    assert join_as_of(asked, service(view(path)))["score"].to_list() == [3.0]


def test_columns_stand_as_the_service_orders_them_behind_those_that_came(path: Path) -> None:
    write(path, customer_id=[1], event_timestamp=[0], b=[True], a=[5], c=["text"])
    features = [
        Feature(name="c", datatype=Datatype.BYTES),
        Feature(name="a", datatype=Datatype.INT64, default=-1),
        Feature(name="b", datatype=Datatype.BOOL),
    ]
    asked = rows(label=["x", "y"], customer_id=[1, 7], event_timestamp=[0, 0])

    joined = join_as_of(asked, service(view(path, *features)))
    filled = join_as_of(asked, service(view(path, *features)), fill_defaults=True)

    names = ["label", "customer_id", "event_timestamp", "c", "a", "b", "stats__status"]
    assert joined.columns == names
    assert joined.row(0)[3:] == (b"text", 5, True, "PRESENT")
    assert joined.row(1)[3:] == (None, None, None, "MISSING")
    assert filled.row(1)[3:] == (b"", -1, False, "MISSING")


def test_several_entities_name_one_row(path: Path) -> None:
    shop = Entity(name="shop", join_key="shop")
    write(path, customer_id=[1, 1], shop=["é", "e\u0301"], event_timestamp=[0, 0], score=[1.0, 2.0])
    asked = rows(shop=["e\u0301", "é", None], customer_id=[1, 1, 1], event_timestamp=[0, 0, 0])

    joined = join_as_of(asked, service(view(path, entities=(CUSTOMER, shop))))

    assert joined["score"].to_list() == [2.0, 1.0, None]
    assert joined["stats__status"].to_list() == ["PRESENT", "PRESENT", "MISSING"]


def test_times_in_any_zone_and_unit_are_the_same_moment(path: Path) -> None:
    write(path, customer_id=[1], event_timestamp=[0], score=[1.0])
    pl.read_parquet(path).with_columns(
        pl.col("event_timestamp").dt.convert_time_zone("Asia/Tokyo").dt.cast_time_unit("ns")
    ).write_parquet(path)
    moment = pl.Series("event_timestamp", [at(0), at(-1)], TIMES)
    asked = pl.DataFrame({"customer_id": [1, 1]}).with_columns(
        moment.dt.convert_time_zone("America/New_York").dt.cast_time_unit("ms")
    )

    joined = join_as_of(asked, service(view(path)))

    assert joined["score"].to_list() == [1.0, None]
    assert joined["event_timestamp"].dtype == asked["event_timestamp"].dtype


def test_a_null_value_is_a_null_and_present(path: Path) -> None:
    write(path, customer_id=[1, 1], event_timestamp=[0, 1], score=[1.0, None])

    joined = join_as_of(rows(customer_id=[1], event_timestamp=[2]), service(view(path)))

    assert joined.row(0)[2:] == (None, "PRESENT")


def test_nan_and_infinity_are_values(path: Path) -> None:
    write(path, customer_id=[1, 2], event_timestamp=[0, 0], score=[float("nan"), float("inf")])

    joined = join_as_of(rows(customer_id=[1, 2], event_timestamp=[0, 0]), service(view(path)))

    assert str(joined["score"].to_list()) == "[nan, inf]"


def test_no_rows_give_no_rows(path: Path) -> None:
    write(path, customer_id=[1], event_timestamp=[0], score=[1.0])
    asked = rows(customer_id=[1], event_timestamp=[0]).clear()

    joined = join_as_of(asked, service(view(path)))

    assert joined.height == 0
    assert joined.columns == ["customer_id", "event_timestamp", "score", "stats__status"]


def test_a_folder_of_files_is_one_source(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", customer_id=[1], event_timestamp=[0], score=[1.0])
    write(tmp_path / "b.parquet", customer_id=[2], event_timestamp=[0], score=[2.0])
    asked = rows(customer_id=[2, 1], event_timestamp=[0, 0])

    for path in (tmp_path, tmp_path / "*.parquet"):
        assert join_as_of(asked, service(view(path)))["score"].to_list() == [2.0, 1.0]


def refused(path: Path, asked: pl.DataFrame, *features: Feature, **options: str) -> str:
    with pytest.raises(InvalidArgumentError) as caught:
        join_as_of(asked, service(view(path, *features, **options)))  # type: ignore[arg-type]
    return str(caught.value)


def test_all_that_is_wrong_with_entity_rows_is_told(path: Path) -> None:
    naive = pl.DataFrame({"event_timestamp": [NAIVE]})

    told = refused(path, naive)

    assert "column 'customer_id', which identifies each customer" in told
    assert "without a time zone" in told
    assert "replace_time_zone('UTC')" in told


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (pl.DataFrame({"customer_id": [1]}), "no column 'event_timestamp'"),
        (pl.DataFrame({"customer_id": [1], "event_timestamp": ["2026"]}), "should contain times"),
        (rows(customer_id=["1"], event_timestamp=[0]), "should contain integers"),
        (rows(customer_id=[1.0], event_timestamp=[0]), "should contain integers"),
        (rows(customer_id=[1], event_timestamp=[None]), "null in 1 rows"),
        (rows(customer_id=[1], event_timestamp=[0], score=[1.0]), "score; rename them"),
    ],
)
def test_wrong_entity_rows_are_told(path: Path, asked: pl.DataFrame, words: str) -> None:
    write(path, customer_id=[1], event_timestamp=[0], score=[1.0])

    assert words in refused(path, asked)


def test_a_key_that_fits_no_64_bits_is_told(path: Path) -> None:
    write(path, customer_id=[1], event_timestamp=[0], score=[1.0])
    key = pl.Series("customer_id", [1 << 63], pl.UInt64)
    asked = rows(customer_id=[1], event_timestamp=[0]).with_columns(key)

    assert "entity rows" in refused(path, asked)


def test_all_that_is_wrong_with_a_source_is_told(path: Path) -> None:
    wrong = pl.DataFrame({"customer_id": ["a"], "event_timestamp": [NAIVE]})
    wrong.write_parquet(path)

    told = refused(path, rows(customer_id=[1], event_timestamp=[0]), created="created")

    assert str(path) in told
    for words in ("integers", "without a time zone", "no column 'score'", "no column 'created'"):
        assert words in told


@pytest.mark.parametrize(
    ("columns", "datatype", "words"),
    [
        ({"customer_id": [None, 1]}, Datatype.FP64, "'customer_id' is null in 1 rows"),
        ({"event_timestamp": [None, None]}, Datatype.FP64, "'event_timestamp' is null in 2 rows"),
        ({"score": [1e39, -1e39]}, Datatype.FP32, "too large for FP32 in 2 rows"),
        ({"score": ["a", "b"]}, Datatype.FP64, "should contain numbers, but contains String"),
        ({"score": [1.0, 2.0]}, Datatype.INT64, "should contain integers"),
        ({"score": [1, 2]}, Datatype.BOOL, "should contain true and false"),
        ({"score": [1, 2]}, Datatype.BYTES, "should contain text or bytes"),
    ],
)
def test_wrong_values_of_a_source_are_told(
    path: Path, columns: dict[str, object], datatype: Datatype, words: str
) -> None:
    write(path, **{"customer_id": [1, 2], "event_timestamp": [0, 0], "score": [1.0, 2.0]} | columns)
    asked = rows(customer_id=[1], event_timestamp=[0])

    assert words in refused(path, asked, Feature(name="score", datatype=datatype))


def test_a_number_that_fits_no_64_bits_is_told(path: Path) -> None:
    write(path, customer_id=[1], event_timestamp=[0])
    score = pl.Series("score", [(1 << 64) - 1], pl.UInt64)
    pl.read_parquet(path).with_columns(score).write_parquet(path)
    asked = rows(customer_id=[1], event_timestamp=[0])

    told = refused(path, asked, Feature(name="score", datatype=Datatype.INT64))

    assert "'score' is too large for INT64 in 1 rows" in told


@pytest.mark.parametrize("content", [None, b"", b"this is no Parquet, whatever its name says"])
def test_a_source_that_is_no_parquet_is_told(path: Path, content: bytes | None) -> None:
    if content is not None:
        path.write_bytes(content)

    told = refused(path, rows(customer_id=[1], event_timestamp=[0]))

    assert "cannot be read as Parquet" in told
    assert str(path) in told


def test_a_file_that_was_cut_short_is_told(path: Path) -> None:
    write(path, customer_id=[1] * 999, event_timestamp=[0] * 999, score=[1.0] * 999)
    content = path.read_bytes()
    path.write_bytes(content[:50] + b"\xff" * 100 + content[150:])

    assert "cannot be read as Parquet" in refused(path, rows(customer_id=[1], event_timestamp=[0]))


@dataclass(frozen=True)
class Known:
    key: int
    time: int
    created: int | None
    value: float | None


def slow_join(
    asked: list[tuple[int | None, int]], known: list[Known], ttl: int | None
) -> list[tuple[float | None, str]]:
    """The same, as one would explain it: look at every value, keep the best."""
    found: list[tuple[float | None, str]] = []
    for key, time in asked:
        best: Known | None = None
        for one in known:
            if one.key != key or one.time > time:
                continue
            if best is None or (one.time, _created(one)) >= (best.time, _created(best)):
                best = one
        if best is None:
            found.append((None, "MISSING"))
        elif ttl is not None and time - best.time > ttl:
            found.append((None, "STALE"))
        else:
            found.append((best.value, "PRESENT"))
    return found


def _created(one: Known) -> float:
    return -1.0 if one.created is None else one.created


_TIME = st.integers(0, 12)
_KEY = st.integers(1, 3)
_KNOWN = st.builds(
    Known,
    key=_KEY,
    time=_TIME,
    created=st.none() | st.integers(0, 2),
    value=st.none() | st.floats(allow_nan=False),
)


@pytest.mark.slow
@given(
    st.lists(st.tuples(st.none() | _KEY, _TIME), max_size=12),
    st.lists(_KNOWN, max_size=15),
    st.none() | st.integers(1, 6),
)
def test_a_join_equals_a_slow_and_obvious_one(
    asked: list[tuple[int | None, int]], known: list[Known], ttl: int | None
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "stats.parquet"
        pl.DataFrame(
            {
                "customer_id": pl.Series([one.key for one in known], dtype=pl.Int64),
                "event_timestamp": pl.Series([at(one.time) for one in known], dtype=TIMES),
                "created": pl.Series([one.created for one in known], dtype=pl.Int64),
                "score": pl.Series([one.value for one in known], dtype=pl.Float64),
            }
        ).write_parquet(path)
        table = pl.DataFrame(
            {
                "number": range(len(asked)),
                "customer_id": pl.Series([key for key, _ in asked], dtype=pl.Int64),
                "event_timestamp": pl.Series([at(time) for _, time in asked], dtype=TIMES),
            }
        )
        of = view(path, ttl_s=None if ttl is None else float(ttl), created="created")

        joined = join_as_of(table, service(of))

    assert joined["number"].to_list() == list(range(len(asked)))
    got = list(zip(joined["score"], joined["stats__status"], strict=True))
    assert got == slow_join(asked, known, ttl)


def test_times_without_a_zone_are_utc_where_the_view_says_so(path: Path) -> None:
    pl.DataFrame({"customer_id": [1], "event_timestamp": [NAIVE], "n": [2.5]}).write_parquet(path)
    of = view(path)
    source = replace(of.source, is_naive_utc=True, renamed=(("n", "score"), ("none", "x")))

    joined = join_as_of(
        rows(customer_id=[1, 1], event_timestamp=[-1, 0]), service(replace(of, source=source))
    )

    assert joined["score"].to_list() == [None, 2.5]


def test_a_view_without_a_file_is_not_joined(path: Path) -> None:
    of = view(path)
    without = replace(of, source=replace(of.source, path=None))

    with pytest.raises(
        InvalidArgumentError, match=r"'stats' has no Parquet source \(source.path\)"
    ):
        join_as_of(rows(customer_id=[1], event_timestamp=[0]), service(without))
