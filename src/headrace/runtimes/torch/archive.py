"""Content of PyTorch's files: names, sizes, shapes and code, read without running any of it."""

import io
import math
import pickle  # noqa: TID251  # read from files without being executed
import zipfile
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from headrace.core import Array, error_kind
from headrace.runtimes.plugins import code_in
from headrace.runtimes.tables.tabular import corrupt, read_head, refuse

SIGNATURE_NAME: Final = "signature.json"
"""File with the tensors that a model takes: an extra file in the archive, or beside it."""
MAX_TEXT_BYTES: Final = 1 << 20
_MAX_PICKLE_BYTES: Final = 64 << 20
STORAGES: Final = {
    "BoolStorage": "bool",
    "ByteStorage": "uint8",
    "CharStorage": "int8",
    "ShortStorage": "int16",
    "IntStorage": "int32",
    "LongStorage": "int64",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "FloatStorage": "float32",
    "DoubleStorage": "float64",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
}
"""PyTorch's names of storages, and the datatypes of their elements."""
_BFLOAT16: Final = "bfloat16"
_MAX_CONSTANT: Final = 256
_ZIP: Final = b"PK\x03\x04"
_MAX_NAMES: Final = 1_000_000
_SPARE_BYTES: Final = 64 << 20
"""Weights are stored uncompressed; only code and debug records are compressed."""
_SCRIPT_SUFFIXES: Final = frozenset({".pt", ".pth", ".jit", ".ts"})
_PROGRAM_SUFFIXES: Final = frozenset({".pt2"})
_PYTHON_MODEL: Final = "model.py"


class ArchiveKind(StrEnum):
    """Content of an archive, by the name of the runtime that serves it."""

    SCRIPT = "torchscript"
    PROGRAM = "torch_export"


_WRITERS: Final = {ArchiveKind.SCRIPT: "torch.jit.save", ArchiveKind.PROGRAM: "torch.export.save"}


class Traced(NamedTuple):
    """An input that a module was traced with: PyTorch's name of its storage, and its shape."""

    storage: str
    shape: tuple[int, ...]


class StoredTensor(NamedTuple):
    """A tensor of a file."""

    storage: str
    key: str
    stored: int
    """Number of elements in its record."""
    offset: int
    shape: tuple[int, ...]
    is_in_order: bool


class ScriptObject:
    """An object of a TorchScript file: `kind` is its class, `state` its attributes."""

    kind = ""
    state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


def find_torch_file(path: Path, kind: ArchiveKind) -> Path | None:
    """Return the file of `kind` at `path`: itself, or the only one in the directory."""
    if path.is_file():
        return path if _kind_of(path) is kind else None
    if not path.is_dir() or (path / _PYTHON_MODEL).is_file():
        return None
    candidates = [file for file in path.iterdir() if file.is_file() and _kind_of(file) is kind]
    return candidates[0] if len(candidates) == 1 else None


def require_torch_file(path: Path, kind: ArchiveKind) -> Path:
    """Return the file of `kind` at `path`, like `find_torch_file`.

    Raises:
        UnsupportedModelError: There is none; the message describes the file that exists instead.
    """
    candidate = find_torch_file(path, kind)
    if candidate is not None:
        return candidate
    if not path.exists():
        raise refuse(path, "no such file or directory")
    if path.is_dir():
        raise refuse(path, f"must hold exactly one file that {_WRITERS[kind]} wrote")
    raise refuse(path, code_in(path) or f"was not written by {_WRITERS[kind]}")


def check_records(file: Path) -> None:
    """Check a TorchScript archive before PyTorch reads it.

    Raises:
        UnsupportedModelError: See `read_sizes`; or a tensor is larger than its stored data, which
            PyTorch does not check.
    """
    sizes = read_sizes(file)
    for directory in ("", "constants"):
        name = "constants.pkl" if directory else "data.pkl"
        data = read_record(file, name, maximum=_MAX_PICKLE_BYTES)
        if data is None:
            raise corrupt(file, f"'{name}' is missing")
        reader = _Storages(io.BytesIO(data))
        try:
            reader.load()
        except Exception as error:  # noqa: BLE001  # its message may quote the file
            # A damaged stream makes the reader raise any exception.
            raise corrupt(file, f"'{name}': {error_kind(error)}") from None
        for key, needed in reader.bytes_by_key.items():
            record = f"{directory or 'data'}/{key}"
            if sizes.get(record, 0) < needed:
                raise corrupt(
                    file,
                    f"'{record}' has {sizes.get(record, 0)} of the {needed} bytes that it needs",
                )


