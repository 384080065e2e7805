"""Models over the management API: uploads that are whole, bounded and proved, and the rest."""

import asyncio
import hashlib
import threading
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from headrace.cli.base.model_store import tar_chunks, tar_size
from headrace.control.api.app import build_api
from headrace.control.api.models import MAX_UPLOADS, Upload, Uploads
from headrace.control.auth.roles import SYSTEM
from headrace.control.desired.models import ModelWork
from headrace.control.plane.control_plane import ControlPlane
from headrace.core import (
    DeadlineExceededError,
    FailedPreconditionError,
    OverloadedError,
    PayloadTooLargeError,
)
from headrace.registry import ModelVersion, Registry, read_content
from headrace.testing import VirtualTimeLoop
from tests.unit.control.api_client import access_of, client_of, token_of
from tests.unit.control.conftest import inspect

pytestmark = pytest.mark.anyio


@pytest.fixture
async def api(plane: ControlPlane) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(plane) as client:
        yield client


@pytest.fixture
def uploads(registry: Registry, tmp_path: Path) -> Uploads:
    directory = tmp_path / "uploads"
    return Uploads(registry=registry, work=ModelWork(inspect), directory=directory, max_bytes=1000)


async def take(uploads: Uploads, upload: Upload, parts: AsyncIterator[bytes]) -> ModelVersion:
    """The version that a caller uploads who stays."""

    @asynccontextmanager
    async def stays() -> AsyncIterator[threading.Event]:
        yield threading.Event()

    return await uploads.take(upload, parts, left=stays)


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


@pytest.mark.parametrize(("grace_s", "status"), [("3600", 200), ("3599", 400), ("", 400)])
async def test_garbage_of_a_shared_store_is_kept_for_an_hour_at_least(
    api: httpx.AsyncClient, grace_s: str, status: int
) -> None:
    assert (await api.post(f"/gc?grace_s={grace_s}")).status_code == status


async def test_an_uploaded_file_is_the_next_version_and_the_same_content_the_same(
    api: httpx.AsyncClient, plane: ControlPlane
) -> None:
    path = "/models/fraud?filename=m.onnx&source=git:1"
    first = await api.post(path, content=b"model")
    same = await api.post(path, content=b"model")
    other = await api.post(path, content=b"other")

    assert first.status_code == 201
    assert first.headers["location"] == "/api/v1/models/fraud/versions/1"
    document = first.json()
    assert (document["reference"], document["digest"]) == ("fraud:1", digest(b"model"))
    assert (document["created_by"], document["source"]) == ("ann@laptop", "git:1")
    assert (document["filename"], document["runtime"]) == ("m.onnx", "onnx")
    assert same.json()["version"] == "1"
    assert other.json()["version"] == "2"
    assert list((plane.home.root / "artifacts" / "tmp").iterdir()) == []


async def test_what_is_said_of_an_upload_is_kept_beside_it(api: httpx.AsyncClient) -> None:
    path = "/models/fraud?filename=m.onnx&metadata="
    kept = await api.post(path + '{"converted_from": "sha256:00"}', content=b"model")
    refused = [await api.post(path + text, content=b"x") for text in ("[1]", "{", '{"a": 1}')]

    assert kept.json()["metadata"] == {"converted_from": "sha256:00"}
    for answer in refused:
        assert answer.status_code == 400
        assert "metadata has to be a JSON object of texts" in answer.text


async def test_a_directory_comes_as_an_archive_with_the_same_digest(
    api: httpx.AsyncClient, tmp_path: Path
) -> None:
    directory = tmp_path / "saved"
    (directory / "variables").mkdir(parents=True)
    (directory / "model.pb").write_bytes(b"x" * 700)
    (directory / "variables" / ("long" * 40)).write_bytes(b"")
    content = read_content(directory)
    body = b"".join(tar_chunks(directory, content))
    answer = await api.post(
        "/models/saved",
        params={"filename": "saved", "format": "tar", "digest": content.digest},
        content=body,
    )

    assert len(body) == tar_size(content)
    assert answer.status_code == 201, answer.text
    assert answer.json()["digest"] == content.digest
    assert len(answer.json()["files"]) == 2


@pytest.mark.parametrize(
    ("query", "body", "status", "text"),
    [
        ("filename=m", b"bad model", 400, "is no model"),
        ("filename=m&format=tar", b"no archive", 400, "invalid tar archive"),
        ("filename=m&format=tar", bytes(1024), 400, "holds no file"),
        ("filename=m&format=zip", b"x", 400, "format"),
        ("filename=", b"x", 400, "filename"),
        ("", b"x", 400, "filename"),
        ("filename=..", b"x", 400, "not allowed as a file's name"),
        ("filename=a%2Fb", b"x", 400, "not allowed as a file's name"),
        ("filename=m&digest=sha256:1", b"x", 400, "digest"),
        (f"filename=m&digest={digest(b'y')}", b"x", 400, "send it again"),
        ("filename=m", b"", 201, ""),
    ],
)
async def test_what_is_not_the_model_that_was_announced_is_refused(
    api: httpx.AsyncClient, query: str, body: bytes, status: int, text: str
) -> None:
    answer = await api.post(f"/models/m?{query}", content=body)

    assert answer.status_code == status, answer.text
    assert text in answer.text


