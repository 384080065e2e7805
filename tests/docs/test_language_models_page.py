"""The page on language models is run, with SmolLM2."""

import shutil
from pathlib import Path

import pytest

from tests.docs.test_pages import ROOT, blocks, play
from tests.gguf_models import smollm2

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

PAGE = ROOT / "docs" / "how-to" / "language-models.md"


def test_the_page_on_language_models_does_what_it_shows(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    models, story = tmp_path / "models", tmp_path / "story"
    models.mkdir()
    story.mkdir()
    shutil.copy(smollm2(request), story / "smollm2.gguf")

    play(blocks(PAGE), models, story)
