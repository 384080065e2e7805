"""Every online store keeps the same promises."""

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import numpy as np
import polars as pl
import pytest

from headrace.core import Datatype, InvalidArgumentError
from headrace.features import (
    DataSource,
    Entity,
    Feature,
    FeatureReader,
    FeatureService,
    FeatureView,
    OnDemandInput,
    OnDemandView,
    OnlineStore,
    ServedRows,
    ServiceColumn,
    compare_served,
    join_as_of,
    materialize,
    offline_rows,
    open_online_store,
)
from headrace.features.keys import encode_keys
from headrace.features.records import Record, RecordLayout, ValueColumn, record_time_us
from headrace.features.served_writer import served_rows
from tests.contract.redis_servers import NoServerError, RedisServer, running_server

VIEW = FeatureView(
    name="stats",
    entities=(Entity(name="customer", join_key="customer"),),
    features=(Feature(name="score", datatype=Datatype.FP32),),
    source=DataSource(path=Path("unused.parquet")),
)
LAYOUT = RecordLayout(VIEW)


def record(event_us: int, score: float = 0.0) -> Record:
    column = ValueColumn(values=np.array([score]), is_present=np.array([True]))
    return LAYOUT.encode(np.array([event_us]), [column])[0]


def key(name: str = "anna") -> bytes:
    return encode_keys(VIEW, [[name]])[0]


def time_of(store: OnlineStore, name: str = "anna", view: str = "stats") -> int | None:
    found = store.read([key(name)], [view]).get((key(name), view))
    return None if found is None else record_time_us(found)


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    yield from _running("redis")


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[RedisServer]:
    yield from _running("valkey")


def _running(kind: str) -> Iterator[RedisServer]:
    try:
        with running_server(kind) as running:
            yield running
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.fixture(
    params=[
        "sqlite",
        pytest.param("redis", marks=pytest.mark.e2e),
        pytest.param("valkey", marks=pytest.mark.e2e),
    ]
)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'online.db'}"
    running: RedisServer = request.getfixturevalue(f"{request.param}_server")
    return running.url


@pytest.fixture
def namespace() -> str:
    return uuid4().hex


@pytest.fixture
def store(url: str, namespace: str) -> Iterator[OnlineStore]:
    opened = open_online_store(url, namespace=namespace)
    yield opened
    opened.close()


def test_what_is_written_is_read(store: OnlineStore) -> None:
    written = store.write("stats", [key()], [record(7, 0.5)])

    assert written == 1
    assert store.read([key()], ["stats"]) == {(key(), "stats"): record(7, 0.5)}


def test_what_nobody_wrote_is_not_there(store: OnlineStore) -> None:
    store.write("stats", [key("anna")], [record(7)])

    assert store.read([key("bert")], ["stats"]) == {}
    assert store.read([key("anna")], ["other"]) == {}
    assert store.read([], ["stats"]) == {}


def test_one_read_brings_several_views_of_several_entities(store: OnlineStore) -> None:
    store.write("stats", [key("anna"), key("bert")], [record(1), record(2)])
    store.write("risk", [key("bert")], [record(3)])

    found = store.read([key("anna"), key("bert"), key("carl")], ["stats", "risk"])

    assert {place: record_time_us(one) for place, one in found.items()} == {
        (key("anna"), "stats"): 1,
        (key("bert"), "stats"): 2,
        (key("bert"), "risk"): 3,
    }


def test_an_older_value_never_replaces_a_newer_one(store: OnlineStore) -> None:
    store.write("stats", [key()], [record(20)])

    written = store.write("stats", [key()], [record(10)])

    assert written == 0
    assert time_of(store) == 20


def test_of_equal_times_the_later_write_counts(store: OnlineStore) -> None:
    store.write("stats", [key()], [record(20, 1.0)])

    written = store.write("stats", [key()], [record(20, 2.0)])

    assert written == 1
    assert store.read([key()], ["stats"]) == {(key(), "stats"): record(20, 2.0)}


def test_times_are_compared_to_the_microsecond_also_before_1970(store: OnlineStore) -> None:
    late = (1 << 53) - 1
    store.write("stats", [key("anna"), key("bert")], [record(late), record(-5)])

    store.write("stats", [key("anna"), key("bert")], [record(late - 1), record(-6)])

    assert time_of(store, "anna") == late
    assert time_of(store, "bert") == -5


def test_within_one_write_the_newest_of_an_entity_stays(store: OnlineStore) -> None:
    store.write("stats", [key(), key(), key()], [record(1), record(3), record(2)])

    assert time_of(store) == 3


def test_more_entities_than_fit_one_round_trip(store: OnlineStore) -> None:
    keys = [key(str(i)) for i in range(1_201)]
    written = store.write("stats", keys, [record(i) for i in range(1_201)])

    found = store.read(keys, ["stats"])

    assert written == 1_201
    assert [record_time_us(found[one, "stats"]) for one in keys] == list(range(1_201))


