"""What a pool's copy fetches, and what it keeps; nothing is fetched here."""

from pathlib import Path

import pytest

from headrace.core import ArtifactsSettings, InvalidArgumentError
from headrace.serving.pool.process import SharedFetcher
from tests.unit.serving.pool_parts import entry

pytestmark = pytest.mark.anyio

DIGEST = "0f" * 32


def fetcher(folder: Path) -> SharedFetcher:
    artifacts = ArtifactsSettings(url="file:///nowhere", directory=str(folder))
    return SharedFetcher(artifacts, command=("/nothing/that/could/run",))


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/models/model.onnx",
        "sha256/abc/model.onnx",
        f"sha256/{DIGEST}/..",
        f"sha256/{DIGEST}/a/../../../b",
        f"../sha256/{DIGEST}/model.onnx",
        f"sha256/{DIGEST.upper()}/model.onnx",
    ],
)
async def test_nothing_but_a_stored_artifact_is_fetched(tmp_path: Path, path: str) -> None:
    with pytest.raises(InvalidArgumentError, match="sha256/DIGEST/FILE"):
        await fetcher(tmp_path).have(entry("a", path=path))
