"""The page on Hugging Face models is run, where PyTorch and transformers are installed."""

from pathlib import Path

import pytest

from tests.docs.test_pages import ROOT, blocks, play

pytestmark = [pytest.mark.torch, pytest.mark.e2e, pytest.mark.slow]

PAGE = ROOT / "docs" / "how-to" / "huggingface.md"


def test_the_page_on_hugging_face_does_what_it_shows(tmp_path: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    models = tmp_path / "models"
    models.mkdir()
    steps = [block for block in blocks(PAGE) if block.language != "json"]

    story = tmp_path / "story"
    story.mkdir()

    play(steps, models, story)
