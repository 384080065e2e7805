"""ZIP archives and pickles of models: their content, and what loading them would import.

Only a few entries are read, with limits, so that an archive that unpacks to a terabyte costs no
more than its directory.
"""

import bz2
import contextlib
import io
import lzma
import pickletools
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Final, Protocol

import msgspec

from headrace.advise.inventory.asset import (
    AssetFormat,
    AssetProblem,
    AssetProblemKind,
    Details,
    problem,
)
from headrace.runtimes.file_bytes import BrokenFileError, FileReader

_MAX_BYTES: Final = 8 << 20
_MAX_MEMORY: Final = 128 << 20  # a header may ask for gigabytes
_MAX_OPCODES: Final = 400_000
_MAX_SHOWN: Final = 12
_MAX_TEXT: Final = 200
_KEPT_TEXTS: Final = 64
_PROTOCOLS: Final = tuple(bytes((0x80, number)) for number in range(2, 6))
_DANGEROUS: Final = re.compile(
    r"(?:os|posix|nt|subprocess|pty|socket|shutil|runpy|ctypes|importlib|webbrowser|code|pdb"
    r"|multiprocessing|asyncio|http|urllib|requests|pip|sys|signal|commands|bdb|timeit|pickle"
    r"|_pickle|cloudpickle|dill)(?:\..*)?"
)
_BUILTINS: Final = frozenset({"eval", "exec", "execfile", "compile", "open", "__import__", "input"})
_READS_ATTRIBUTES: Final = frozenset(
    {"getattr", "setattr", "globals", "locals", "vars", "breakpoint"}
)


class _Unpacks(Protocol):
    def decompress(self, data: bytes, max_length: int = ..., /) -> bytes: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Opcodes:
    """The opcodes of a pickle."""

    imports: tuple[str, ...]
    """Imports as `module.name`, in order."""
    whole: bool
    """Whether the end was reached."""
    any_opcode: bool


def looks_like_pickle(head: bytes) -> bool:
    """Whether the bytes begin with a pickle of protocol 2 or newer."""
    return head.startswith(_PROTOCOLS)


def decompress_head(source: FileReader) -> bytes:
    """Return the beginning of a file, decompressed if joblib compressed it."""
    data = source.head(_MAX_BYTES)
    makers: Mapping[bytes, Callable[[], _Unpacks]] = {
        b"\x78": zlib.decompressobj,
        b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
        b"BZh": bz2.BZ2Decompressor,
        b"\xfd7zXZ": lambda: lzma.LZMADecompressor(memlimit=_MAX_MEMORY),
        b"\x5d\x00\x00": lambda: lzma.LZMADecompressor(memlimit=_MAX_MEMORY),
    }
    for magic, make in makers.items():
        if data.startswith(magic):
            try:
                return make().decompress(data, _MAX_BYTES)
            except (zlib.error, OSError, EOFError, lzma.LZMAError, ValueError):
                return b""
    return data


def read_opcodes(data: bytes) -> Opcodes:
    """Return the imports of a pickle, as far as its opcodes can be parsed."""
    reader = _Reader()
    # Arrays of joblib are stored raw between the opcodes: the imports before them count.
    with contextlib.suppress(ValueError, IndexError, OverflowError, MemoryError):
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            reader.count += 1
            if reader.count > _MAX_OPCODES:
                break
            reader.read(opcode.name, argument)
    return Opcodes(imports=tuple(reader.imports), whole=reader.whole, any_opcode=reader.count > 1)


class _Reader:
    """Tracks the strings of a pickle, which is enough to find its imports."""

    def __init__(self) -> None:
        self.imports: dict[str, None] = {}
        self.count = 0
        self.whole = False
        self._texts: list[str] = []
        self._memo: dict[int, str] = {}

    def read(self, name: str, argument: object) -> None:
        """Process one opcode."""
        match name:
            case "GLOBAL" | "INST":
                self.imports[str(argument).replace(" ", ".", 1)[:_MAX_TEXT]] = None
            case "STACK_GLOBAL":
                # The two strings before it, either literal or from the memo.
                self.imports[".".join(self._texts[-2:])[:_MAX_TEXT]] = None
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._last()
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self._memo[int(str(argument))] = self._last()
            case "BINGET" | "LONG_BINGET" | "GET":
                self._texts.append(self._memo.get(int(str(argument)), ""))
            case "STOP":
                self.whole = True
            case _ if isinstance(argument, str) and name.endswith(
                ("UNICODE", "UNICODE8", "STRING")
            ):
                self._texts.append(argument[:_MAX_TEXT])
        del self._texts[:-_KEPT_TEXTS]

    def _last(self) -> str:
        return self._texts[-1] if self._texts else ""


