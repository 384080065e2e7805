"""A reader gives each row the service's columns in order, and says how it found them."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from headrace.core import (
    Datatype,
    DeadlineExceededError,
    InvalidArgumentError,
    NotFoundError,
    UnavailableError,
)
from headrace.features import Entity, Feature, FeatureService, MissingValuePolicy, ServiceColumn
from headrace.features.lookup import MAX_ROWS, FeatureReader
from headrace.features.lookup_view import FeaturesNotFoundError
from headrace.features.online_writers import push_rows
from tests.unit.features.stores import MemoryStore
from tests.unit.features.tables import CUSTOMER, at, service, view

NOWHERE = Path("none.parquet")
SHOP = Entity(name="shop", join_key="shop")
STATS = view(
    NOWHERE,
    Feature(name="age", datatype=Datatype.INT64, default=-1),
    Feature(name="spend", datatype=Datatype.FP32),
)
PAIR = view(
    NOWHERE,
    Feature(name="note", datatype=Datatype.BYTES, default=b"none"),
    Feature(name="is_new", datatype=Datatype.BOOL, default=True),
    name="pair",
    entities=(CUSTOMER, SHOP),
    ttl_s=None,
)


class TurnedClock:
    """Stands still until it is turned; begins 50 s after the tests' epoch."""

    def __init__(self) -> None:
        self.passed_s = 0.0

    def monotonic(self) -> float:
        return 1000.0 + self.passed_s

    def now(self) -> float:
        return at(50).timestamp() + self.passed_s


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    push_rows(STATS, made, [stats(1, age=30, spend=0.5), stats(2, age=40, spend=None)])
    pair = {"customer_id": 1, "shop": "é", "event_timestamp": at(0)}
    push_rows(PAIR, made, [pair | {"note": "often", "is_new": False}])
    return made


@pytest.fixture
def clock() -> TurnedClock:
    return TurnedClock()


def stats(customer: int, **values: object) -> dict[str, object]:
    return {"customer_id": customer, "event_timestamp": at(0), **values}


def listed(columns: Mapping[str, np.ndarray]) -> dict[str, list[object]]:
    return {name: column.tolist() for name, column in columns.items()}


def test_rows_get_the_columns_in_the_order_of_the_service(
    store: MemoryStore, clock: TurnedClock
) -> None:
    reader = FeatureReader(service(PAIR, STATS), store, clock=clock)

    found = reader.read({"customer_id": [2, 1], "shop": ["é", "é"]})

    assert list(found.columns) == ["note", "is_new", "age", "spend"]
    assert str(listed(found.columns)) == str(
        {
            "note": [b"none", b"often"],
            "is_new": [True, False],
            "age": [40, 30],
            "spend": [math.nan, 0.5],
        }
    )
    assert found.statuses == {"pair": ["MISSING", "PRESENT"], "stats": ["PRESENT", "PRESENT"]}
    assert found.ages_s["stats"].tolist() == [50.0, 50.0]
    assert [column.dtype for column in found.columns.values()] == [
        object,
        bool,
        np.int64,
        np.float32,
    ]


def test_columns_of_two_views_may_alternate(store: MemoryStore, clock: TurnedClock) -> None:
    mixed = FeatureService(
        name="mixed",
        columns=(
            ServiceColumn(name="b", view=STATS, feature=STATS.features[1]),
            ServiceColumn(name="n", view=PAIR, feature=PAIR.features[1]),
            ServiceColumn(name="a", view=STATS, feature=STATS.features[0]),
        ),
    )

    found = FeatureReader(mixed, store, clock=clock).read({"customer_id": [1], "shop": ["é"]})

    assert list(listed(found.columns).items()) == [("b", [0.5]), ("n", [False]), ("a", [30])]


def test_one_read_of_the_store_serves_all_views_and_rows(
    store: MemoryStore, clock: TurnedClock
) -> None:
    reader = FeatureReader(service(PAIR, STATS), store, clock=clock)

    reader.read({"customer_id": [1, 2, 1, 1], "shop": ["é", "x", "é", "x"]})

    ((keys, views, _),) = store.reads
    assert len(keys) == len(set(keys)) == 3 + 2
    assert sorted(views) == ["pair", "stats"]


