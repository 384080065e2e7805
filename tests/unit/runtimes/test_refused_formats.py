"""Pickles are known wherever they hide, and refused with the reason."""

import zipfile
from pathlib import Path

import pytest

from headrace.core import CodeNotAllowedError, UnsupportedModelError
from headrace.runtimes import inspect_model
from headrace.runtimes.plugins import code_in
from headrace.testing import models

PICKLE = b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix"


def zipped(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"x")
    return path


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("model.dill", "is a pickle"),
        ("model.cloudpickle", "is a pickle"),
        ("model.bin", "a pickle, by its first bytes"),
        ("model", "a pickle, by its first bytes"),
    ],
)
def test_a_pickle_is_no_model(tmp_path: Path, name: str, what: str) -> None:
    path = tmp_path / name
    path.write_bytes(PICKLE)

    with pytest.raises(UnsupportedModelError, match=f"{what}.*; export the model to ONNX"):
        inspect_model(path)


@pytest.mark.parametrize("name", ["model.pkl", "model.JOBLIB", "model.pickle"])
def test_a_pickle_that_may_be_an_estimator_needs_an_allow(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(PICKLE)

    with pytest.raises(CodeNotAllowedError, match=r"is a pickle, which can run .*allow_code: true"):
        inspect_model(path)


@pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.zip"])
def test_a_pickle_in_an_archive_is_found(tmp_path: Path, name: str) -> None:
    path = zipped(tmp_path / name, "archive/data.pkl", "archive/data/0")

    with pytest.raises(UnsupportedModelError, match=r"with a pickle in it,"):
        inspect_model(path)


def test_a_pickle_beside_a_model_is_refused_with_it(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(models.matmul())
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "scaler.pkl").write_bytes(PICKLE)

    with pytest.raises(UnsupportedModelError, match=r"'more/scaler\.pkl' is a pickle"):
        inspect_model(tmp_path)


def test_a_python_model_may_bring_whatever_its_code_loads(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(models.python_double())
    (tmp_path / "weights.pkl").write_bytes(PICKLE)

    assert inspect_model(tmp_path, allow_code=True).runs_code


def test_other_archives_and_broken_ones_are_left_to_others(tmp_path: Path) -> None:
    zipped(tmp_path / "fine.zip", "a.txt")
    (tmp_path / "broken.zip").write_bytes(b"PK\x03\x04 and no more")
    (tmp_path / "model.onnx").write_bytes(models.matmul())

    assert code_in(tmp_path) == ""
