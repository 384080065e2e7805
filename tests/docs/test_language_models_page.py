"""The page on language models: its section on GGUF files is run, with SmolLM2.

`tests/clients/test_page.py` runs the others, which need a client of OpenAI's API.
"""

import shutil
from pathlib import Path

import pytest

from tests.clients.table import full_table
from tests.docs.test_pages import ROOT, blocks, play
from tests.gguf_models import smollm2

PAGE = ROOT / "docs" / "how-to" / "language-models.md"


@pytest.mark.e2e
@pytest.mark.slow
def test_the_section_on_gguf_files_does_what_it_shows(
    request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    models, story = tmp_path / "models", tmp_path / "story"
    models.mkdir()
    story.mkdir()
    shutil.copy(smollm2(request), story / "smollm2.gguf")

    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text().partition("\n## Serve embeddings")[0])

    play(blocks(page), models, story)


def test_the_table_of_clients_is_what_the_suite_of_clients_tests() -> None:
    assert full_table() in PAGE.read_text()
