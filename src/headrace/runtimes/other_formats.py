"""What is a file that no runtime recognises, and what can be done about it?

Told by names and first bytes alone; nothing is loaded. Files that run code when they are loaded are
`refused_formats.py`'s.
"""

import zipfile
from pathlib import Path
from typing import Final

_HEAD_BYTES: Final = 512
_MOST_NAMES: Final = 1000
_TO_ONNX_TF: Final = (
    "convert it with `python -m tf2onnx.convert --saved-model DIRECTORY --output model.onnx`"
)
_TORCH_EXPORT: Final = "export the model to ONNX with torch.onnx.export"
_BY_SUFFIX: Final = {
    ".bst": ("an XGBoost file of the old binary format", "save it again as .json or .ubj"),
    ".cbm": ("a CatBoost file by its name, but not by its first bytes", "save it again"),
    ".engine": ("a TensorRT engine, which fits one GPU and version only", "push its ONNX file"),
    ".ggml": ("a GGML file", "serve it with llama.cpp and name that server as an `upstream`"),
    ".h5": ("a Keras file", f"export it with `model.export(DIRECTORY)`, then {_TO_ONNX_TF}"),
    ".hdf5": ("a Keras file", f"export it with `model.export(DIRECTORY)`, then {_TO_ONNX_TF}"),
    ".keras": ("a Keras file", f"export it with `model.export(DIRECTORY)`, then {_TO_ONNX_TF}"),
    ".mlmodel": ("a Core ML model, which runs on Apple's systems only", "export to ONNX instead"),
    ".mlpackage": ("a Core ML model, which runs on Apple's systems only", "export to ONNX instead"),
    ".pb": ("a TensorFlow graph", "push its SavedModel directory, or convert that to ONNX"),
    ".pdmodel": ("a PaddlePaddle model", "convert it to ONNX with paddle2onnx"),
    ".plan": ("a TensorRT engine, which fits one GPU and version only", "push its ONNX file"),
    ".pmml": ("a PMML file", "export the model to ONNX from the library that trained it"),
    ".pt2": ("a PyTorch program of torch.export", _TORCH_EXPORT),
    ".rds": ("an object of R", "export the model to ONNX, or save XGBoost's as .json"),
    ".safetensors": ("weights without the model that they belong to", _TORCH_EXPORT),
    ".tflite": ("a TensorFlow Lite model", "convert it to ONNX with tf2onnx (--tflite)"),
    ".xml": ("an OpenVINO model, perhaps", "install a runtime for it, or export it to ONNX"),
}
_BY_HEAD: Final = (
    (b"version https://git-lfs", "a Git LFS pointer, not the model", "run `git lfs pull`"),
    (
        b"GGUF",
        "a GGUF file",
        "serve it with llama.cpp and name that server as an `upstream`",
    ),
    (b"\x89HDF", "an HDF5 file, as Keras writes", _BY_SUFFIX[".h5"][1]),
    (b"\x1f\x8b", "compressed (gzip)", "unpack it first"),
    (b"BZh", "compressed (bzip2)", "unpack it first"),
    (b"\xfd7zXZ", "compressed (xz)", "unpack it first"),
    (b"binf", "an XGBoost file of the old binary format", "save it again as .json or .ubj"),
)
_IN_DIRECTORIES: Final = (
    ("saved_model.pb", "a TensorFlow SavedModel", _TO_ONNX_TF),
    ("MLmodel", "an MLflow folder", "push the model file in it"),
    ("model_index.json", "a diffusers pipeline", "export its parts to ONNX with optimum"),
    (
        "config.json",
        "a Hugging Face folder",
        "export it with `optimum-cli export onnx --model DIRECTORY OUT` and push what that writes",
    ),
    ("metadata.json", "a Keras folder", f"export it with `model.export(...)`, then {_TO_ONNX_TF}"),
    ("config.pbtxt", "a model of a Triton repository", "push the file in its version's folder"),
)


def what_else(path: Path) -> str:
    """What a file or directory is and what to do; empty if that is not known."""
    found = _directory(path) if path.is_dir() else _file(path)
    return f"is {found[0]}; {found[1]}" if found else ""


def _directory(path: Path) -> tuple[str, str] | None:
    if not any(path.iterdir()):
        return "an empty directory", "name the model's file, or the directory that holds it"
    for name, what, advice in _IN_DIRECTORIES:
        if (path / name).is_file():
            return what, advice
    return _BY_SUFFIX.get(path.suffix.lower())


def _file(path: Path) -> tuple[str, str] | None:
    with path.open("rb") as stream:
        head = stream.read(_HEAD_BYTES)
    if not head:
        return "empty (0 bytes)", "copy it again"
    for magic, what, advice in _BY_HEAD:
        if head.startswith(magic):
            return what, advice
    if head[4:8] == b"TFL3":
        return _BY_SUFFIX[".tflite"]
    if head.startswith(b"PK\x03\x04"):
        return _archive(path)
    return _BY_SUFFIX.get(path.suffix.lower())


def _archive(path: Path) -> tuple[str, str] | None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()[:_MOST_NAMES]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return "an archive that is truncated or corrupt", "copy it again"
    ends = {name.rpartition("/")[2] for name in names}
    if "model.weights.h5" in ends:
        return _BY_SUFFIX[".keras"]
    if "serialized_exported_program.json" in ends or path.suffix == ".pt2":
        return _BY_SUFFIX[".pt2"]
    if "constants.pkl" in ends:
        return "a TorchScript archive", _TORCH_EXPORT
    if {"model.ini"} <= ends:
        return "an H2O MOJO", "export the model to ONNX, or serve it with H2O as an `upstream`"
    return "an archive", "unpack it and push the directory"