def pickle_format(opcodes: Opcodes) -> AssetFormat:
    """Return the format of a pickle, from its imports; UNKNOWN if it is not a pickle."""
    if not opcodes.any_opcode or not (opcodes.imports or opcodes.whole):
        return AssetFormat.UNKNOWN
    roots = {name.partition(".")[0] for name in opcodes.imports}
    if "torch" in roots:
        return AssetFormat.TORCH_PICKLE
    return AssetFormat.SKLEARN if "sklearn" in roots else AssetFormat.PICKLE


def pickle_details(opcodes: Opcodes, *, weights: Mapping[str, int] | None = None) -> Details:
    """Return the imports of a pickle, and their problems."""
    shown = ", ".join(opcodes.imports[:_MAX_SHOWN])
    more = len(opcodes.imports) - _MAX_SHOWN
    notes = {"imports": f"{shown} and {more} more" if more > 0 else shown}
    return Details(
        notes=notes if opcodes.imports else {},
        weights=weights or {},
        problems=tuple(pickle_problems(opcodes)),
    )


def pickle_problems(opcodes: Opcodes) -> list[AssetProblem]:
    """Return the problems of a pickle: it runs code, and imports that no model needs."""
    problems = [
        problem(AssetProblemKind.RUNS_CODE, "a pickle: loading it calls the functions it names")
    ]
    dangerous = [name for name in opcodes.imports if _is_dangerous(name)]
    if dangerous:
        message = f"loading it would call {', '.join(dangerous[:8])}"
        problems.append(problem(AssetProblemKind.DANGEROUS_CODE, message))
    return problems


def _is_dangerous(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    if module in {"builtins", "__builtin__", "__builtins__"}:
        return attribute in _BUILTINS | _READS_ATTRIBUTES
    return _DANGEROUS.fullmatch(module) is not None


MAGIC: Final = b"PK\x03\x04"
_MAX_DIRECTORY: Final = 32 << 20
_MAX_ENTRY: Final = 8 << 20
_MAX_CODE_FILES: Final = 2000
_PACKED: Final = frozenset({zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED})
_IN_ZIP64: Final = 0xFFFFFFFF
_TAIL: Final = (1 << 16) + 64
_OPERATORS: Final = re.compile(rb"\bops\.([A-Za-z_]\w*)\.")
_OWN_OPERATORS: Final = frozenset({b"aten", b"prim", b"prims", b"quantized", b"static_cuda"})
_STORAGES: Final = {
    "FloatStorage": ("FP32", 4),
    "DoubleStorage": ("FP64", 8),
    "HalfStorage": ("FP16", 2),
    "BFloat16Storage": ("BF16", 2),
    "LongStorage": ("INT64", 8),
    "IntStorage": ("INT32", 4),
    "CharStorage": ("INT8", 1),
    "ByteStorage": ("UINT8", 1),
    "BoolStorage": ("BOOL", 1),
    "QInt8Storage": ("INT8", 1),
    "QUInt8Storage": ("UINT8", 1),
    "ShortStorage": ("INT16", 2),
}


class _Keras(msgspec.Struct):
    keras_version: str = ""


def archive_format(source: FileReader) -> AssetFormat:
    """Return the format of an archive, from the names of its entries.

    Raises:
        BrokenFileError: It is damaged, or its directory is too large for a model.
    """
    with _opened(source) as archive:
        names = archive.namelist()
        # All entries are in one folder, named after the archive's original file name.
        inner = {name.partition("/")[2] for name in names}
        if "config.json" in names and "metadata.json" in names:
            return AssetFormat.KERAS
        if "archive_format" in inner or "archive_format" in names:
            return AssetFormat.TORCH_EXPORT
        if "data.pkl" in inner:
            is_script = "constants.pkl" in inner or any(name.startswith("code/") for name in inner)
            return AssetFormat.TORCHSCRIPT if is_script else AssetFormat.TORCH_PICKLE
        return AssetFormat.UNKNOWN


def archive_details(source: FileReader, kind: AssetFormat) -> Details:
    """Return the details of a model archive.

    Raises:
        BrokenFileError: The archive is damaged.
    """
    with _opened(source) as archive:
        names = archive.namelist()
        escaping = _escaping(names)
        match kind:
            case AssetFormat.TORCHSCRIPT:
                details = _torch_script(archive, names)
            case AssetFormat.TORCH_PICKLE:
                details = _checkpoint(archive, names)
            case AssetFormat.KERAS:
                details = _keras(archive)
            case _:
                details = Details()
    return replace(details, problems=(*details.problems, *escaping))


def _opened(source: FileReader) -> zipfile.ZipFile:
    if _directory_bytes(source) > _MAX_DIRECTORY:
        raise BrokenFileError(f"has a directory of more than {_MAX_DIRECTORY} bytes")
    try:
        return zipfile.ZipFile(source.path)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise BrokenFileError("is truncated or damaged: not a complete ZIP archive") from error


def _directory_bytes(source: FileReader) -> int:
    """Return the size of the list of entries, by the end record; `zipfile` would read it all."""
    size = min(_TAIL, source.size)
    tail = source.read(source.size - size, size)
    end = tail.rfind(b"PK\x05\x06")
    if end < 0 or end + 16 > len(tail):
        raise BrokenFileError("is truncated or damaged: not a complete ZIP archive")
    size_32 = int.from_bytes(tail[end + 12 : end + 16], "little")
    large = tail.rfind(b"PK\x06\x06")
    if size_32 == _IN_ZIP64 and large >= 0:
        return int.from_bytes(tail[large + 40 : large + 48], "little")
    return size_32


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    """Return the beginning of an entry, regardless of its declared size."""
    try:
        # Other compression methods may need gigabytes of memory, and no model's writer uses them.
        if archive.getinfo(name).compress_type not in _PACKED:
            raise BrokenFileError(f"compresses {name[:100]!r} with an unsupported method")
        with archive.open(name) as stream:
            return stream.read(_MAX_ENTRY)
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, RuntimeError, LookupError) as error:
        raise BrokenFileError(f"is truncated or damaged: {name[:100]!r} in it") from error


