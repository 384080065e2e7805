"""A repository, or its store, that cannot be read says why, and what to do."""

import json
import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from headrace.core import (
    DeadlineExceededError,
    FailedPreconditionError,
    NotFoundError,
    UnavailableError,
)
from headrace.features import (
    FeatureReader,
    FeatureStatus,
    OnlineStore,
    applied_definitions,
    default_online_store,
    open_online_store,
    parse_definitions,
)
from headrace.features.applied import apply_feast
from headrace.features.feast.redis import redis_url
from headrace.features.feast.repository import read_repository

WRITTEN = Path(__file__).parents[3] / "contract" / "feast"
NOBODY = b"customer:99"


class ClockAt:
    """Stands where the committed values were written."""

    def monotonic(self) -> float:
        return 0.0

    def now(self) -> float:
        return datetime(2026, 11, 27, 12, tzinfo=UTC).timestamp()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    shutil.copytree(WRITTEN, folder)
    return folder


def opened(repo: Path) -> OnlineStore:
    return open_online_store(f"feast://{repo}")


def configure(repo: Path, old: str, new: str) -> None:
    file = repo / "feature_store.yaml"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def test_a_folder_without_a_repository_is_told(tmp_path: Path) -> None:
    with pytest.raises(FailedPreconditionError, match=r"feature_store.yaml: No such file.*folder"):
        apply_feast(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("project: market", "project: [", "cannot be read"),
        ("project: market", "", "no `project`"),
        (
            "registry: registry.db",
            "registry: s3://bucket/registry.db",
            "copy the registry to a file",
        ),
        (
            "registry: registry.db",
            "registry: {registry_type: sql, path: x}",
            "copy the registry to a file",
        ),
        ("registry: registry.db", "registry: nothing.db", "`feast apply` writes it"),
        ("version: 3", "version: 2", "write keys of that version"),
        ("project: market", "project: other", "no supported feature view in project 'other'"),
    ],
)
def test_what_is_wrong_with_a_repository_is_told(
    repo: Path, tmp_path: Path, old: str, new: str, words: str
) -> None:
    configure(repo, old, new)

    with pytest.raises(FailedPreconditionError, match=words):
        apply_feast(repo, tmp_path)
    assert not (tmp_path / "features").exists()


@pytest.mark.parametrize("content", [b"\xff" * 50, b"SQLite format 3\0"])
def test_a_registry_that_is_damaged_is_told(repo: Path, tmp_path: Path, content: bytes) -> None:
    (repo / "registry.db").write_bytes(content)

    with pytest.raises(FailedPreconditionError, match="is not a Feast registry, or is damaged"):
        apply_feast(repo, tmp_path)


def test_a_file_that_is_no_text_is_told(repo: Path, tmp_path: Path) -> None:
    (repo / "feature_store.yaml").write_bytes(b"\xff\xfe")

    with pytest.raises(FailedPreconditionError, match="not UTF-8 text"):
        apply_feast(repo, tmp_path)


def test_an_empty_registry_has_nothing_to_take(repo: Path, tmp_path: Path) -> None:
    (repo / "registry.db").write_bytes(b"")

    with pytest.raises(
        FailedPreconditionError, match="no supported feature view in project 'market'"
    ):
        apply_feast(repo, tmp_path)


