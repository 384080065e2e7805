"""Files that no runtime serves, and what a user can do about them.

Told by names and first bytes alone; nothing is loaded.

Pickles can do whatever a program can. They hide in more formats than their own: joblib files,
PyTorch's archives, NumPy's object arrays.
"""

import zipfile
from pathlib import Path
from typing import Final

_HEAD_BYTES: Final = 512
_MOST_NAMES: Final = 1000
_SAVED_MODEL: Final = "export it with `model.export(DIRECTORY)`, and push that directory"
_NOT_INSIDE: Final = "by its name, but not by its first bytes"
_TORCH_EXPORT: Final = "export the model to ONNX with torch.onnx.export"
_BY_SUFFIX: Final = {
    ".bst": ("an XGBoost file of the old binary format", "save it again as .json or .ubj"),
    ".cbm": (f"a CatBoost file {_NOT_INSIDE}", "save it again"),
    ".engine": ("a TensorRT engine, which fits one GPU and version only", "push its ONNX file"),
    ".ggml": ("a GGML file", "serve it with llama.cpp and name that server as an `upstream`"),
    ".h5": ("a Keras file", _SAVED_MODEL),
    ".hdf5": ("a Keras file", _SAVED_MODEL),
    ".keras": ("a Keras file", _SAVED_MODEL),
    ".mlmodel": ("a Core ML model, which runs on Apple's systems only", "export to ONNX instead"),
    ".mlpackage": ("a Core ML model, which runs on Apple's systems only", "export to ONNX instead"),
    ".pb": ("a TensorFlow graph", "push the SavedModel directory that it lies in"),
    ".pdmodel": ("a PaddlePaddle model", "name what runs it: `--runtime openvino`"),
    ".plan": ("a TensorRT engine, which fits one GPU and version only", "push its ONNX file"),
    ".pmml": ("a PMML file", "export the model to ONNX from the library that trained it"),
    ".pt2": (f"a PyTorch program {_NOT_INSIDE}", "save it again with torch.export.save"),
    ".rds": ("an object of R", "export the model to ONNX, or save XGBoost's as .json"),
    ".safetensors": ("weights without the model that they belong to", _TORCH_EXPORT),
    ".tflite": (f"a TensorFlow Lite file {_NOT_INSIDE}", "convert it again"),
    ".xml": (f"an OpenVINO file {_NOT_INSIDE}", "save it again with openvino.save_model"),
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
    ("saved_model.pb", f"a SavedModel {_NOT_INSIDE}", _SAVED_MODEL),
    ("MLmodel", "an MLflow folder", "push the model file in it"),
    ("model_index.json", "a diffusers pipeline", "export its parts to ONNX with optimum"),
    (
        "config.json",
        "a Hugging Face folder",
        "export it with `optimum-cli export onnx --model DIRECTORY OUT` and push what that writes",
    ),
    ("metadata.json", "a Keras folder", _SAVED_MODEL),
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
    if path.suffix == ".pt2":
        return _BY_SUFFIX[".pt2"]
    if {"model.ini"} <= ends:
        return "an H2O MOJO", "export the model to ONNX, or serve it with H2O as an `upstream`"
    return "an archive", "unpack it and push the directory"


_PICKLE_SUFFIXES: Final = frozenset({".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle"})
_TORCH_SUFFIXES: Final = frozenset({".pt", ".pth", ".ckpt", ".bin"})
_PICKLES: Final = tuple(bytes([0x80, version]) for version in (2, 3, 4, 5))
_ZIP: Final = b"PK\x03\x04"
_MAGIC_BYTES: Final = 4
_MOST_ARCHIVE_NAMES: Final = 10_000


def code_in(path: Path) -> str:
    """Why a file, or the first such file in a directory, is refused; empty if none is.

    Looks at names and first bytes, and at the list of names in archives; nothing is loaded.
    """
    if path.is_file():
        return _code_in_file(path, path.name)
    for file in sorted(path.rglob("*")):
        if file.is_file() and (reason := _code_in_file(file, str(file.relative_to(path)))):
            return reason
    return ""


def _code_in_file(file: Path, name: str) -> str:
    suffix = file.suffix.lower()
    with file.open("rb") as stream:
        head = stream.read(_MAGIC_BYTES)
    what = ""
    if suffix in _PICKLE_SUFFIXES:
        what = "a pickle"
    elif head.startswith(_PICKLES) and suffix not in {".onnx", ".ort"}:
        what = "a pickle, by its first bytes"
    elif head == _ZIP and _has_pickle(file):
        kind = "a PyTorch archive" if suffix in _TORCH_SUFFIXES else "an archive"
        what = f"{kind} with a pickle in it"
    if not what:
        return ""
    return (
        f"'{name}' is {what}, which runs whatever code it was made to run when it is loaded, and "
        f"no runtime here loads it; export the model to ONNX{_or_else(suffix)}"
    )


def _or_else(suffix: str) -> str:
    """What else can be done about a file of this suffix."""
    if suffix in _TORCH_SUFFIXES:
        return " with torch.onnx.export, or save it with torch.export.save or torch.jit.save"
    return (
        ", or write scikit-learn's with skops.io.dump or joblib.dump, and XGBoost's, LightGBM's "
        "and CatBoost's with save_model"
    )


def _has_pickle(file: Path) -> bool:
    """Whether an archive holds a pickle, by its name; only the list of names is read."""
    try:
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()[:_MOST_ARCHIVE_NAMES]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
    return any(name.lower().endswith((".pkl", ".pickle", ".joblib")) for name in names)