def test_a_value_beyond_its_time_to_live_is_stale(store: MemoryStore, clock: TurnedClock) -> None:
    reader = FeatureReader(service(STATS), store, clock=clock)
    clock.passed_s = 50.0
    at_its_end = reader.read({"customer_id": [1, 7]})
    clock.passed_s = 50.1
    beyond = reader.read({"customer_id": [1, 7]})

    assert at_its_end.statuses == {"stats": ["PRESENT", "MISSING"]}
    assert beyond.statuses == {"stats": ["STALE", "MISSING"]}
    assert beyond.columns["age"].tolist() == [-1, -1]
    assert beyond.ages_s["stats"][0] == pytest.approx(100.1)
    assert math.isnan(beyond.ages_s["stats"][1])


def reading(
    store: MemoryStore, clock: TurnedClock, **policies: MissingValuePolicy
) -> FeatureReader:
    of = view(NOWHERE, *STATS.features, **policies)  # type: ignore[arg-type]  # policies
    return FeatureReader(service(of), store, clock=clock)


def test_flag_gives_stale_values_and_says_so(store: MemoryStore, clock: TurnedClock) -> None:
    clock.passed_s = 500.0

    found = reading(store, clock, on_stale=MissingValuePolicy.FLAG).read({"customer_id": [1, 7]})

    assert found.columns["age"].tolist() == [30, -1]
    assert found.statuses == {"stats": ["STALE", "MISSING"]}


def test_reject_names_the_entity_and_the_view(store: MemoryStore, clock: TurnedClock) -> None:
    strict = reading(
        store, clock, on_missing=MissingValuePolicy.REJECT, on_stale=MissingValuePolicy.REJECT
    )

    with pytest.raises(
        FeaturesNotFoundError, match="customer:7 has no value in feature view 'stats'"
    ):
        strict.read({"customer_id": [1, 7]})
    assert strict.read({"customer_id": [1]}).columns["age"].tolist() == [30]
    clock.passed_s = 500.0
    with pytest.raises(NotFoundError, match="customer:1 has no value that is at most 100 s old"):
        strict.read({"customer_id": [1]})


def test_a_record_of_another_schema_is_missing_with_a_reason(
    store: MemoryStore, clock: TurnedClock
) -> None:
    swapped = view(NOWHERE, *reversed(STATS.features), on_missing=MissingValuePolicy.REJECT)
    lenient = view(NOWHERE, *reversed(STATS.features))

    found = FeatureReader(service(lenient), store, clock=clock).read({"customer_id": [1, 7]})

    assert found.statuses == {"stats": ["MISSING", "MISSING"]}
    assert found.columns["age"].tolist() == [-1, -1]
    assert list(found.reasons["stats"]) == [0]
    assert "another schema; materialize the view again" in found.reasons["stats"][0]
    with pytest.raises(FeaturesNotFoundError, match="another schema"):
        FeatureReader(service(swapped), store, clock=clock).read({"customer_id": [1]})


def test_arrays_of_requests_are_keys(store: MemoryStore, clock: TurnedClock) -> None:
    reader = FeatureReader(service(PAIR, STATS), store, clock=clock)
    shops = np.array([["é".encode()], [b"x"]], dtype=np.object_)

    found = reader.read({"customer_id": np.array([[1], [2]], dtype=np.int32), "shop": shops})

    assert found.columns["note"].tolist() == [b"often", b"none"]
    assert found.columns["age"].tolist() == [30, 40]


def test_no_rows_give_empty_columns(store: MemoryStore, clock: TurnedClock) -> None:
    found = FeatureReader(service(PAIR, STATS), store, clock=clock).read(
        {"customer_id": [], "shop": []}
    )

    assert listed(found.columns) == {"note": [], "is_new": [], "age": [], "spend": []}


def test_a_matrix_has_the_columns_side_by_side(store: MemoryStore, clock: TurnedClock) -> None:
    found = FeatureReader(service(STATS), store, clock=clock).read({"customer_id": [1, 1]})

    assert found.matrix().tolist() == [[30.0, 0.5], [30.0, 0.5]]
    assert found.matrix().dtype == np.float32
    texts = FeatureReader(service(PAIR), store, clock=clock)
    with pytest.raises(InvalidArgumentError, match="note"):
        texts.read({"customer_id": [1], "shop": ["é"]}).matrix()


@pytest.mark.parametrize("customers", [[1], [1, 1], [1, 7]])
def test_columns_are_as_runtimes_take_them(
    store: MemoryStore, clock: TurnedClock, customers: list[int]
) -> None:
    keys: dict[str, list[object]] = {
        "customer_id": [*customers],
        "shop": ["é"] * len(customers),
    }

    found = FeatureReader(service(PAIR, STATS), store, clock=clock).read(keys)

    assert all(column.flags.carray for column in found.columns.values())


