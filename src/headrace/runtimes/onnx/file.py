"""ONNX files: found by name, recognised by their first bytes, and checked against their size.

The check reads the bare wire format before ONNX Runtime allocates memory for the file. It refuses
tensors that declare more elements than there are bytes, external weights outside of the model's
directory, and unbounded nesting of messages. Only declarations are read; weights are skipped.
"""

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Final

from headrace.core import UnsupportedModelError
from headrace.runtimes.file_bytes import visible_files

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
    """Whether `path` looks like an ONNX file, or is a directory with exactly one."""
    if path.is_dir():
        # A Python model may include an .onnx file that it loads itself.
        return len(visible_files(path, SUFFIXES)) == 1 and not (path / "model.py").exists()
    if path.suffix.lower() in SUFFIXES:
        return True
    return not path.suffix and _begins_like_onnx(_head(path))


def find_onnx_file(path: Path) -> Path:
    """Return the model's file: `path`, or the one inside the directory.

    Raises:
        UnsupportedModelError: There is no file, there are several, or it is of another format.
    """
    file = _only_file(path) if path.is_dir() else path
    try:
        head = _head(file)
    except OSError as error:
        raise UnsupportedModelError(f"{file}: {error.strerror or error}") from error
    problem = _problem(head)
    if problem:
        raise UnsupportedModelError(f"{file}: {problem}")
    return file


def _only_file(directory: Path) -> Path:
    models = visible_files(directory, SUFFIXES)
    if len(models) == 1:
        return models[0]
    names = ", ".join(file.name for file in models)
    have = f"several ONNX files ({names})" if models else "no .onnx file"
    raise UnsupportedModelError(f"{directory}: holds {have}; exactly one is needed")


def _head(file: Path) -> bytes:
    with file.open("rb") as stream:
        return stream.read(_HEAD_BYTES)


def _begins_like_onnx(head: bytes) -> bool:
    """Whether bytes start with field 1 of ModelProto (`ir_version`), or the ORT mark at byte 4."""
    is_protobuf = len(head) > 2 and head[0] == 0x08 and 0 < head[1] <= _LAST_IR_VERSION  # noqa: PLR2004
    return is_protobuf or head[4:8] == b"ORTM"


def _problem(head: bytes) -> str:
    """Return why these first bytes cannot be ONNX; empty if they can."""
    if not head:
        return "is empty (0 bytes)"
    if head.startswith(_LFS_POINTER):
        return "is a Git LFS pointer, not the model; run `git lfs pull`"
    for magic, description in _MAGIC.items():
        if head.startswith(magic):
            return f"is {description}, not ONNX"
    if _begins_like_onnx(head):
        return ""
    text = head.decode("ascii", errors="replace")
    if text.replace("\n", " ").replace("\r", " ").replace("\t", " ").isprintable() and (
        "\ufffd" not in text
    ):
        return "is text, not ONNX"
    return ""


