"""The examples train in seconds, and what they write is as good as they say."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from headrace.core import ModelSignature
from headrace.runtimes import load_model

EXAMPLES = Path(__file__).parents[2] / "examples"

pytestmark = pytest.mark.slow


def train(example: str, out: Path) -> str:
    command = [sys.executable, "-W", "error", str(EXAMPLES / example / "train.py"), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)  # noqa: S603  # our own script
    return done.stdout


def accuracy(model: Path, test: Path, *, features: str) -> tuple[float, ModelSignature]:
    loaded = load_model(model)
    rows = np.load(test)
    labels = loaded.run({features: rows["inputs"]}, ["label"])["label"]
    return float((labels == rows["labels"]).mean()), loaded.signature


@pytest.mark.long
def test_digits(tmp_path: Path) -> None:
    said = train("digits", tmp_path)
    measured, signature = accuracy(
        tmp_path / "digits.onnx", tmp_path / "test.npz", features="pixels"
    )

    assert measured > 0.95
    assert f"accuracy {measured:.3f}" in said
    assert signature.batched
    assert [spec.name for spec in signature.outputs] == ["label", "probabilities"]
    assert np.loadtxt(tmp_path / "sample.csv", delimiter=",").shape == (8, 64)


def test_breast_cancer(tmp_path: Path) -> None:
    said = train("breast_cancer", tmp_path)

    for model in ("logistic", "boosted"):
        path = tmp_path / f"{model}.onnx"
        measured, _ = accuracy(path, tmp_path / "test.npz", features="features")
        assert measured > 0.93
        assert f"{model}: accuracy {measured:.3f}" in said


@pytest.mark.long
def test_python_model(tmp_path: Path) -> None:
    said = train("python_model", tmp_path)
    measured, signature = accuracy(
        tmp_path / "nearest_digit", tmp_path / "test.npz", features="pixels"
    )

    assert measured > 0.85
    assert f"accuracy {measured:.3f}" in said
    assert signature.batched
