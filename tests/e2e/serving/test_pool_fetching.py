"""A pool's copy and a shared store: what is fetched by a process beside it."""

# ruff: noqa: ASYNC240  # files of a few bytes, and nobody else waits

import asyncio
import shutil
import sys
from pathlib import Path

import pytest

from headrace.core import (
    ArtifactsSettings,
    DeadlineExceededError,
    ReplicaSettings,
    SystemClock,
    UnavailableError,
)
from headrace.registry.content import read_content
from headrace.registry.shared import open_shared
from headrace.serving.pool.process import SharedFetcher

pytestmark = [pytest.mark.e2e, pytest.mark.anyio]

NEVER = "import time; time.sleep(60)"


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"file://{tmp_path / 'store'}"


def stored(folder: Path, url: str, content: bytes = b"model") -> ReplicaSettings:
    """A model in the store, as a copy is told of it."""
    file = folder / "model.onnx"
    file.write_bytes(content)
    digest = read_content(file).digest
    open_shared(url, clock=SystemClock()).ensure(read_content(file), file, file.name)
    return told(digest)


def told(digest: str) -> ReplicaSettings:
    path = f"{digest.replace(':', '/')}/model.onnx"
    return ReplicaSettings(model_name="a", model_version="1", path=path)


async def test_a_model_is_fetched_once_and_forgotten_when_no_other_needs_it(
    tmp_path: Path, url: str
) -> None:
    settings = stored(tmp_path, url)
    artifacts = ArtifactsSettings(url=url, directory=str(tmp_path / "models"))
    fetcher = SharedFetcher(artifacts)

    both = await asyncio.gather(fetcher.have(settings), fetcher.have(settings))
    path = Path(both[0].path)
    shutil.rmtree(tmp_path / "store")
    again = await fetcher.have(settings)

    assert both[0] == both[1] == again
    assert path.read_bytes() == b"model"
    await fetcher.forget(settings.path, in_use=lambda: [settings.path])
    assert path.exists()
    await fetcher.forget(settings.path, in_use=list)
    assert list((tmp_path / "models" / "sha256").iterdir()) == []
    with pytest.raises(UnavailableError, match="cannot be fetched"):
        await fetcher.have(settings)


async def test_what_an_earlier_process_left_damaged_is_fetched_anew(
    tmp_path: Path, url: str
) -> None:
    settings = stored(tmp_path, url)
    artifacts = ArtifactsSettings(url=url, directory=str(tmp_path / "models"))
    path = Path((await SharedFetcher(artifacts).have(settings)).path)
    path.chmod(0o644)
    path.write_bytes(b"other")

    await SharedFetcher(artifacts).have(settings)

    assert path.read_bytes() == b"model"


async def test_what_the_store_does_not_have_is_told_with_its_own_words(
    tmp_path: Path, url: str
) -> None:
    stored(tmp_path, url)
    fetcher = SharedFetcher(ArtifactsSettings(url=url, directory=str(tmp_path / "models")))
    missing = "sha256:" + "0f" * 32

    with pytest.raises(UnavailableError, match=f"holds no content with digest {missing}"):
        await fetcher.have(told(missing))


async def test_a_fetch_that_does_not_end_is_ended(tmp_path: Path, url: str) -> None:
    artifacts = ArtifactsSettings(url=url, directory=str(tmp_path / "models"))
    fetcher = SharedFetcher(artifacts, command=(sys.executable, "-c", NEVER), timeout_s=0.1)

    async with asyncio.timeout(20):
        with pytest.raises(DeadlineExceededError, match=r"within 0\.1 s"):
            await fetcher.have(told("sha256:" + "0f" * 32))