def test_variables_of_the_environment_stand_in_the_file(
    repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(repo, "project: market", "project: ${FEAST_TEST_PROJECT}")
    monkeypatch.setenv("FEAST_TEST_PROJECT", "market")

    assert read_repository(repo / "feature_store.yaml").project == "market"


def test_a_store_that_is_not_read_is_told_with_a_way_out(repo: Path) -> None:
    configure(repo, "type: sqlite", "type: dynamodb")

    with pytest.raises(FailedPreconditionError, match=r"'dynamodb' is not supported.*materialize"):
        opened(repo)


def test_a_store_that_was_never_filled_is_told(repo: Path) -> None:
    (repo / "online.db").unlink()

    with closing(opened(repo)) as store:
        with pytest.raises(FailedPreconditionError, match=r"unable to open.*feast materialize"):
            store.read([NOBODY], ["customer_stats"])
        sqlite3.connect(repo / "online.db").close()
        with pytest.raises(FailedPreconditionError, match="no such table: market_customer_stats"):
            store.read([NOBODY], ["customer_stats"])
        shutil.copy(WRITTEN / "online.db", repo)
        assert list(store.read([b"customer:1"], ["customer_stats"])) == [
            (b"customer:1", "customer_stats")
        ]


def test_a_store_that_is_no_database_is_told(repo: Path) -> None:
    (repo / "online.db").write_bytes(b"this is no database, whatever its name says" * 100)

    with (
        closing(opened(repo)) as store,
        pytest.raises(FailedPreconditionError, match="not a database"),
    ):
        store.read([NOBODY], ["customer_stats"])


def test_a_store_that_somebody_holds_is_told_in_time(repo: Path) -> None:
    with (
        closing(opened(repo)) as store,
        closing(sqlite3.connect(repo / "online.db", isolation_level=None)) as other,
    ):
        store.read([NOBODY], ["customer_stats"])
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(UnavailableError, match="another process locks it"):
            store.read([NOBODY], ["customer_stats"], timeout_s=0.2)
        with pytest.raises(DeadlineExceededError):
            store.read([NOBODY], ["customer_stats"], timeout_s=-1.0)
        with (
            store._fetcher._lock,  # type: ignore[attr-defined]  # Feast's only
            pytest.raises(DeadlineExceededError, match="was busy for longer"),
        ):
            store.read([NOBODY], ["customer_stats"], timeout_s=0.0)


def test_a_store_of_feasts_is_not_written(repo: Path) -> None:
    with closing(opened(repo)) as store:
        with pytest.raises(
            FailedPreconditionError, match="it belongs to Feast, and `feast materialize`"
        ):
            store.write("customer_stats", [b"customer:1"], [b""])
        with pytest.raises(FailedPreconditionError, match="it belongs to Feast"):
            store.raise_watermark("customer_stats:0", 1)
        assert store.watermark("nothing:0") is None


def test_a_view_that_feast_no_longer_has_is_told(repo: Path, tmp_path: Path) -> None:
    apply_feast(repo, tmp_path)
    of = applied_definitions(tmp_path).service("fraud")
    (repo / "registry.db").write_bytes(b"")

    with closing(open_online_store(default_online_store(tmp_path))) as store:
        with pytest.raises(FailedPreconditionError, match=r"'customer_stats' .* any more"):
            FeatureReader(of, store)
        with pytest.raises(NotFoundError, match="no feature view 'customer_stats'"):
            store.read([NOBODY], ["customer_stats"])


def change(repo: Path, statement: str) -> None:
    with closing(sqlite3.connect(repo / "online.db")) as connection:
        assert connection.execute(statement).rowcount
        connection.commit()


@pytest.mark.parametrize(
    "change_it",
    [
        "UPDATE market_customer_stats SET value = X'FFFF' WHERE feature_name = 'age'",
        "UPDATE market_customer_stats SET event_ts = 'soon'",
        "UPDATE market_customer_stats SET event_ts = 99999999999999999",
        "UPDATE market_customer_stats SET event_ts = NULL",
    ],
)
def test_what_cannot_be_read_is_missing_with_a_reason(
    repo: Path, tmp_path: Path, change_it: str
) -> None:
    apply_feast(repo, tmp_path)
    change(repo, change_it)
    with closing(open_online_store(default_online_store(tmp_path))) as store:
        rows = FeatureReader(applied_definitions(tmp_path).service("fraud"), store).read(
            {"customer_id": [1]}
        )

    assert rows.statuses["customer_stats"] == [FeatureStatus.MISSING]
    assert rows.reasons["customer_stats"] == {0: "the stored record is damaged"}


def test_of_features_written_apart_the_oldest_says_the_age(repo: Path) -> None:
    with closing(opened(repo)) as store:
        (before,) = store.read([b"customer:1"], ["customer_stats"]).values()
    change(
        repo,
        "UPDATE market_customer_stats SET event_ts = '2026-01-01 00:00:00.5' "
        "WHERE feature_name = 'age'",
    )
    with closing(opened(repo)) as store:
        (after,) = store.read([b"customer:1"], ["customer_stats"]).values()

    assert after[8:] == before[8:]
    assert int.from_bytes(after[:8], "little") == 1_767_225_600_500_000


def test_what_is_in_force_is_read_on_when_feast_says_more(repo: Path, tmp_path: Path) -> None:
    apply_feast(repo, tmp_path)
    document = json.loads((tmp_path / "features" / "definitions.json").read_text())
    stats = document["feature_views"][0]
    stats["features"] = [{"name": "later", "datatype": "FP64"}, *stats["features"][:1]]
    document["feature_services"] = [{"name": "fraud", "features": ["customer_stats"]}]
    of = parse_definitions(document, base_dir=tmp_path).service("fraud")

    with closing(opened(repo)) as store:
        rows = FeatureReader(of, store, clock=ClockAt()).read({"customer_id": [1]})

    assert rows.statuses["customer_stats"] == [FeatureStatus.PRESENT]
    assert rows.columns["age"].tolist() == [34]
    assert str(rows.columns["later"]) == "[nan]"


@pytest.mark.parametrize(
    ("online", "url"),
    [
        ({}, "redis://localhost:6379/0"),
        ({"connection_string": "a:1,db=3"}, "redis://a:1/3"),
        ({"connection_string": "a:1,ssl=true,password=p@/,s"}, None),
        ({"connection_string": "a:1,ssl=true,password=p@/s"}, "rediss://:p%40%2Fs@a:1/0"),
        ({"connection_string": 'a:1,username=u,password="12"'}, "redis://u:12@a:1/0"),
        (
            {"connection_string": "a:1,ssl=true,ssl_cert_reqs=none,socket_timeout=1"},
            "rediss://a:1/0?ssl_cert_reqs=none",
        ),
        ({"connection_string": "a:1,unix_socket_path=/x/y,db=2"}, "unix:///x/y?db=2"),
        ({"connection_string": "a:1,b:2", "redis_type": "redis_cluster"}, None),
        ({"redis_type": "redis_sentinel"}, None),
    ],
)
def test_a_connection_string_becomes_a_url(online: dict[str, str], url: str | None) -> None:
    if url is None:
        with pytest.raises(FailedPreconditionError, match="single Redis server"):
            redis_url(online, "repo")
    else:
        assert redis_url(online, "repo") == url


def test_a_message_never_shows_a_password_of_feasts(repo: Path) -> None:
    configure(
        repo,
        "type: sqlite\n  path: online.db",
        "type: redis\n  connection_string: localhost:1,password=s3cret",
    )

    with closing(opened(repo)) as store, pytest.raises(UnavailableError) as told:
        store.read([b"customer:1"], ["customer_stats"])

    assert "s3cret" not in f"{store.name} {told.value}"
