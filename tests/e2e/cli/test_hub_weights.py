"""Weights of Hugging Face folders are exported when they are stored, or else run by PyTorch."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.cli.base import hub_folders
from headrace.cli.base.hub_folders import push_model
from headrace.cli.base.offline import HomeModels, Pushed
from headrace.core import UnsupportedModelError
from headrace.runtimes import load_model
from tests.e2e.cli.conftest import MakeShell, Shell
from tests.unit.pipeline.elements import elements

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
from tests.unit.pipeline.test_transformers import TEXTS, bert_sequences  # noqa: E402  # needs them

pytestmark = [pytest.mark.e2e, pytest.mark.torch, pytest.mark.slow]


@pytest.fixture(scope="module")
def shell(make_shell: MakeShell) -> Shell:
    shell = make_shell()
    bert_sequences(shell.folder / "mood")
    return shell


def pushed(shell: Shell, *more: str) -> tuple[dict[str, Any], str]:
    done = shell.run("models", "push", "mood", "mood", "--json", *more)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document, done.stderr


def test_weights_are_exported_once(shell: Shell) -> None:
    first, said = pushed(shell)
    second, said_again = pushed(shell, "--convert", "onnx")

    assert (first["reference"], second["reference"]) == ("mood:1", "mood:1")
    assert "mood is exported to ONNX by torch" in said
    assert "exported" not in said_again
    names = {file["path"] for file in first["files"]}
    assert "model.onnx" in names
    assert "model.safetensors" not in names
    assert first["metadata"]["converted_file"] == "model.safetensors"
    assert first["signature"]["batched"]


def test_an_exported_version_answers_as_the_weights(shell: Shell, tmp_path: Path) -> None:
    pushed(shell)
    folder = tmp_path / "fetched"
    artifact = next((shell.home / "artifacts" / "sha256").glob("*/mood"))
    folder.symlink_to(artifact)
    exported, weights = load_model(folder), load_model(shell.folder / "mood")

    inputs = {"text": elements(*TEXTS)}
    got, want = exported.run(inputs), weights.run(inputs)

    assert got["label"].tolist() == want["label"].tolist()
    np.testing.assert_allclose(got["score"], want["score"], atol=1e-4)
    exported.close()
    weights.close()


def test_weights_that_cannot_be_exported_are_run_by_torch(
    shell: Shell,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @contextlib.contextmanager
    def refused(*_: object, **__: object) -> Iterator[tuple[Path, Any]]:
        raise UnsupportedModelError("its operator is unknown")
        yield

    monkeypatch.setattr(hub_folders, "converted_model", refused)
    model = Pushed(path=shell.folder / "mood")

    document = push_model(HomeModels(tmp_path / "home"), "mood", model, tmp_path / "home")

    assert "so PyTorch runs it: its operator is unknown" in capsys.readouterr().err
    assert {file["path"] for file in document["files"]} >= {"model.safetensors", "config.json"}
    with pytest.raises(UnsupportedModelError, match="its operator is unknown"):
        push_model(
            HomeModels(tmp_path / "other"), "mood", model, tmp_path / "other", must_export=True
        )