def read_sizes(file: Path) -> dict[str, int]:
    """Return the sizes of records by name, without the archive's top directory.

    Raises:
        UnsupportedModelError: It is not an archive, is truncated, or would unpack to far more than
            its size.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except OSError as error:
        raise refuse(file, error.strerror or str(error)) from error
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise corrupt(file, error_kind(error)) from None
    if len(entries) > _MAX_NAMES:
        raise refuse(file, f"holds {len(entries)} entries; the limit is {_MAX_NAMES}")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > file.stat().st_size + _SPARE_BYTES:
        raise refuse(
            file,
            f"has {file.stat().st_size} bytes but would unpack to {unpacked}; torch.save "
            "does not compress weights, so another program wrote this file",
        )
    return {_inner(entry.filename): entry.file_size for entry in entries}


def read_record(file: Path, name: str, *, maximum: int = MAX_TEXT_BYTES) -> bytes | None:
    """Return the record called `name`; None if it does not exist.

    Raises:
        UnsupportedModelError: It cannot be read, or has more than `most` bytes.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            full = next((e for e in archive.infolist() if _inner(e.filename) == name), None)
            if full is None:
                return None
            if full.file_size > maximum:
                raise refuse(file, f"'{name}' has more than {maximum} bytes")
            return archive.read(full)
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise corrupt(file, f"'{name}' cannot be read: {error_kind(error)}") from None


def read_traced(file: Path) -> Mapping[str, Sequence[Traced | None]]:
    """Return the inputs that a module was traced with, by method; None for other than tensors.

    Empty if it was not traced, or the record cannot be interpreted.
    """
    data = read_record(file, "traced_inputs.pkl")
    if data is None:
        return {}
    try:
        shapes = _Shapes(io.BytesIO(data)).load()
    except Exception:  # noqa: BLE001  # a damaged stream raises any exception
        return {}
    if not isinstance(shapes, dict):
        return {}
    return {
        str(method): [traced if isinstance(traced, Traced) else None for traced in inputs]
        for method, inputs in shapes.items()
        if isinstance(inputs, list)
    }


def read_script_code(file: Path) -> dict[str, str]:
    """Return the code of a TorchScript archive by qualified module name.

    Raises:
        UnsupportedModelError: It cannot be read, or is too large.
    """
    sizes = read_sizes(file)
    names = {name for name in sizes if name.startswith("code/") and name.endswith(".py")}
    if sum(sizes[name] for name in names) > _MAX_PICKLE_BYTES:
        raise refuse(file, f"holds more than {_MAX_PICKLE_BYTES} bytes of code")
    code = {}
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                name = _inner(entry.filename)
                if name in names:
                    dotted = name.removeprefix("code/").removesuffix(".py").replace("/", ".")
                    code[dotted] = archive.read(entry).decode("utf-8", "replace")
    except (zipfile.BadZipFile, OSError, ValueError, RuntimeError, NotImplementedError) as error:
        raise corrupt(file, f"its code cannot be read: {error_kind(error)}") from None
    return code


def read_script_objects(file: Path) -> tuple[object, Sequence[object]]:
    """Return a TorchScript archive's module and the constants of its code, as `ScriptObject`s.

    Raises:
        UnsupportedModelError: They cannot be read.
    """
    loaded: list[object] = []
    for name in ("data.pkl", "constants.pkl"):
        data = read_record(file, name, maximum=_MAX_PICKLE_BYTES)
        try:
            loaded.append(_Objects(io.BytesIO(data or b"")).load())
        except Exception as error:  # noqa: BLE001  # a damaged stream raises any exception
            raise corrupt(file, f"'{name}': {error_kind(error)}") from None
    root, constants = loaded
    return root, constants if isinstance(constants, list | tuple) else ()


