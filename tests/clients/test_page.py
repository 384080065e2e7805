"""The page on language models: its sections on encoders, upstreams, files and columns are run.

The first section is run by `tests/docs/test_language_models_page.py`. The models are small ones of
the tests, and the stub is the OpenAI-compatible server.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from tests import hub_folders
from tests.clients.conftest import ENVIRONMENT, ROOT
from tests.docs.test_pages import Block, blocks, play
from tests.e2e.gateway.test_openai import MODEL, running_stub
from tests.ports import free_port

PAGE: Final = (ROOT / "docs/how-to/language-models.md").read_text()
COLUMN: Final = """
import polars as pl
from pathlib import Path
Path("docs").mkdir()
pl.DataFrame({"id": [1, 2], "text": ["a fine day", "the river"]}).write_parquet("docs/1.parquet")
"""


def sections(*titles: str) -> list[Block]:
    """The blocks of these sections; those that import `openai` run where it is installed."""
    text = "".join(
        PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0] + "\n" for title in titles
    )
    page = Path("page.md")
    page.write_text(text)
    return [
        Block("sh", "", f"{ENVIRONMENT}/bin/python - <<'END'\n{block.text}END\n")
        if block.language == "python" and "import OpenAI" in block.text
        else block
        for block in blocks(page)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    if not ENVIRONMENT.exists():
        pytest.skip("there is no .venv-clients: make setup ENV=clients")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    story = tmp_path / "story"
    encoder = story / "all-MiniLM-L6-v2"
    hub_folders.write_text(encoder, "BertModel", output="last_hidden_state")
    return tmp_path


def run(steps: Sequence[Block], folder: Path) -> None:
    play(list(steps), folder / "models", folder / "story")


def test_the_section_on_encoders_does_what_it_shows(folder: Path) -> None:
    hub_folders.write_text(folder / "story/ms-marco-MiniLM-L6-v2", labels=("LABEL_0",))

    run(sections("Serve embeddings from an encoder"), folder)


def test_the_sections_on_upstreams_and_files_do_what_they_show(folder: Path) -> None:
    spec, *steps = sections(
        "Route to an OpenAI-compatible server",
        "Run a file of requests",
        "Embed a column of texts",
    )
    port = free_port()
    served = spec.text.replace("http://vllm.internal:8000", f"http://127.0.0.1:{port}")
    served = served.replace("meta-llama/Llama-3.1-8B-Instruct", MODEL) + "      health_path: null\n"
    served += "  - {name: encoder, model: ./all-MiniLM-L6-v2}\n"
    before = [
        Block("yaml", "headrace.yaml", served),
        Block("sh", "", "headrace up -f headrace.yaml --detach\n"),
        Block("python", "", COLUMN),
    ]
    after = [
        Block("sh", "", "headrace usage --csv | cut -d, -f2,4 | sort -u\n"),
        Block("text", "", "chat,\nencoder,\nendpoint,credential\n"),
        Block("sh", "", "wc -l < results.jsonl\n"),
        Block("text", "", "2\n"),
    ]
    with running_stub(str(port), MODEL):
        run([*before, *steps, *after], folder)
