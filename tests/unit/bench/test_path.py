import asyncio
import json
from pathlib import Path

import pytest

from bench import path
from bench.peers import models


def test_every_request_is_answered_and_timed(tmp_path: Path) -> None:
    figures = asyncio.run(path.measure(models.load("mlp", tmp_path), 2))

    assert figures.model == "mlp"
    assert 0 < figures.least_us <= figures.median_us


def test_a_request_that_is_refused_is_no_figure(tmp_path: Path) -> None:
    model = models.load("mlp", tmp_path)
    wrong = models.Model(name="mlp", path=model.path, rows=models.rows("gbdt"), max_batch=32)

    with pytest.raises(RuntimeError, match="of 2048 requests 0 were answered"):
        asyncio.run(path.measure(wrong, 1))


def test_figures_are_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert path.main(["--models", "mlp", "--rounds", "1", "--json"]) == 0

    assert json.loads(capsys.readouterr().out)["model"] == "mlp"
