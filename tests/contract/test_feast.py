"""What Feast wrote is read as Feast reads it, but for its faults."""

import math
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import polars as pl
import pytest

from headrace.features import (
    Definitions,
    FeatureReader,
    FeatureService,
    FeatureStatus,
    FeatureView,
    OnlineStore,
    applied_definitions,
    default_online_store,
    join_as_of,
    open_online_store,
)
from headrace.features.applied import apply_feast
from headrace.features.online_writers import service_readiness
from headrace.features.records import RecordLayout, encode_keys, record_time_us
from headrace.testing.online_stores import ForeignStoreContract
from tests.contract.feast_repositories import (
    COMMITTED,
    FEAST,
    NO_FEAST,
    ROOT,
    Repository,
    committed,
    in_redis,
    written_anew,
)
from tests.contract.redis_servers import NoServerError, RedisServer, running_server

pytestmark = pytest.mark.slow
LIVE: Final = pytest.param(
    "written anew",
    marks=[pytest.mark.e2e, pytest.mark.skipif(not FEAST.exists(), reason=NO_FEAST)],
)
SERVICES: Final = ("fraud", "wide", "limits")


class ClockAt:
    """Stands at one moment."""

    def __init__(self, now: float) -> None:
        self._now = now

    def monotonic(self) -> float:
        return 0.0

    def now(self) -> float:
        return self._now


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    try:
        with running_server("valkey") as running:
            yield running
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module", params=["committed", LIVE])
def repository(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Repository:
    folder = tmp_path_factory.mktemp("feast")
    if request.param == "committed":
        return committed(folder)
    running: RedisServer = request.getfixturevalue("server")
    return written_anew(folder, redis_socket=running.socket)


@pytest.fixture
def home(repository: Repository, tmp_path: Path) -> Path:
    apply_feast(repository.path, tmp_path)
    return tmp_path


@pytest.fixture
def definitions(home: Path) -> Definitions:
    return applied_definitions(home)


@pytest.fixture
def store(home: Path) -> Iterator[OnlineStore]:
    opened = open_online_store(default_online_store(home))
    yield opened
    opened.close()


class TestContract(ForeignStoreContract):
    @pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.e2e)])
    def url(
        self,
        request: pytest.FixtureRequest,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> str:
        there = committed(tmp_path / "repo")
        if request.param == "redis":
            running: RedisServer = request.getfixturevalue("server")
            monkeypatch.setenv("FEAST_TEST_SOCKET", str(running.socket))
            in_redis(there, running)
        return f"feast://{there.path}"

    @pytest.fixture
    def service(self, tmp_path: Path) -> FeatureService:
        apply_feast(COMMITTED, tmp_path)
        found = applied_definitions(tmp_path).service("wide")
        columns = [
            replace(c, view=replace(c.view, ttl_s=None))
            for c in found.columns
            if isinstance(c.view, FeatureView)
        ]
        return FeatureService(name="wide", columns=tuple(columns))

    @pytest.fixture
    def known(self) -> Mapping[str, object]:
        return {"customer_id": 1, "shop_id": "süd"}

    @pytest.fixture
    def unknown(self) -> Mapping[str, object]:
        return {"customer_id": 99, "shop_id": "süd"}


def test_all_that_can_be_taken_is_defined(repository: Repository, definitions: Definitions) -> None:
    views = definitions.views

    assert list(views) == ["customer_stats", "visits", "cards"]
    assert {name: view.ttl_s for name, view in views.items()} == {
        "customer_stats": 86400.0,
        "visits": None,
        "cards": 31536000.0,
    }
    assert [
        (entity.name, entity.join_key, entity.datatype.value)
        for entity in definitions.entities.values()
    ] == [
        ("customer", "customer_id", "INT64"),
        ("shop", "shop_id", "BYTES"),
        ("card", "card", "INT64"),
    ]
    assert [(one.name, one.datatype.value) for one in views["customer_stats"].features] == [
        ("age", "INT64"),
        ("level", "INT64"),
        ("spend", "FP32"),
        ("score", "FP64"),
        ("is_new", "BOOL"),
        ("city", "BYTES"),
    ]
    assert views["visits"].source.path == repository.path / "visits.parquet"
    assert [one.name for one in definitions.service("wide").columns] == ["visits", "score", "age"]


def test_what_is_left_out_is_told_with_its_reason(repository: Repository, tmp_path: Path) -> None:
    _, left_out = apply_feast(repository.path, tmp_path)

    assert {f"{one.kind} {one.name}": one.reason for one in left_out} == {
        "view share": "it runs Feast code on demand",
        "view everybody": "it has no entity",
        "feature cards:vector": "Feast's type 16 is not a single number, boolean or text",
        "service vectors": "its feature cards:vector is left out",
        "service shares": "its view 'share' is left out",
        "service mapped": "it maps the join keys of view 'customer_stats'",
    }


def test_applied_twice_nothing_changed(repository: Repository, home: Path) -> None:
    changes, _ = apply_feast(repository.path, home)

    assert changes == []


@pytest.mark.parametrize("service", SERVICES)
def test_values_in_sqlite_are_those_that_feast_reads(
    repository: Repository, definitions: Definitions, store: OnlineStore, service: str
) -> None:
    of = definitions.service(service)

    assert read_like_feast(store, of, repository.expected["online"][service]["keys"]) == (
        expected_of(repository.expected["online"][service])
    )


@pytest.mark.e2e
@pytest.mark.parametrize("service", SERVICES)
def test_values_in_redis_are_those_that_feast_reads(
    repository: Repository,
    definitions: Definitions,
    server: RedisServer,
    service: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FEAST_TEST_SOCKET", str(server.socket))
    before = (repository.path / "feature_store.yaml").read_text()
    in_redis(repository, server)
    store = open_online_store(f"feast://{repository.path}")
    expected = repository.expected["redis"][service]

    found = read_like_feast(store, definitions.service(service), expected["keys"])

    store.close()
    (repository.path / "feature_store.yaml").write_text(before)
    assert store.name == f"unix://{server.socket}"
    assert found == expected_of(expected)


def read_like_feast(
    store: OnlineStore, service: FeatureService, keys: Mapping[str, Any]
) -> dict[str, Any]:
    """By column: the values, with None for what is missing, and when they became true."""
    FeatureReader(service, store)  # tells the store which views it reads
    found = {}
    for column in service.columns:
        view = column.view
        assert isinstance(view, FeatureView)
        encoded = encode_keys(view, [keys[name] for name in view.join_keys])
        records = store.read(encoded, [view.name])
        position = [feature.name for feature in view.features].index(column.feature.name)
        values: list[object] = []
        for key in encoded:
            record = records.get((key, view.name))
            read = RecordLayout(view).decode([record], [position])
            assert not read.reasons
            if record is None or not read.is_present[0, 0]:
                values.append((None, 0.0 if record is None else record_time_us(record) / 1e6))
            else:
                value = read.columns[0][0]
                value = value.item() if hasattr(value, "item") else value.decode()
                shown = value.hex() if isinstance(value, float) else value
                values.append((shown, record_time_us(record) / 1e6))
        found[column.name] = values
    return found


def expected_of(service: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: list(zip(column["values"], column["seconds"], strict=True))
        for name, column in service["columns"].items()
    }


def test_a_value_older_than_its_time_to_live_is_stale(
    repository: Repository, definitions: Definitions, store: OnlineStore
) -> None:
    """Feast says PRESENT (1) of all of them."""
    reader = FeatureReader(definitions.service("fraud"), store, clock=ClockAt(repository.now))

    rows = reader.read({"customer_id": [1, 2, -7, 99]})

    feast = repository.expected["online"]["fraud"]["columns"]["age"]["statuses"]
    assert feast[:2] == [1, 1]
    assert rows.statuses["customer_stats"] == [
        FeatureStatus.PRESENT,
        FeatureStatus.STALE,
        FeatureStatus.PRESENT,  # a day old, to the second
        FeatureStatus.MISSING,
    ]
    assert rows.columns["age"].tolist() == [34, 0, -1, 0]
    assert math.isnan(rows.columns["score"][1])


def test_readiness_is_that_of_feasts_materialization(
    repository: Repository, definitions: Definitions, store: OnlineStore
) -> None:
    clock = ClockAt(repository.now + 90_000.0)

    views = service_readiness(definitions.service("wide"), store, clock)

    assert [(one.view, one.status.value, one.age_s) for one in views] == [
        ("visits", "PRESENT", 90_000.0),
        ("customer_stats", "STALE", 90_000.0),
    ]


def test_a_join_equals_that_of_feasts_duckdb_store(
    repository: Repository, definitions: Definitions
) -> None:
    """With every row, also those of which nothing is known: Feast's default store drops them."""
    rows = repository.expected["offline"]["rows"]
    times = pl.Series(rows["event_timestamp"]).str.to_datetime(time_zone="UTC")
    asked = pl.DataFrame(rows).with_columns(event_timestamp=times)

    joined = join_as_of(asked, definitions.service("wide"))

    for name, values in repository.expected["offline"]["columns"].items():
        found = joined[name].fill_nan(None) if joined[name].dtype.is_float() else joined[name]
        assert found.to_list() == values, name
    assert joined.height == len(rows["customer_id"])


_ORDER: Final = """
import sys
from pathlib import Path
from headrace.features import FeatureReader, applied_definitions
from headrace.features import default_online_store, open_online_store
home = Path(sys.argv[1])
store = open_online_store(default_online_store(home))
reader = FeatureReader(applied_definitions(home).service("fraud"), store)
print(*reader.read({"customer_id": [1]}).columns)
print(*(name for name in sys.modules if name in {"feast", "polars", "pandas", "pyarrow"}))
"""


@pytest.mark.e2e
def test_columns_have_one_order_and_feast_is_never_loaded(home: Path) -> None:
    """Feast's own order is that of a set: another one in each process."""
    told = {
        subprocess.run(  # noqa: S603  # ours
            [sys.executable, "-c", _ORDER, home],
            env={"PYTHONHASHSEED": seed},
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2", "3")
    }

    assert told == {"age level spend score is_new city\n\n"}


@pytest.mark.e2e
@pytest.mark.skipif(not FEAST.exists(), reason=NO_FEAST)
def test_times_are_those_of_a_machine_in_another_zone(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Feast writes times of UTC to SQLite as if they were local, and reads them so."""
    there = written_anew(tmp_path / "repo", redis_socket=server.socket, zone="Asia/Tokyo")
    apply_feast(there.path, tmp_path)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        store = open_online_store(default_online_store(tmp_path))
        of = applied_definitions(tmp_path).service("fraud")
        expected = there.expected["online"]["fraud"]
        found = read_like_feast(store, of, expected["keys"])
        store.close()
    finally:
        monkeypatch.undo()
        time.tzset()

    assert found == expected_of(expected)
    assert found["age"][0] == (34, there.now - 3600)
