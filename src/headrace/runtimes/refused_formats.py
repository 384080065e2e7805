"""Files that run code when they are loaded, and are no models that a runtime here serves.

Pickles can do whatever a program can. They hide in more formats than their own: joblib files,
PyTorch's archives, NumPy's object arrays.
"""

import zipfile
from pathlib import Path
from typing import Final

_PICKLE_SUFFIXES: Final = frozenset({".pkl", ".pickle", ".joblib", ".dill", ".cloudpickle"})
_TORCH_SUFFIXES: Final = frozenset({".pt", ".pth", ".ckpt", ".bin"})
_PICKLES: Final = tuple(bytes([0x80, version]) for version in (2, 3, 4, 5))
_ZIP: Final = b"PK\x03\x04"
_HEAD_BYTES: Final = 4
_MOST_NAMES: Final = 10_000


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
        head = stream.read(_HEAD_BYTES)
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
            names = archive.namelist()[:_MOST_NAMES]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return False
    return any(name.lower().endswith((".pkl", ".pickle", ".joblib")) for name in names)