_MAX_DEPTH: Final = 64
_MAX_FIELDS: Final = 20_000_000
_MAX_RANK: Final = 64
_MAX_DIMENSION: Final = (1 << 63) - 1
_ELEMENTS_A_BYTE: Final = 8
"""No datatype is smaller than a bit; strings and variable-length numbers are larger."""
_MAX_TEXT: Final = 4096
_ORT_MARK: Final = b"ORTM"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Nesting of messages: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
_MODEL: Final = {7: "graph", 25: "function", 20: "training"}
_TRAINING: Final = {1: "graph", 2: "graph"}
_GRAPH: Final = {1: "node", 5: "tensor", 15: "sparse"}
_SPARSE: Final = {1: "tensor", 2: "tensor"}
_FUNCTION: Final = {7: "node", 11: "attribute"}
_NODE: Final = {5: "attribute"}
_ATTRIBUTE: Final = {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"}
_CHILDREN: Final = {
    "model": _MODEL,
    "training": _TRAINING,
    "graph": _GRAPH,
    "sparse": _SPARSE,
    "function": _FUNCTION,
    "node": _NODE,
    "attribute": _ATTRIBUTE,
}
Field = tuple[int, int, int, int]
"""Number, wire type, and the bounds of the value; a number's start is the number itself."""


@dataclass(slots=True)
class _Tensor:
    """Declarations of a tensor."""

    dims: list[int] = field(default_factory=list)
    name: str = ""
    external: dict[str, str] = field(default_factory=dict)


def scan_onnx(file: Path) -> None:
    """Check the declarations of an ONNX file.

    Raises:
        UnsupportedModelError: A declaration cannot be true; the message names the tensor and it.
    """
    external_files(file)


def external_files(file: Path) -> tuple[Path, ...]:
    """Return the external weight files of an ONNX file, sorted; some may be missing.

    Raises:
        UnsupportedModelError: See `scan_onnx`.
    """
    if file.stat().st_size == 0:
        return ()
    with (
        file.open("rb") as stream,
        mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        if data[4:8] == _ORT_MARK:
            return ()  # a FlatBuffer: ONNX Runtime checks its offsets itself
        scan = _Scan(file, data)
        scan.run()
    return tuple(file.parent / location for location in sorted(scan.external))


class _Scan:
    """One pass over a file."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self._file = file
        self._data = data
        self._fields = 0
        self.external: set[str] = set()

    def run(self) -> None:
        """Check every tensor."""
        waiting = [("model", 0, len(self._data), 0)]
        while waiting:
            kind, start, end, depth = waiting.pop()
            if depth > _MAX_DEPTH:
                raise self._refuse(f"nests more than {_MAX_DEPTH} messages")
            children = _CHILDREN[kind]
            for number, wire, begin, stop in self._read(start, end):
                child = children.get(number)
                if child is None or wire != _BYTES:
                    continue
                if child == "tensor":
                    self._check(self._tensor(begin, stop), stop - begin)
                else:
                    waiting.append((child, begin, stop, depth + 1))

    def _tensor(self, start: int, end: int) -> _Tensor:
        tensor = _Tensor()
        for number, wire, begin, stop in self._read(start, end):
            match number, wire:
                case (1, 0):
                    tensor.dims.append(begin)
                case (1, 2):
                    tensor.dims += islice(self._packed(begin, stop), _MAX_RANK + 1)
                case (8, 2):
                    tensor.name = self._text(begin, stop)
                case (13, 2):
                    tensor.external |= self._pair(begin, stop)
                case _:
                    continue
            if len(tensor.dims) > _MAX_RANK:
                raise self._refuse(f"tensor '{tensor.name}' has more than {_MAX_RANK} dimensions")
        return tensor

    def _check(self, tensor: _Tensor, held_bytes: int) -> None:
        description = f"tensor '{tensor.name[:100]}'"
        elements = 1
        for size in tensor.dims:
            if size > _MAX_DIMENSION:
                raise self._refuse(f"{description} has a negative dimension")
            elements *= size
        if tensor.external:
            held_bytes += self._external_bytes(description, tensor.external)
        if elements > _ELEMENTS_A_BYTE * held_bytes:
            claim = f"declares {elements} elements but holds {held_bytes} bytes"
            raise self._refuse(f"{description} {claim}")

    def _external_bytes(self, description: str, external: dict[str, str]) -> int:
        location = external.get("location", "")
        path = PurePosixPath(location)
        if not location or path.is_absolute() or ".." in path.parts or "\0" in location:
            message = (
                f"{description} has its data in {location[:200]!r}, outside the model's directory"
            )
            raise self._refuse(message)
        directory = self._file.parent.resolve()
        there = Path(os.path.realpath(directory / path))
        if not there.is_relative_to(directory):
            raise self._refuse(
                f"{description} has its data in {location[:200]!r}, a link that leads out of the "
                "model's directory"
            )
        self.external.add(str(path))
        if not there.is_file():
            return 1 << 62  # ONNX Runtime's error is better and has the remedy
        size = there.stat().st_size
        for key in ("offset", "length"):
            text = external.get(key, "0") or "0"
            if not text.isascii() or not text.isdigit() or int(text[:20]) > size:
                raise self._refuse(
                    f"{description} has an external {key} that is not within its file of {size} "
                    "bytes"
                )
        return size

    def _pair(self, start: int, end: int) -> dict[str, str]:
        texts = {
            number: self._text(b, e)
            for number, wire, b, e in self._read(start, end)
            if wire == _BYTES
        }
        return {texts.get(1, ""): texts.get(2, "")}

    def _packed(self, start: int, end: int) -> Iterator[int]:
        while start < end:
            value, start = self._varint(start, end)
            yield value

    def _text(self, start: int, end: int) -> str:
        return self._data[start : min(end, start + _MAX_TEXT)].decode(errors="replace")

    def _read(self, start: int, end: int) -> Iterator[Field]:
        """Yield the fields of a message."""
        while start < end:
            self._fields += 1
            if self._fields > _MAX_FIELDS:
                raise self._refuse(f"holds more than {_MAX_FIELDS} fields")
            tag, start = self._varint(start, end)
            number, wire = tag >> 3, tag & 7
            if wire == _VARINT:
                value, start = self._varint(start, end)
                yield number, wire, value, start
                continue
            if wire == _BYTES:
                length, start = self._varint(start, end)
            elif wire in {_FIXED64, _FIXED32}:
                length = 8 if wire == _FIXED64 else 4
            else:
                raise self._broken()
            stop = start + length
            if stop > end:
                raise self._broken()
            yield number, wire, start, stop
            start = stop

    def _varint(self, start: int, end: int) -> tuple[int, int]:
        value = shift = 0
        data = self._data
        while start < end and shift < 70:  # noqa: PLR2004  # ten bytes of seven bits
            byte = data[start]
            start += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004  # the last one has no continuation bit
                return value, start
            shift += 7
        raise self._broken()

    def _broken(self) -> UnsupportedModelError:
        return self._refuse("is truncated or corrupt: it cannot be parsed as ONNX")

    def _refuse(self, reason: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self._file}: {reason}")
