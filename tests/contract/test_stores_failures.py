"""What cannot be stored or read is told in words that help, and the old state stands."""

import os
import resource
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import inspect

from headrace.control.state import home_url, open_store, references_in
from headrace.control.state.database import Database
from headrace.control.state.store import Store
from headrace.core import ConflictError, FailedPreconditionError
from tests.contract.postgres import PASSWORD, PostgresServer
from tests.contract.states import endpoint, event, rollout, state

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="acts as another user")


@contextmanager
def largest_file(size_bytes: int) -> Iterator[None]:
    """The kernel refuses to let any file grow beyond this, as a full disk would."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_only_the_owner_can_read_a_file(tmp_path: Path) -> None:
    store = open_store(home_url(tmp_path))
    store.save.blocking(state(1), timestamp=1.0, reason="applied")

    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("state.db", "state.db-wal", "state.db-shm"), 0o600)
    store.close()
    assert [path.name for path in tmp_path.iterdir()] == ["state.db"]


def test_what_was_committed_is_flushed_and_readers_do_not_wait(tmp_path: Path) -> None:
    store = open_store(home_url(tmp_path))
    with store.database.reading("look") as connection:
        settings = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    store.close()

    assert settings == ["wal", 2, 1, 5000]  # 2 is FULL


def test_a_full_disk_leaves_the_old_state(tmp_path: Path) -> None:
    store = open_store(home_url(tmp_path))
    store.save.blocking(state(1, endpoint("a")), timestamp=1.0, reason="applied")
    log = tmp_path / "state.db-wal"
    many = state(2, *(endpoint(f"m{i}") for i in range(200)))

    with (
        largest_file(log.stat().st_size + 8192),
        pytest.raises(FailedPreconditionError, match=r"state\.db: (disk I/O error|.*is full)"),
    ):
        store.save.blocking(many, timestamp=2.0, reason="applied")

    assert store.load.blocking() == state(1, endpoint("a"))
    store.save.blocking(many, timestamp=2.0, reason="applied")
    assert store.load.blocking() == many
    store.close()


@pytest.mark.parametrize("data", [b"{}", b"\xff" * 5000, b"SQLite format 3\x00" + b"\x01" * 6000])
def test_a_file_that_is_no_database_is_told_and_left_alone(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "state.db"
    path.write_bytes(data)

    with pytest.raises(FailedPreconditionError, match=r"state\.db: .*move it away"):
        open_store(home_url(tmp_path))
    with pytest.raises(FailedPreconditionError, match=r"state\.db"):
        references_in(home_url(tmp_path))
    assert path.read_bytes() == data


def test_a_damaged_page_is_told(tmp_path: Path) -> None:
    url = home_url(tmp_path)
    store = open_store(url)
    names = [f"m{i}" for i in range(50)]
    store.save.blocking(
        state(1, *(endpoint(name) for name in names)), timestamp=1.0, reason="applied"
    )
    store.close()
    path = tmp_path / "state.db"
    data = path.read_bytes()
    start = len(data) // 2
    path.write_bytes(data[:start] + b"\xa5" * (len(data) - start))
    damaged = open_store(url)

    with pytest.raises(FailedPreconditionError, match=r"malformed.*move it away"):
        damaged.load.blocking()
    damaged.close()


@pytest.mark.parametrize("make", ["nothing", "file", "directory"])
def test_a_place_that_cannot_be_used_is_named(tmp_path: Path, make: str) -> None:
    home = tmp_path / "home"
    if make == "file":
        home.write_text("")
    elif make == "directory":
        (home / "state.db").mkdir(parents=True)

    with pytest.raises(FailedPreconditionError, match=r"home/state\.db"):
        open_store(home_url(home))


def as_nobody(script: str, *arguments: str) -> str:
    """What a script prints that begins as root, loads the package, and goes on as nobody."""
    begin = (
        "import os, sys\n"
        "from headrace.control.state import open_store\n"
        "import headrace.control.state.store, sqlalchemy.dialects.sqlite, alembic.command\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    )
    command = [sys.executable, "-c", begin + script, *arguments]
    answer = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)  # noqa: S603  # ours
    return answer.stdout + answer.stderr


@needs_root
def test_a_file_that_may_not_be_written_is_told() -> None:
    # Not pytest's tmp_path, which nobody else may enter.
    with tempfile.TemporaryDirectory(prefix="hr-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        store = open_store(home_url(directory))
        store.save.blocking(state(1), timestamp=1.0, reason="applied")
        store.close()
        (directory / "state.db").chmod(0o644)

        told = as_nobody("open_store(sys.argv[1])", home_url(directory))

    assert "FailedPreconditionError: cannot open the state in" in told
    assert "Permission denied" in told
    assert f"{name}/state.db" in told


def test_a_database_that_somebody_holds_is_told_after_a_bounded_wait(
    url: str, store: Store
) -> None:
    store.save.blocking(state(1), timestamp=1.0, reason="applied")
    impatient = open_store(url, lock_timeout_s=0.05)
    with store.database.writing("hold it") as connection:
        connection.exec_driver_sql("UPDATE state SET at = at")
        connection.exec_driver_sql("UPDATE counters SET value = value")
        with pytest.raises(FailedPreconditionError, match=r"another process has held it for 0\.05"):
            impatient.save.blocking(state(2), timestamp=2.0, reason="applied")
        with pytest.raises(FailedPreconditionError, match=r"store events in .*try again"):
            impatient.add_events.blocking([event()])
        assert impatient.load.blocking() == state(1)  # readers do not wait

    impatient.save.blocking(state(2), timestamp=2.0, reason="applied")
    assert impatient.load.blocking() == state(2)
    impatient.close()


def test_an_error_in_the_middle_leaves_nothing(url: str, store: Store) -> None:
    store.save.blocking(state(1, endpoint("a")), timestamp=1.0, reason="applied")
    with store.database.writing("break the history") as connection:
        connection.exec_driver_sql("DROP TABLE events")

    with pytest.raises(FailedPreconditionError, match=r"store a rollout in .*events"):
        store.save_rollout.blocking(rollout(), events=[event()])
    assert store.rollouts.blocking() == []
    assert url


@pytest.mark.e2e
def test_a_database_of_another_encoding_is_refused_with_the_remedy(
    postgres: PostgresServer,
) -> None:
    with pytest.raises(FailedPreconditionError, match=r"SQL_ASCII, not UTF8; .*ENCODING 'UTF8'"):
        open_store(postgres.new_database("SQL_ASCII"))


@pytest.mark.e2e
def test_a_password_is_never_shown(postgres: PostgresServer) -> None:
    wrong = "secret/word"
    closed = f"postgresql://ann:{wrong.replace('/', '%2F')}@127.0.0.1:1/x?password={wrong}"

    with pytest.raises(FailedPreconditionError, match="password authentication failed") as refused:
        open_store(postgres.tcp_url(wrong))
    with pytest.raises(FailedPreconditionError, match=r"postgresql://ann@127\.0\.0\.1:1/x") as gone:
        open_store(closed)
    with pytest.raises(FailedPreconditionError, match="nobody") as unknown:
        open_store(postgres.tcp_url(PASSWORD, "nobody"))
    open_store(postgres.tcp_url(PASSWORD)).close()

    for told in (refused, gone, unknown):
        assert wrong not in str(told.value)
        assert PASSWORD not in str(told.value)


@pytest.mark.e2e
def test_two_schemas_of_one_database_are_two_stores(postgres: PostgresServer) -> None:
    url = postgres.new_database()
    database = Database(url)
    with database.writing("make schemas") as connection:
        connection.exec_driver_sql("CREATE SCHEMA one; CREATE SCHEMA two")
    one, two = (open_store(f"{url}&options=-csearch_path%3D{name}") for name in ("one", "two"))
    one.save.blocking(state(1, endpoint("a")), timestamp=1.0, reason="applied")

    assert two.load.blocking().generation == 0
    assert one.load.blocking() == state(1, endpoint("a"))
    with database.reading("look") as connection:
        assert not inspect(connection).get_table_names()
    one.close()
    two.close()
    database.close()


@pytest.mark.e2e
def test_a_server_that_was_restarted_is_found_again(postgres: PostgresServer) -> None:
    store = open_store(postgres.new_database())
    store.save.blocking(state(1, endpoint("a")), timestamp=1.0, reason="applied")
    postgres.stop()
    with pytest.raises(FailedPreconditionError, match="cannot read the desired state"):
        store.load.blocking()
    postgres.start()

    assert store.load.blocking() == state(1, endpoint("a"))
    store.save.blocking(state(2), timestamp=2.0, reason="applied")
    store.close()


@pytest.mark.e2e
def test_who_waits_for_each_other_is_told_to_try_again(postgres: PostgresServer) -> None:
    database = Database(postgres.new_database())
    with database.writing("make a table") as connection:
        connection.exec_driver_sql("CREATE TABLE t AS SELECT n FROM generate_series(1, 2) n")
    both_have_one = threading.Barrier(2)

    def update(first: int, second: int) -> str:
        try:
            with database.writing("update both") as connection:
                connection.exec_driver_sql(f"UPDATE t SET n = n WHERE n = {first}")  # noqa: S608  # ours
                both_have_one.wait()
                connection.exec_driver_sql(f"UPDATE t SET n = n WHERE n = {second}")  # noqa: S608  # ours
        except ConflictError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(update, (1, 2), (2, 1)))
    database.close()

    assert sum("deadlock" in one and one.endswith("try again") for one in told) == 1
    assert "" in told


def test_postgres_without_its_driver_says_what_to_install(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from headrace.control.state import open_store\n"
        "from headrace.core import FailedPreconditionError\n"
        "try: open_store('postgres://ann:secret@db/x')\n"
        "except FailedPreconditionError as error: print(error)\n"
    )

    answer = subprocess.run(  # noqa: S603  # ours
        [sys.executable, "-c", script],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
        cwd=tmp_path,
    )

    assert "pip install 'headrace[postgres]'" in answer.stdout
    assert "secret" not in answer.stdout


def test_sqlite_is_told_when_the_driver_fails_before_any_statement(tmp_path: Path) -> None:
    path = tmp_path / "state.db"
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA journal_mode = DELETE")
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(FailedPreconditionError, match=r"held it for 0\.02 s"):
            open_store(home_url(tmp_path), lock_timeout_s=0.02)
        other.rollback()
    other.close()
    open_store(home_url(tmp_path)).close()
