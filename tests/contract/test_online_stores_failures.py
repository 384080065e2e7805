"""A store that is damaged, full, busy or away says so, and how to mend it."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.core import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from headrace.features import OnlineStore, open_online_store
from headrace.features.online.sqlite import SqliteOnlineStore
from headrace.testing.online_stores import key, record, time_of
from tests.contract.redis_servers import NoServerError, RedisServer, running_server


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """A server of this test's own, to be ended and filled."""
    try:
        with running_server("valkey") as running:
            yield running
    except NoServerError as error:
        pytest.skip(str(error))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "online.db"


@contextlib.contextmanager
def closing(store: OnlineStore) -> Iterator[OnlineStore]:
    try:
        yield store
    finally:
        store.close()


def test_a_file_that_is_no_database_says_how_to_begin_anew(path: Path) -> None:
    path.write_bytes(b"this is no database, whatever its name says" * 100)

    with closing(SqliteOnlineStore(path)) as store, pytest.raises(FailedPreconditionError) as told:
        store.read([key()], ["stats"])

    assert str(path) in str(told.value)
    assert "headrace features materialize" in str(told.value)


def test_a_damaged_page_is_no_answer(path: Path) -> None:
    with closing(SqliteOnlineStore(path)) as store:
        store.write("stats", [key(str(i)) for i in range(2000)], [record(i) for i in range(2000)])
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xff" * (len(content) - 4096)
    path.write_bytes(content)

    with (
        closing(SqliteOnlineStore(path)) as store,
        pytest.raises(FailedPreconditionError, match=r"malformed.*materialize"),
    ):
        store.read([key("17")], ["stats"])


def test_a_new_file_in_place_of_a_damaged_one_is_read_at_once(path: Path) -> None:
    with closing(SqliteOnlineStore(path)) as store:
        store.write("stats", [key(str(i)) for i in range(2000)], [record(i) for i in range(2000)])
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))

    with closing(SqliteOnlineStore(path)) as store:
        for _ in range(2):
            with pytest.raises(FailedPreconditionError, match="malformed"):
                store.read([key("17")], ["stats"])
        for one in path.parent.iterdir():
            one.unlink()

        assert store.write("stats", [key("17")], [record(5)]) == 1
        assert time_of(store, "17") == 5


