"""The page on MLflow does what it shows, with a tracking server."""

from pathlib import Path

import pytest

from tests.docs.test_pages import ROOT, blocks, play

pytestmark = pytest.mark.mlflow


def test_page_does_what_it_shows(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    models, folder = tmp_path / "models", tmp_path / "folder"
    models.mkdir()
    folder.mkdir()
    steps = blocks(ROOT / "docs" / "how-to" / "mlflow.md")

    play([block for block in steps if block.language != "yaml"], models, folder)