@pytest.mark.parametrize(
    "name", ["Ж 東京 🚂", "a\0b", "'; DROP TABLE records; --", "\r\nGET x", "x" * 1024]
)
def test_any_text_names_an_entity(store: OnlineStore, name: str) -> None:
    store.write("stats", [key(name)], [record(5)])

    assert time_of(store, name) == 5
    assert time_of(store, name[:-1] or "y") is None


def test_a_watermark_never_falls(store: OnlineStore) -> None:
    before = store.watermark("stats:1")
    store.raise_watermark("stats:1", 1_800_000_000_000_000)
    store.raise_watermark("stats:1", 5)

    assert before is None
    assert store.watermark("stats:1") == 1_800_000_000_000_000
    assert store.watermark("stats:2") is None


def test_the_newest_of_many_writers_stays(url: str, namespace: str) -> None:
    def write(first: int) -> None:
        own = open_online_store(url, namespace=namespace)
        for i in range(first, 200, 4):
            own.write("stats", [key(), key("bert")], [record(i), record(500 - i)])
        own.close()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))

    store = open_online_store(url, namespace=namespace)
    assert (time_of(store, "anna"), time_of(store, "bert")) == (199, 500)
    store.close()


_WRITER = """
import sys
from tests.contract.test_online_stores import key, open_online_store, record
store = open_online_store(sys.argv[1], namespace=sys.argv[2])
for i in range(int(sys.argv[3]), 100, 2):
    store.write("stats", [key()], [record(i)])
"""


@pytest.mark.e2e
def test_the_newest_of_two_processes_stays(url: str, namespace: str, store: OnlineStore) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITER, url, namespace, str(first)])  # noqa: S603  # ours
        for first in (0, 1)
    ]
    codes = [writer.wait(timeout=60) for writer in writers]

    assert codes == [0, 0]
    assert time_of(store) == 99


def test_a_closed_store_opens_again(store: OnlineStore) -> None:
    store.write("stats", [key()], [record(5)])
    store.close()
    store.close()

    assert time_of(store) == 5


def test_what_is_read_and_computed_is_what_a_join_gives(store: OnlineStore, tmp_path: Path) -> None:
    path = tmp_path / "stats.parquet"
    now = datetime.now(UTC)
    known = {"customer": ["anna", "é"], "event_timestamp": [now - timedelta(hours=1)] * 2}
    pl.DataFrame({**known, "score": [0.1, None]}).write_parquet(path)
    view = replace(VIEW, source=DataSource(path=path))
    (score,) = view.features
    doubled = OnDemandView(
        name="doubled",
        function="made.py:make",
        source="def make(x):\n    return {'double': x['score'] * 2 + x['more']}",
        inputs=(OnDemandInput(name="score", view=view, feature=score),),
        request=(Feature(name="more", datatype=Datatype.FP32, default=1.0),),
        features=(Feature(name="double", datatype=Datatype.FP32),),
    )
    service = FeatureService(
        name="s",
        columns=(
            ServiceColumn(name="score", view=view, feature=score),
            ServiceColumn(name="double", view=doubled, feature=doubled.features[0]),
        ),
    )
    people = ["é", "anna", "nobody"]
    materialize(view, store, until=now)

    rows = FeatureReader(service, store).read({"customer": people})
    asked = pl.DataFrame({"customer": people, "event_timestamp": [datetime.now(UTC)] * 3})
    joined = join_as_of(asked, service, fill_defaults=True)
    served = served_rows("s", service.schema_hash, rows.at, {"customer": people}, rows)
    report = compare_served(ServedRows(rows=served), service, offline_rows(served, service))

    for name, column in rows.columns.items():
        assert column.tobytes() == joined[name].to_numpy().tobytes()
    assert report.skewed == ()
    assert report.rows == 3


def test_a_url_of_something_else_is_refused() -> None:
    for url in ("mysql://localhost/x", "", "a\0b"):
        with pytest.raises(InvalidArgumentError, match="online store"):
            open_online_store(url)


def test_a_message_never_shows_a_password() -> None:
    store = open_online_store("redis://anna:s3cret@localhost:1/0")

    assert store.name == "redis://anna@localhost:1/0"


@pytest.mark.parametrize(
    "url",
    [
        "redis://anna:s3cret@localhost:port/0",
        "redis://anna:s3/cret@localhost:1/0",
        "redis://anna:s3cret@[localhost/0",
        "redis://anna:s3cret@localhost/0?option=unknown",
        "redis://anna:s3cret@localhost/0?socket_timeout=long",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be read") as caught:
        open_online_store(url)

    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a:b", "x" * 200])
def test_a_namespace_is_a_name(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="namespace name"):
        open_online_store("redis://localhost", namespace=name)