def _escaping(names: Sequence[str]) -> list[AssetProblem]:
    unsafe = [
        name
        for name in names
        if name.startswith(("/", "\\")) or ".." in PurePosixPath(name.replace("\\", "/")).parts
    ]
    if not unsafe:
        return []
    message = f"unpacking it would write outside of its folder: {unsafe[0][:100]!r}"
    return [problem(AssetProblemKind.DANGEROUS_CODE, message)]


def _torch_script(archive: zipfile.ZipFile, names: Sequence[str]) -> Details:
    code = [name for name in names if "/code/" in name and name.endswith(".py")]
    used = {
        operator
        for name in code[:_MAX_CODE_FILES]
        for operator in _OPERATORS.findall(_entry(archive, name))
    }
    custom = sorted(name.decode() for name in used - _OWN_OPERATORS)
    opcodes = _opcodes(archive, names)
    dangerous = [
        pickle_problem
        for pickle_problem in pickle_problems(opcodes)
        if pickle_problem.code is AssetProblemKind.DANGEROUS_CODE
    ]
    problems = list(dangerous)
    if custom:
        message = (
            f"calls operators of {', '.join(custom[:8])}, from libraries that are not part of it"
        )
        problems.append(problem(AssetProblemKind.CUSTOM_OPERATORS, message))
        problems.append(
            problem(AssetProblemKind.RUNS_CODE, "its operators are code of other libraries")
        )
    return Details(
        producer="torch",
        weights=_weights(archive, names, opcodes),
        quantised=True if b"quantized" in used else None,
        problems=tuple(problems),
    )


def _checkpoint(archive: zipfile.ZipFile, names: Sequence[str]) -> Details:
    opcodes = _opcodes(archive, names)
    details = pickle_details(opcodes, weights=_weights(archive, names, opcodes))
    return replace(details, producer="torch")


def _opcodes(archive: zipfile.ZipFile, names: Sequence[str]) -> Opcodes:
    name = next(name for name in names if name.endswith("/data.pkl"))
    return read_opcodes(_entry(archive, name))


def _weights(archive: zipfile.ZipFile, names: Sequence[str], opcodes: Opcodes) -> dict[str, int]:
    """Return bytes by datatype, only if all storages have one type: they do not record it."""
    kinds = {
        _STORAGES[storage][0]
        for name in opcodes.imports
        if (storage := name.rpartition(".")[2]) in _STORAGES
    }
    size = sum(
        archive.getinfo(name).file_size
        for name in names
        if name.partition("/")[2].startswith(("data/", "constants/"))
    )
    return {kinds.pop(): size} if len(kinds) == 1 and size else {}


def _keras(archive: zipfile.ZipFile) -> Details:
    config = _entry(archive, "config.json")
    try:
        version = msgspec.json.decode(_entry(archive, "metadata.json"), type=_Keras).keras_version
    except (msgspec.MsgspecError, ValueError, RecursionError):
        version = ""
    problems = []
    if re.search(rb'"class_name"\s*:\s*"Lambda"', config):
        problems.append(
            problem(AssetProblemKind.RUNS_CODE, "has a Lambda layer: Python code in the model")
        )
    if "model.weights.h5" not in archive.namelist():
        problems.append(problem(AssetProblemKind.MISSING_PART, "model.weights.h5 is not in it"))
    return Details(producer=f"keras {version}".strip(), problems=tuple(problems))
