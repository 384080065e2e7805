"""Files of known formats that nothing here loads are named, with what to do."""

import zipfile
from pathlib import Path

import pytest

from headrace.core import UnsupportedModelError
from headrace.runtimes import inspect_model
from headrace.runtimes.plugins import what_else


def put(path: Path, content: bytes = b"some bytes") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.engine", b"x", "TensorRT engine.*push its ONNX file"),
        ("a.keras", b"x", r"a Keras file; export it with `model\.export"),
        ("a.h5", b"\x89HDF\r\n", "an HDF5 file, as Keras writes"),
        ("a.mlmodel", b"x", "Core ML"),
        ("a.gguf", b"GGML", "a GGUF file by its name, but not by its content; download it again"),
        ("a.pmml", b"<PMML/>", "a PMML file"),
        ("a.safetensors", b"x", "weights without the model"),
        ("a.tflite", b"x", "TensorFlow Lite file by its name, but not by its content"),
        ("a.json.gz", b"\x1f\x8b\x08", "unpack it first"),
        ("a.model", b"binf\x00", "old binary format; save it again as .json or .ubj"),
        ("a.bin", b"version https://git-lfs.github.com/spec/v1", "run `git lfs pull`"),
        ("a.txt", b"", r"is empty \(0 bytes\)"),
        ("a.zip", b"PK\x03\x04 and no more", "archive that is truncated"),
    ],
)
def test_a_file_is_named_with_what_to_do(
    tmp_path: Path, name: str, content: bytes, told: str
) -> None:
    path = put(tmp_path / name, content)

    with pytest.raises(UnsupportedModelError, match=told):
        inspect_model(path)


@pytest.mark.parametrize(
    ("inner", "told"),
    [
        ("config.json", "names no `architectures`"),
        ("saved_model.pb", "SavedModel by its name, but not"),
        ("config.pbtxt", "a Triton repository"),
    ],
)
def test_a_directory_is_named_by_what_lies_in_it(tmp_path: Path, inner: str, told: str) -> None:
    put(tmp_path / "m" / inner)

    with pytest.raises(UnsupportedModelError, match=told):
        inspect_model(tmp_path / "m")


@pytest.mark.parametrize(
    ("inner", "told"),
    [
        ("model.weights.h5", "a Keras file"),
        ("model.ini", "H2O MOJO"),
        ("notes.txt", "unpack it and push the directory"),
    ],
)
def test_an_archive_is_named_by_what_lies_in_it(tmp_path: Path, inner: str, told: str) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(inner, "x")

    assert told in what_else(tmp_path / "a.zip")


def test_what_nobody_knows_is_answered_with_what_there_is(tmp_path: Path) -> None:
    path = put(tmp_path / "notes.unheard-of")

    with pytest.raises(UnsupportedModelError, match=r"available runtimes: .*onnx.*export"):
        inspect_model(path)
