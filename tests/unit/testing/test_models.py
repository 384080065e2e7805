from pathlib import Path

import onnx
import pytest

from headrace.testing import models


@pytest.mark.parametrize("name", models.ONNX_MODELS)
def test_every_model_is_valid_onnx_and_the_same_each_time(name: str) -> None:
    content = models.ONNX_MODELS[name]()

    onnx.checker.check_model(onnx.load_model_from_string(content))
    assert models.ONNX_MODELS[name]() == content


def test_the_perceptron_weighs_26_kb() -> None:
    assert 25_500 < len(models.mlp()) < 26_500


def test_the_command_writes_the_perceptron_or_what_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert models._main([str(tmp_path / "new")]) == 0
    assert models._main([str(tmp_path), "lookup", "matmul"]) == 0

    assert (tmp_path / "new" / "mlp.onnx").read_bytes() == models.mlp()
    assert (tmp_path / "lookup.onnx").exists()
    assert "matmul.onnx" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["out", "nothing"]])
def test_a_wrong_command_is_told_how_to_be_right(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert models._main(arguments) == 2
    assert "usage:" in capsys.readouterr().err
