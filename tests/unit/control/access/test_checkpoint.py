"""The trail's end is noted outside the database, and what does not lead past it is told."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import delete

from headrace.control.auth.checkpoint import Checkpoints, read_checkpoint
from headrace.control.model.audit_log import AuditEntry, Head
from headrace.control.state import home_url, open_store
from headrace.control.state.database import Database
from headrace.control.state.store import Store
from headrace.control.state.tables import TRAIL

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = open_store(home_url(tmp_path))
    yield store
    store.close()


def write(store: Store, count: int) -> None:
    change = AuditEntry(at=1.0, actor="ann", action="apply", object="spec")
    store.add_changes.blocking([change] * count)


def cut(tmp_path: Path, after: int) -> None:
    database = Database(home_url(tmp_path))
    with database.writing("tamper") as connection:
        connection.execute(delete(TRAIL).where(TRAIL.c.id > after))
    database.close()


async def test_the_end_is_noted_for_the_owner_only(store: Store, tmp_path: Path) -> None:
    checkpoints = Checkpoints(store=store, path=tmp_path / "checkpoint")
    write(store, 3)
    await checkpoints.note()
    write(store, 2)
    await checkpoints.note()

    assert read_checkpoint(checkpoints.path) == store.trail_head.blocking()
    assert read_checkpoint(checkpoints.path).count == 5
    assert checkpoints.path.stat().st_mode & 0o777 == 0o600


async def test_a_cut_trail_is_told_once_and_the_evidence_is_kept(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = Checkpoints(store=store, path=tmp_path / "checkpoint")
    write(store, 3)
    await checkpoints.note()
    noted = read_checkpoint(checkpoints.path)
    cut(tmp_path, 2)
    await checkpoints.note()
    await checkpoints.note()

    assert read_checkpoint(checkpoints.path) == noted
    errors = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors == ["the audit trail was changed"]


async def test_what_cannot_be_read_is_no_checkpoint(store: Store, tmp_path: Path) -> None:
    checkpoints = Checkpoints(store=store, path=tmp_path / "checkpoint")
    checkpoints.path.write_text("{")
    write(store, 1)

    assert read_checkpoint(checkpoints.path) == Head()
    await checkpoints.note()
    assert read_checkpoint(checkpoints.path).count == 1
