"""The file of an ONNX model: found by name, checked by its first bytes."""

from pathlib import Path
from typing import Final

from headrace.core import UnsupportedModelError

SUFFIXES: Final = (".onnx", ".ort")
_LFS_POINTER: Final = b"version https://git-lfs"
_MAGIC: Final = {
    b"PK\x03\x04": "a ZIP archive (PyTorch checkpoints and Keras files are)",
    b"\x89HDF": "an HDF5 file (old Keras models are)",
    b"\x80\x02": "a Python pickle",
    b"\x80\x03": "a Python pickle",
    b"\x80\x04": "a Python pickle",
    b"\x80\x05": "a Python pickle",
    b"\x1f\x8b": "gzip data; unpack it first",
    b"GGUF": "a GGUF file",
}
_HEAD_BYTES: Final = 256
_LAST_IR_VERSION: Final = 30  # 13 in 2026, one more about every year


def looks_like_onnx(path: Path) -> bool:
    """Whether `path` is a file, or a directory with exactly one, that seems to be ONNX."""
    if path.is_dir():
        # A Python model may carry an .onnx file that it loads itself.
        return len(_candidates(path)) == 1 and not (path / "model.py").exists()
    if path.suffix.lower() in SUFFIXES:
        return True
    return not path.suffix and _begins_like_onnx(_head(path))


def find_onnx_file(path: Path) -> Path:
    """The model's file at `path`, itself or inside the directory.

    Raises:
        UnsupportedModelError: There is none, there are several, or it is plainly something else.
    """
    file = _only_file(path) if path.is_dir() else path
    try:
        head = _head(file)
    except OSError as error:
        msg = f"{file}: {error.strerror or error}"
        raise UnsupportedModelError(msg) from error
    problem = _problem(head)
    if problem:
        msg = f"{file}: {problem}"
        raise UnsupportedModelError(msg)
    return file


def _only_file(directory: Path) -> Path:
    found = _candidates(directory)
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found)
    have = f"several ONNX files ({names})" if found else "no .onnx file"
    msg = f"{directory}: holds {have}; one is needed"
    raise UnsupportedModelError(msg)


def _candidates(directory: Path) -> list[Path]:
    return sorted(
        file
        for file in directory.iterdir()
        if file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()
    )


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(_HEAD_BYTES)


def _begins_like_onnx(head: bytes) -> bool:
    """A ModelProto begins with its field 1, `ir_version`; the ORT format has a mark at byte 4."""
    is_protobuf = len(head) > 2 and head[0] == 0x08 and 0 < head[1] <= _LAST_IR_VERSION  # noqa: PLR2004
    return is_protobuf or head[4:8] == b"ORTM"


def _problem(head: bytes) -> str:
    """Why these first bytes cannot be ONNX; empty if they can."""
    if not head:
        return "is empty (0 bytes)"
    if head.startswith(_LFS_POINTER):
        return "is a Git LFS pointer, not the model; run `git lfs pull`"
    for magic, what in _MAGIC.items():
        if head.startswith(magic):
            return f"is {what}, not ONNX"
    if _begins_like_onnx(head):
        return ""
    text = head.decode("ascii", errors="replace")
    if text.replace("\n", " ").replace("\r", " ").replace("\t", " ").isprintable() and (
        "\ufffd" not in text
    ):
        return "is text, not ONNX"
    return ""