def read_stored(file: Path, directory: str, tensor: StoredTensor) -> Array | None:
    """Return the elements of a small tensor; None if it is large or not stored contiguously."""
    dtype = dtype_of(tensor.storage)
    count = math.prod(tensor.shape)
    is_plain = tensor.is_in_order and not tensor.offset and count == tensor.stored
    if dtype is None or count > _MAX_CONSTANT or not is_plain:
        return None
    data = read_record(file, f"{directory}/{tensor.key}")
    if data is None or len(data) != count * dtype.itemsize:
        return None
    return np.frombuffer(data, dtype).reshape(tensor.shape)


def dtype_of(storage: str) -> np.dtype[Any] | None:
    """Return NumPy's datatype of a storage's elements; None if it has none."""
    name = STORAGES.get(storage, _BFLOAT16)
    return None if name == _BFLOAT16 else np.dtype(name)


def _kind_of(file: Path) -> ArchiveKind | None:
    if read_head(file, len(_ZIP)) != _ZIP:
        return None
    try:
        with zipfile.ZipFile(file) as archive:
            names = {_inner(name) for name in archive.namelist()[:_MAX_NAMES]}
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        # The archive is truncated, so the list at its end is missing: the name decides.
        suffix = file.suffix.lower()
        if suffix in _SCRIPT_SUFFIXES:
            return ArchiveKind.SCRIPT
        return ArchiveKind.PROGRAM if suffix in _PROGRAM_SUFFIXES else None
    if "constants.pkl" in names and any(name.startswith("code/") for name in names):
        return ArchiveKind.SCRIPT
    if "archive_format" in names or "serialized_exported_program.json" in names:
        return ArchiveKind.PROGRAM
    return None


def _inner(name: str) -> str:
    """Return `name` without the archive's top directory; other names are unchanged."""
    return name.partition("/")[2] or name


class _Shapes(pickle.Unpickler):  # no code can run: `find_class` returns these only
    """Reader of shapes in pickled tensors. No code can run: `find_class` has only these names."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return name
        return {
            ("collections", "OrderedDict"): OrderedDict,
            ("torch.jit._pickle", "restore_type_tag"): _untagged,
            ("torch._utils", "_rebuild_tensor_v2"): _traced,
        }[module, name]

    def persistent_load(self, pid: Any) -> Any:
        return pid[1]


class _Objects(_Shapes):
    """Reader of a module's attributes. No code can run: unknown names become `ScriptObject`s."""

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name.endswith("Storage"):
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _stored
        if module == "torch.jit._pickle" and name.startswith("build_"):
            return _same
        if module.startswith("__torch__"):
            return type("ScriptObject", (ScriptObject,), {"kind": f"{module}.{name}"})
        return super().find_class(module, name)

    def persistent_load(self, pid: Any) -> Any:
        _, storage, key, _, elements = pid
        return storage, str(key), int(elements)


class _Storages(pickle.Unpickler):  # no code can run: everything is a `_Anything`
    """Reader of the bytes that a pickled module needs of each record.

    No code can run: every name is an `_Anything`.
    """

    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream)
        self.bytes_by_key: dict[str, int] = {}

    def find_class(self, module: str, name: str) -> Any:
        return name if module == "torch" and name.endswith("Storage") else _Anything

    def persistent_load(self, pid: Any) -> Any:
        _, storage, key, _, elements = pid
        dtype = dtype_of(storage)
        item_bytes = dtype.itemsize if dtype else 2 if storage in STORAGES else 1
        needed = int(elements) * item_bytes
        self.bytes_by_key[str(key)] = max(needed, self.bytes_by_key.get(str(key), 0))
        return _Anything()


class _Anything(dict[Any, Any]):
    """Stand-in for an object of a module that accepts any operation."""

    def __init__(self, *_: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        pass

    def append(self, item: object) -> None:
        pass

    def extend(self, items: object) -> None:
        pass


def _same(value: object) -> object:
    return value


def _stored(storage: Any, offset: int, size: Any, stride: Any, *_: object) -> StoredTensor:
    kind, key, elements = storage
    shape = tuple(int(n) for n in size)
    strides: list[int] = []
    step = 1
    for n in reversed(shape):
        strides.insert(0, step)
        step *= n
    return StoredTensor(kind, key, elements, int(offset), shape, list(stride) == strides)


def _untagged(value: object, _tag: object) -> object:
    return value


def _traced(storage: object, _offset: object, size: object, *_: object) -> object:
    if not isinstance(storage, str) or not isinstance(size, tuple):
        return None
    return Traced(storage, tuple(int(n) for n in size))