async def test_an_upload_that_breaks_off_leaves_nothing(plane: ControlPlane) -> None:
    coming: list[MutableMapping[str, Any]] = [
        {"type": "http.request", "body": b"half", "more_body": True},
        {"type": "http.disconnect"},
    ]
    sent: list[MutableMapping[str, Any]] = []

    async def receive() -> MutableMapping[str, Any]:
        return coming.pop(0) if len(coming) > 1 else coming[0]

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    app = build_api(plane, access_of(plane), allowed_hosts=frozenset())
    token = token_of(plane).encode()
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/api/v1/models/m",
        "query_string": b"filename=m",
        "headers": [(b"host", b"localhost"), (b"authorization", b"Bearer " + token)],
    }
    await app(scope, receive, send)

    assert sent[0]["status"] == 499
    assert list((plane.home.root / "artifacts" / "tmp").iterdir()) == []
    assert plane.registry.list() == []


async def test_models_may_be_larger_than_other_bodies(api: httpx.AsyncClient) -> None:
    answer = await api.post("/models/m?filename=m", content=b"x" * (5 << 20))

    assert answer.status_code == 201
    assert answer.json()["size_bytes"] == 5 << 20


async def test_versions_are_listed_shown_removed_and_their_space_freed(
    api: httpx.AsyncClient,
) -> None:
    for content in (b"one", b"two"):
        await api.post("/models/m?filename=m", content=content)
    listed = (await api.get("/models")).json()
    named = (await api.get("/models/m")).json()
    one = (await api.get("/models/m/versions/1")).json()
    removed = await api.delete("/models/m/versions/1")
    freed = (await api.post("/gc")).json()
    missing = [
        (await api.request(method, path)).status_code
        for method, path in (
            ("GET", "/models/nobody"),
            ("GET", "/models/m/versions/1"),
            ("DELETE", "/models/m/versions/1"),
        )
    ]
    odd = (await api.get("/models/m/versions/x")).status_code

    assert listed == named
    assert listed["problems"] == []
    assert [model["reference"] for model in listed["models"]] == ["m:1", "m:2"]
    assert one == listed["models"][0]
    assert removed.json()["reference"] == "m:1"
    assert (len(freed["artifacts"]), freed["freed_bytes"]) == (1, 3)
    assert (missing, odd) == ([404, 404, 404], 400)


async def test_what_a_rollout_may_go_back_to_is_not_removed(api: httpx.AsyncClient) -> None:
    for content in (b"one", b"two", b"three"):
        await api.post("/models/m?filename=m", content=content)
    await api.put("/endpoints/m", json={"model": "m:1"})
    await api.post("/endpoints/m/rollout", json={"version": "2"})
    await api.post("/endpoints/m/rollout/abort")
    answers = [await api.delete(f"/models/m/versions/{number}") for number in (1, 2, 3)]

    assert [answer.status_code for answer in answers] == [409, 409, 200]
    assert "is being served" in answers[0].json()["detail"]


async def test_an_upload_is_bounded_said_or_unsaid(uploads: Uploads) -> None:
    upload = Upload(caller=SYSTEM, name="m", filename="m", format="file")
    large = Upload(caller=SYSTEM, name="m", filename="m", format="file", length_bytes=1001)
    with pytest.raises(PayloadTooLargeError):
        await take(uploads, large, chunks())
    with pytest.raises(PayloadTooLargeError):
        await take(uploads, upload, chunks(b"x" * 600, b"x" * 401))

    assert (await take(uploads, upload, chunks(b"x" * 600, b"x" * 400))).size_bytes == 1000
    assert list(uploads.directory.iterdir()) == []


async def test_more_than_the_disk_holds_is_refused_at_once(uploads: Uploads) -> None:
    uploads.max_bytes = 1 << 62
    upload = Upload(caller=SYSTEM, name="m", filename="m", format="file", length_bytes=1 << 61)

    with pytest.raises(FailedPreconditionError, match="are free"):
        await take(uploads, upload, chunks())


async def test_a_directory_that_cannot_be_written_is_told(
    registry: Registry, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    uploads = Uploads(
        registry=registry, work=ModelWork(inspect), directory=tmp_path / "file" / "uploads"
    )

    upload = Upload(caller=SYSTEM, name="m", filename="m", format="file")
    with pytest.raises(FailedPreconditionError, match="cannot store the upload"):
        await take(uploads, upload, chunks(b"x"))


def test_a_caller_who_says_nothing_is_given_up(uploads: Uploads) -> None:
    async def silent() -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(1e6)

    upload = Upload(caller=SYSTEM, name="m", filename="m", format="file")
    with (
        asyncio.Runner(loop_factory=VirtualTimeLoop) as runner,
        pytest.raises(DeadlineExceededError, match="sent no data for 60 s"),
    ):
        runner.run(take(uploads, upload, silent()))


async def test_there_are_never_too_many_uploads(uploads: Uploads) -> None:
    go = asyncio.Event()

    async def waiting() -> AsyncIterator[bytes]:
        await go.wait()
        yield b"x"

    upload = Upload(caller=SYSTEM, name="m", filename="m", format="file")
    async with asyncio.TaskGroup() as group:
        for _ in range(MAX_UPLOADS):
            group.create_task(take(uploads, upload, waiting()))
        await asyncio.sleep(0)
        with pytest.raises(OverloadedError):
            await take(uploads, upload, chunks(b"x"))
        go.set()

    assert (await take(uploads, upload, chunks(b"x"))).version == "1"
