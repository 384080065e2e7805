"""Every online store keeps the same promises."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import polars as pl
import pytest

from headrace.core import Datatype, FailedPreconditionError, InvalidArgumentError
from headrace.features import (
    DataSource,
    Feature,
    FeatureReader,
    FeatureService,
    OnDemandInput,
    OnDemandView,
    OnlineStore,
    ServiceColumn,
    compare_served,
    join_as_of,
    open_online_store,
)
from headrace.features.online_writers import materialize
from headrace.features.served import ServedRows
from headrace.features.served_offline import offline_rows
from headrace.features.served_writer import served_rows
from headrace.testing.online_stores import VIEW, OnlineStoreContract, key, record, time_of
from tests.contract.redis_servers import NoServerError, RedisServer, running_server


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
def store(url: str) -> Iterator[OnlineStore]:
    opened = open_online_store(url, namespace=uuid4().hex)
    yield opened
    opened.close()


_WRITER = """
import sys
from headrace.features import open_online_store
from headrace.testing.online_stores import key, record
store = open_online_store(sys.argv[1], namespace=sys.argv[2])
for i in range(int(sys.argv[3]), 100, 2):
    store.write("stats", [key()], [record(i)])
"""


class TestOurs(OnlineStoreContract):
    @pytest.fixture
    def url(self, url: str) -> str:
        return url

    @pytest.mark.e2e
    def test_the_newest_of_two_processes_stays(
        self, url: str, namespace: str, store: OnlineStore
    ) -> None:
        writers = [
            subprocess.Popen([sys.executable, "-c", _WRITER, url, namespace, str(first)])  # noqa: S603  # ours
            for first in (0, 1)
        ]
        codes = [writer.wait(timeout=60) for writer in writers]

        assert codes == [0, 0]
        assert time_of(store) == 99


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
    served = served_rows("s", service.schema_hash, rows.read_at, {"customer": people}, rows)
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
    with pytest.raises(InvalidArgumentError, match="is not valid") as caught:
        open_online_store(url)

    assert "cret" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "a:b", "x" * 200])
def test_a_namespace_is_a_name(name: str) -> None:
    with pytest.raises(InvalidArgumentError, match="namespace name"):
        open_online_store("redis://localhost", namespace=name)


_PLUGIN = """
from pathlib import Path
from headrace.features.online.sqlite import SqliteOnlineStore
def open_it(url, *, namespace, timeout_s, read_only):
    return SqliteOnlineStore(Path(f"{url.removeprefix('mine://')}-{namespace}"))
"""


def install(folder: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with an entry point `mine`, as pip would install it."""
    (folder / f"{name}.py").write_text(text)
    information = folder / f"{name}-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text(
        f"[headrace.online_stores]\nmine = {name}:open_it\n"
    )
    monkeypatch.syspath_prepend(folder)


class TestPlugin(OnlineStoreContract):
    @pytest.fixture
    def url(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        install(tmp_path, "my_stores_of_this_test", _PLUGIN, monkeypatch)
        return f"mine://{tmp_path}/online.db"


def test_a_plugin_that_cannot_be_loaded_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path, "broken_stores_of_this_test", "raise ValueError('broken')", monkeypatch)

    with pytest.raises(FailedPreconditionError, match=r"'mine' .* cannot be loaded: ValueError"):
        open_online_store("mine://x")
    with pytest.raises(
        InvalidArgumentError, match=r"'mysql' is not a known kind .*, mine://\.\.\."
    ):
        open_online_store("mysql://x")


def test_a_url_of_sqlite_names_a_file() -> None:
    with pytest.raises(InvalidArgumentError, match="does not name a file; use sqlite:///PATH"):
        open_online_store("sqlite://online.db")


def test_a_store_that_is_only_read_has_to_be_there(tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    with closing(open_online_store(str(path), read_only=True)) as store:
        with pytest.raises(FailedPreconditionError, match="unable to open"):
            time_of(store)
        path.touch()
        with pytest.raises(FailedPreconditionError, match="is empty; fill it"):
            time_of(store)
        with closing(open_online_store(str(path))) as writer:
            writer.write("stats", [key()], [record(5)])
        assert time_of(store) == 5
        with pytest.raises(FailedPreconditionError, match="readonly"):
            store.write("stats", [key()], [record(6)])