def test_the_database_of_something_else_is_left_alone(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as other:
        other.execute("CREATE TABLE precious (x)")

    with (
        closing(SqliteOnlineStore(path)) as store,
        pytest.raises(
            FailedPreconditionError,
            match="contains something else; use another file for the online store",
        ),
    ):
        store.write("stats", [key()], [record(1)])


def test_a_store_of_a_later_version_is_left_alone(path: Path) -> None:
    with closing(SqliteOnlineStore(path)) as store:
        store.write("stats", [key()], [record(1)])
    with contextlib.closing(sqlite3.connect(path)) as later:
        later.execute("PRAGMA user_version = 99")

    with (
        closing(SqliteOnlineStore(path)) as store,
        pytest.raises(FailedPreconditionError, match="of another version"),
    ):
        time_of(store)


def test_a_full_disk_keeps_what_was_there(path: Path) -> None:
    store = SqliteOnlineStore(path)
    with closing(store):
        store.write("stats", [key()], [record(1)])
        opened = store._writer.opened
        assert opened is not None
        opened.execute("PRAGMA max_page_count = 4")

        with pytest.raises(FailedPreconditionError, match="full; free some space"):
            store.write("stats", [key(str(i)) for i in range(5000)], [record(9)] * 5000)

        assert time_of(store) == 1
        assert time_of(store, "0") is None
        opened.execute("PRAGMA max_page_count = 100000")
        assert store.write("stats", [key()], [record(2)]) == 1


def test_a_writer_that_stays_away_does_not_stop_readers(path: Path) -> None:
    with closing(SqliteOnlineStore(path, lock_timeout_s=0.0)) as store:
        store.write("stats", [key()], [record(1)])
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")

            assert time_of(store) == 1
            with pytest.raises(UnavailableError, match="another process locked it"):
                store.write("stats", [key()], [record(2)])


def test_a_read_that_gets_no_turn_ends_at_its_deadline(path: Path) -> None:
    store = SqliteOnlineStore(path)

    with store._reader.lock, pytest.raises(DeadlineExceededError, match="was busy for longer"):
        store.read([key()], ["stats"], timeout_s=0.0)


def test_a_folder_instead_of_a_file_is_told(tmp_path: Path) -> None:
    with (
        closing(SqliteOnlineStore(tmp_path)) as store,
        pytest.raises(FailedPreconditionError, match="Is a directory"),
    ):
        store.read([key()], ["stats"])


def test_others_cannot_read_the_file(path: Path) -> None:
    with closing(SqliteOnlineStore(path)) as store:
        store.write("stats", [key()], [record(1)])

        assert {one.stat().st_mode & 0o777 for one in path.parent.iterdir()} == {0o600}


def test_a_server_that_is_away_is_unavailable(tmp_path: Path) -> None:
    with closing(open_online_store(f"unix://{tmp_path}/none")) as store:
        with pytest.raises(UnavailableError, match="cannot read features"):
            store.read([key()], ["stats"])
        with pytest.raises(UnavailableError, match="cannot write features"):
            store.write("stats", [key()], [record(1)])
        with pytest.raises(UnavailableError, match="watermark"):
            store.watermark("stats")


@pytest.mark.e2e
def test_a_server_that_comes_back_is_used_again(server: RedisServer) -> None:
    with closing(open_online_store(server.url)) as store:
        store.write("stats", [key()], [record(1)])
        server.stop()
        with pytest.raises(UnavailableError):
            store.read([key()], ["stats"])
        server.start()

        assert store.write("stats", [key()], [record(1)]) == 1
        assert time_of(store) == 1


@pytest.mark.e2e
def test_a_late_answer_is_not_taken_for_the_next_one(server: RedisServer) -> None:
    with closing(open_online_store(server.url)) as store:
        store.write("stats", [key("anna"), key("bert")], [record(1), record(2)])
        with closing(open_online_store(server.url)) as other:
            other._client.client_pause(200)  # type: ignore[attr-defined]  # Redis's only

            with pytest.raises(DeadlineExceededError, match="did not answer"):
                store.read([key("anna")], ["stats"], timeout_s=0.02)

            assert time_of(store, "bert") == 2


@pytest.mark.e2e
def test_entities_expire_where_the_url_says_so(server: RedisServer) -> None:
    key_of = b"headrace:features:default:entity:" + key()
    with (
        closing(open_online_store(f"{server.url}?db=0&expire_s=600")) as store,
        closing(open_online_store(server.url)) as without,
    ):
        client = store._client  # type: ignore[attr-defined]  # Redis's only
        store.write("stats", [key()], [record(5)])
        assert 590 < client.ttl(key_of) <= 600
        client.expire(key_of, 60)

        assert store.write("stats", [key()], [record(4)]) == 0
        assert client.ttl(key_of) <= 60  # what is older proves nothing
        assert store.write("stats", [key()], [record(6)]) == 1
        assert client.ttl(key_of) > 590
        without.write("stats", [key("bert")], [record(1)])
        assert client.ttl(b"headrace:features:default:entity:" + key("bert")) == -1


@pytest.mark.parametrize("seconds", ["", "0", "-1", "1.5", "a", "²", "99999999999"])
def test_a_time_to_expire_is_whole_seconds(seconds: str) -> None:
    with pytest.raises(InvalidArgumentError, match="must be whole seconds"):
        open_online_store(f"redis://localhost/0?expire_s={seconds}")


@pytest.mark.e2e
def test_a_full_server_says_so(server: RedisServer) -> None:
    server.stop()
    server.start("--maxmemory", "1mb", "--maxmemory-policy", "noeviction")
    keys = [key(str(i)) for i in range(20_000)]

    with (
        closing(open_online_store(server.url)) as store,
        pytest.raises(FailedPreconditionError, match="more memory"),
    ):
        store.write("stats", keys, [record(1)] * len(keys))


@pytest.mark.e2e
def test_what_something_else_wrote_is_not_misread(server: RedisServer) -> None:
    with closing(open_online_store(server.url)) as store:
        client = store._client  # type: ignore[attr-defined]  # Redis's only
        client.set(b"headrace:features:default:entity:" + key(), b"text")
        client.hset(b"headrace:features:default:entity:" + key("bert"), "stats", b"short")

        with pytest.raises(FailedPreconditionError, match="another namespace"):
            store.read([key("anna"), key("bert")], ["stats"])
        with pytest.raises(FailedPreconditionError, match="another namespace"):
            store.write("stats", [key("anna")], [record(1)])
        assert store.write("stats", [key("bert")], [record(1)]) == 1

        client.hset(b"headrace:features:default:watermarks", "stats", b"soon")
        with pytest.raises(FailedPreconditionError, match="not a number; another program uses"):
            store.watermark("stats")


@pytest.mark.e2e
def test_a_wrong_password_is_told_without_showing_it(server: RedisServer) -> None:
    server.stop()
    server.start("--requirepass", "open-sesame")

    for url in (server.url, f"unix://:s3cret@{server.socket}"):
        with (
            closing(open_online_store(url)) as store,
            pytest.raises(FailedPreconditionError) as told,
        ):
            store.read([key()], ["stats"])
        assert "s3cret" not in str(told.value)
        assert "password" in str(told.value)


def test_the_locks_of_a_connection_stand_when_another_is_opened(path: Path) -> None:
    with closing(SqliteOnlineStore(path)) as store, closing(SqliteOnlineStore(path)) as other:
        store.write("stats", [key("1")], [record(1)])
        with contextlib.closing(sqlite3.connect(path)) as held:
            held.execute("BEGIN IMMEDIATE")
            held.execute("SELECT count(*) FROM sqlite_schema").fetchone()
            before = locks_of(path)
            other.read([key("1")], ["stats"])

            assert before
            assert locks_of(path) >= before


def locks_of(path: Path) -> set[str]:
    """POSIX locks on a database and what lies beside it, as the kernel lists them."""
    files = {one.stat().st_ino: one.name for one in path.parent.iterdir()}
    found = set()
    for line in Path("/proc/locks").read_text().splitlines():
        _, kind, _, mode, _, device, first, last = line.split()[:8]
        inode = int(device.rpartition(":")[2])
        if kind == "POSIX" and inode in files:
            found.add(f"{files[inode]} {mode} {first} {last}")
    return found
