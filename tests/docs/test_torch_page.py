"""What the page on PyTorch shows is run, where PyTorch is installed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from headrace.runtimes import inspect_model
from tests.docs.test_pages import ROOT, blocks
from tests.torch_models import SILERO

pytestmark = [pytest.mark.torch, pytest.mark.slow]

PAGE = ROOT / "docs" / "how-to" / "torch-models.md"


def test_the_files_that_the_page_writes_are_served(tmp_path: Path) -> None:
    for block in blocks(PAGE):
        if block.language == "python":
            (tmp_path / block.title).write_text(block.text)
            subprocess.run([sys.executable, "-W", "ignore", block.title], cwd=tmp_path, check=True)  # noqa: S603  # ours

    scores = inspect_model(tmp_path / "scores.pt2", allow_code=True).signature
    scorer = inspect_model(tmp_path / "scorer.pt", allow_code=True).signature

    assert scores.batched
    assert scores.inputs[0].shape == (-1, 4)
    assert scorer.batched
    assert [(one.name, one.datatype, one.shape) for one in scorer.outputs] == [
        ("scores", "FP32", (-1, 3)),
        ("best", "INT64", (-1,)),
    ]


def test_the_published_models_signature_is_the_one_that_is_tried() -> None:
    (shown,) = [block for block in blocks(PAGE) if block.language == "json"]

    assert json.loads(shown.text) == json.loads(SILERO)