def test_what_is_given_out_is_the_callers_own(store: MemoryStore, clock: TurnedClock) -> None:
    reader = FeatureReader(service(STATS), store, clock=clock, cache_ttl_s=10.0)
    reader.read({"customer_id": [1]}).columns["age"][0] = 99

    assert reader.read({"customer_id": [1]}).columns["age"].tolist() == [30]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, "'customer_id' is missing; the join key 'shop' is missing"),
        (
            {"customer_id": [1], "shop": ["a"], "x": [1]},
            "'x' is no join key; the service takes: cu",
        ),
        ({"customer_id": [1], "shop": ["a", "b"]}, "different numbers of rows"),
        ({"customer_id": [1], "shop": "a"}, "'shop' should be a list"),
        ({"customer_id": 1, "shop": ["a"]}, "'customer_id' should be a list"),
        ({"customer_id": np.zeros((1, 2), np.int64), "shop": ["a"]}, "should be a list"),
        ({"customer_id": [1.0], "shop": ["a"]}, "is not a valid customer"),
        ({"customer_id": [1] * (MAX_ROWS + 1), "shop": ["a"] * (MAX_ROWS + 1)}, "more than 10000"),
    ],
)
def test_wrong_keys_are_told(store: MemoryStore, keys: dict[str, list[object]], words: str) -> None:
    with pytest.raises(InvalidArgumentError, match=words):
        FeatureReader(service(PAIR, STATS), store).read(keys)
    assert store.reads == []


def test_a_deadline_bounds_the_read(store: MemoryStore, clock: TurnedClock) -> None:
    reader = FeatureReader(service(STATS), store, clock=clock, timeout_s=2.0)

    reader.read({"customer_id": [1]}, deadline=clock.monotonic() + 0.5)
    reader.read({"customer_id": [1]}, deadline=clock.monotonic() + 60.0)
    with pytest.raises(DeadlineExceededError):
        reader.read({"customer_id": [1]}, deadline=clock.monotonic())

    assert [timeout_s for _, _, timeout_s in store.reads] == [0.5, 2.0]


def test_the_cache_answers_for_as_long_as_it_says(store: MemoryStore, clock: TurnedClock) -> None:
    reader = FeatureReader(service(STATS), store, clock=clock, cache_ttl_s=10.0)
    reader.read({"customer_id": [1, 7]})
    push_rows(STATS, store, [stats(1, age=31, spend=1.0), stats(7, age=32, spend=1.0)])

    clock.passed_s = 9.9
    kept = reader.read({"customer_id": [7, 1]})
    clock.passed_s = 10.0
    anew = reader.read({"customer_id": [7, 1]})

    assert kept.columns["age"].tolist() == [-1, 30]
    assert anew.columns["age"].tolist() == [32, 31]
    assert len(store.reads) == 2


def test_what_the_cache_keeps_goes_stale_all_the_same(
    store: MemoryStore, clock: TurnedClock
) -> None:
    reader = FeatureReader(service(STATS), store, clock=clock, cache_ttl_s=1e6)
    reader.read({"customer_id": [1]})
    clock.passed_s = 51.0

    assert reader.read({"customer_id": [1]}).statuses == {"stats": ["STALE"]}
    assert len(store.reads) == 1


def test_the_cache_is_bounded_and_keeps_what_was_used_last(
    store: MemoryStore, clock: TurnedClock
) -> None:
    reader = FeatureReader(service(STATS), store, clock=clock, cache_ttl_s=60.0, cache_entries=2)
    for customer in (1, 2, 1, 3, 1):
        reader.read({"customer_id": [customer]})

    assert [keys for keys, _, _ in store.reads] == [
        [b"customer:1"],
        [b"customer:2"],
        [b"customer:3"],
    ]


def test_an_error_of_the_store_is_not_kept(store: MemoryStore, clock: TurnedClock) -> None:
    reader = FeatureReader(service(STATS), store, clock=clock, cache_ttl_s=60.0)
    store.fails_to_read = UnavailableError("away")
    with pytest.raises(UnavailableError):
        reader.read({"customer_id": [1]})
    store.fails_to_read = None

    assert reader.read({"customer_id": [1]}).columns["age"].tolist() == [30]


def test_a_view_without_a_time_to_live_never_goes_stale(
    store: MemoryStore, clock: TurnedClock
) -> None:
    clock.passed_s = 1e9

    found = FeatureReader(service(PAIR), store, clock=clock).read(
        {"customer_id": [1], "shop": ["é"]}
    )

    assert found.statuses == {"pair": ["PRESENT"]}
