"""Files and batches belong to one owner each, and are bounded."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.control.api.bulk import document_of, page
from headrace.control.jobs import bulk
from headrace.control.jobs.bulk import BulkFile, BulkStore, NewBatch
from headrace.core import (
    FailedPreconditionError,
    HeadraceError,
    InvalidArgumentError,
    NotFoundError,
    OverloadedError,
    PayloadTooLargeError,
)
from headrace.jobs.openai_lines import RequestCounts
from headrace.testing.virtual_time import TurnedClock

pytestmark = pytest.mark.anyio
CHAT = "/v1/chat/completions"


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def add(store: BulkStore, owner: str, *parts: bytes) -> BulkFile:
    return await store.add_file(owner, "in.jsonl", chunks(*parts))


def create(store: BulkStore, owner: str, file_id: str, **changes: Any) -> str:  # noqa: ANN401  # any field
    fields: dict[str, Any] = {"endpoint": CHAT, "completion_window": "1m", **changes}
    try:
        new = msgspec.convert({"input_file_id": file_id, **fields}, NewBatch)
    except msgspec.ValidationError as error:
        raise InvalidArgumentError(str(error)) from None
    return store.create(owner, "", new).id


@pytest.fixture
def store(tmp_path: Path) -> BulkStore:
    return BulkStore(root=tmp_path, clock=TurnedClock())


async def test_an_owner_sees_only_its_own(store: BulkStore) -> None:
    file = await add(store, "alice", b"{}", b"\n")
    batch_id = create(store, "alice", file.id)

    assert store.content("alice", file.id).read_bytes() == b"{}\n"
    assert [own.id for own in store.of("alice")] == [batch_id]
    for other in ("bob", ""):
        assert (store.files(other), store.of(other)) == ([], [])
        for refused in (
            lambda other=other: store.file(other, file.id),
            lambda other=other: store.content(other, file.id),
            lambda other=other: store.delete(other, file.id),
            lambda other=other: store.batch(other, batch_id),
            lambda other=other: create(store, other, file.id),
        ):
            with pytest.raises(NotFoundError):
                refused()


@pytest.mark.parametrize("name", ["../alice", "a/b", ".", "..", "a\0", "x" * 300])
async def test_names_that_are_no_folder_are_refused(store: BulkStore, name: str) -> None:
    with pytest.raises(InvalidArgumentError):
        await add(store, name, b"{}")
    for file_id in (name, f"file-{name}"):
        with pytest.raises(NotFoundError):
            store.file("alice", file_id)


async def test_uploads_are_bounded_and_leave_nothing(
    store: BulkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "MAX_FILE_BYTES", 10)
    monkeypatch.setattr(bulk, "MAX_OWNER_BYTES", 1000)
    monkeypatch.setattr(bulk, "MAX_OWNER_FILES", 2)

    with pytest.raises(PayloadTooLargeError, match="10 bytes"):
        await add(store, "alice", b"123456", b"123456")

    async def refused() -> AsyncIterator[bytes]:
        yield b"1"
        raise InvalidArgumentError("no purpose")

    with pytest.raises(InvalidArgumentError):
        await store.add_file("alice", "x", refused())
    assert [path for path in store.root.rglob("*") if path.is_file()] == []
    await add(store, "alice", b"1")
    monkeypatch.setattr(bulk, "MAX_OWNER_BYTES", 100)
    with pytest.raises(PayloadTooLargeError, match="100 bytes"):
        await add(store, "alice", b"12")
    monkeypatch.setattr(bulk, "MAX_OWNER_BYTES", 1000)
    await add(store, "bob", b"12")
    await add(store, "alice", b"12")
    with pytest.raises(FailedPreconditionError, match="2 files"):
        await add(store, "alice", b"12")
    monkeypatch.setattr(bulk, "MIN_FREE_BYTES", 1 << 62)
    with pytest.raises(OverloadedError):
        await add(store, "bob", b"1")


async def test_a_file_of_an_unfinished_batch_stays(store: BulkStore) -> None:
    file = await add(store, "alice", b"{}\n")
    batch_id = create(store, "alice", file.id)
    with pytest.raises(FailedPreconditionError, match=batch_id):
        store.delete("alice", file.id)

    store.change(batch_id, status="completed")
    store.delete("alice", file.id)

    assert store.files("alice") == []


async def test_batches_are_read_again_and_a_damaged_record_is_left_out(store: BulkStore) -> None:
    file = await add(store, "alice", b"{}\n")
    first, second = create(store, "alice", file.id), create(store, "alice", file.id)
    store.change(first, status="in_progress")
    (store.root / "key-alice" / "batches" / f"{second}.json").write_bytes(b"{")

    later = BulkStore(root=store.root, clock=TurnedClock())
    later.load()

    assert {batch.id: batch.status for batch in later.of("alice")} == {first: "in_progress"}


async def test_progress_is_shown_at_once_and_stored_with_the_next_change(store: BulkStore) -> None:
    file = await add(store, "alice", b"{}\n")
    batch_id = create(store, "alice", file.id)
    counts = RequestCounts(total=9, completed=4, failed=1)

    def stored() -> RequestCounts:
        later = BulkStore(root=store.root, clock=TurnedClock())
        later.load()
        return later.batch("alice", batch_id).request_counts

    store.change(batch_id, is_stored=False, request_counts=counts)

    assert store.batch("alice", batch_id).request_counts == counts
    assert stored() == RequestCounts()
    store.change(batch_id, status="finalizing")
    assert stored() == counts


async def test_unfinished_batches_are_bounded_and_old_ones_make_room(
    store: BulkStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "MAX_ACTIVE", 2)
    monkeypatch.setattr(bulk, "MAX_OWNER_BATCHES", 4)
    file = await add(store, "alice", b"{}\n")
    create(store, "alice", file.id)
    create(store, "alice", file.id)
    with pytest.raises(OverloadedError, match="2 batches"):
        create(store, "alice", file.id)
    for _ in range(10):
        for batch in store.of("alice"):
            store.change(batch.id, status="failed")
        create(store, "alice", file.id)
    assert len(store.of("alice")) <= 5
    assert len(list(store.root.rglob("batch_*.json"))) == len(store.of("alice"))


@pytest.mark.parametrize(
    "changes",
    [
        {"endpoint": "/v1/models"},
        {"endpoint": "http://elsewhere/v1/embeddings"},
        {"metadata": {str(i): "" for i in range(17)}},
        {"metadata": {"a": "b" * 513}},
        {"completion_window": "8d"},
        {"completion_window": "soon"},
    ],
)
async def test_invalid_batches_are_refused(store: BulkStore, changes: dict[str, Any]) -> None:
    file = await add(store, "alice", b"{}\n")
    with pytest.raises(InvalidArgumentError):
        create(store, "alice", file.id, **changes)
    results = store.keep(
        "alice", f"file-{'0' * 24}o", Path("none"), filename="x", purpose=bulk.RESULTS_PURPOSE
    )
    with pytest.raises(HeadraceError, match="purpose"):
        create(store, "alice", results.id)


def test_pages_follow_each_other() -> None:
    files = [
        BulkFile(id=id_, bytes=1, created_at=2, filename="x", purpose="batch") for id_ in "abc"
    ]

    def shown(count: int, after: str, limit: int) -> tuple[object, ...]:
        some = page(files[:count], after=after, limit=limit)
        return [file["id"] for file in some["data"]], some["last_id"], some["has_more"]

    assert shown(3, "", 2) == (["a", "b"], "b", True)
    assert shown(3, "b", 2) == (["c"], "c", False)
    assert shown(3, "unknown", 5) == (["a", "b", "c"], "c", False)
    assert shown(0, "", 5) == ([], None, False)


def test_records_have_the_fields_of_openai() -> None:
    file = BulkFile(id="file-1", bytes=1, created_at=2, filename="x", purpose="batch")
    assert document_of(file) == {
        "id": "file-1",
        "bytes": 1,
        "created_at": 2,
        "filename": "x",
        "purpose": "batch",
        "object": "file",
        "status": "processed",
        "status_details": None,
    }
