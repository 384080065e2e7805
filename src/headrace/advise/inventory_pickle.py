"""What would a pickle import if it were loaded? Its opcodes are listed; it never is loaded."""

import bz2
import contextlib
import io
import lzma
import pickletools
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from headrace.advise.inventory_model import Details, Format, Problem, Trouble, problem
from headrace.runtimes.file_bytes import Source

_MOST_BYTES: Final = 8 << 20
_MOST_MEMORY: Final = 128 << 20  # a header may ask for gigabytes
_MOST_OPCODES: Final = 400_000
_MOST_SHOWN: Final = 12
_MOST_TEXT: Final = 200
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
    """`imports` as `module.name`, in the order they come; `whole`: whether its end was reached."""

    imports: tuple[str, ...]
    whole: bool
    any_opcode: bool


def looks_like_pickle(head: bytes) -> bool:
    """Whether the bytes begin a pickle of protocol 2 or newer."""
    return head.startswith(_PROTOCOLS)


def unpacked(source: Source) -> bytes:
    """The beginning of a file, taken out of the compression that joblib may have used."""
    data = source.head(_MOST_BYTES)
    makers: Mapping[bytes, Callable[[], _Unpacks]] = {
        b"\x78": zlib.decompressobj,
        b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
        b"BZh": bz2.BZ2Decompressor,
        b"\xfd7zXZ": lambda: lzma.LZMADecompressor(memlimit=_MOST_MEMORY),
        b"\x5d\x00\x00": lambda: lzma.LZMADecompressor(memlimit=_MOST_MEMORY),
    }
    for magic, make in makers.items():
        if data.startswith(magic):
            try:
                return make().decompress(data, _MOST_BYTES)
            except (zlib.error, OSError, EOFError, lzma.LZMAError, ValueError):
                return b""
    return data


def read_opcodes(data: bytes) -> Opcodes:
    """What a pickle imports, as far as its opcodes can be followed."""
    reader = _Reader()
    # Arrays of joblib lie between the opcodes, raw: what was seen before them counts.
    with contextlib.suppress(ValueError, IndexError, OverflowError, MemoryError):
        for opcode, argument, _ in pickletools.genops(io.BytesIO(data)):
            reader.count += 1
            if reader.count > _MOST_OPCODES:
                break
            reader.read(opcode.name, argument)
    return Opcodes(imports=tuple(reader.imports), whole=reader.whole, any_opcode=reader.count > 1)


class _Reader:
    """Follows the texts of a pickle, which is enough to know what it imports."""

    def __init__(self) -> None:
        self.imports: dict[str, None] = {}
        self.count = 0
        self.whole = False
        self._texts: list[str] = []
        self._memo: dict[int, str] = {}

    def read(self, name: str, argument: object) -> None:
        """Take one opcode."""
        match name:
            case "GLOBAL" | "INST":
                self.imports[str(argument).replace(" ", ".", 1)[:_MOST_TEXT]] = None
            case "STACK_GLOBAL":
                # The two texts before it, whether written there or out of the memo.
                self.imports[".".join(self._texts[-2:])[:_MOST_TEXT]] = None
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
                self._texts.append(argument[:_MOST_TEXT])
        del self._texts[:-_KEPT_TEXTS]

    def _last(self) -> str:
        return self._texts[-1] if self._texts else ""


def pickle_format(opcodes: Opcodes) -> Format:
    """What a pickle holds, by what it imports; UNKNOWN if it is none."""
    if not opcodes.any_opcode or not (opcodes.imports or opcodes.whole):
        return Format.UNKNOWN
    roots = {name.partition(".")[0] for name in opcodes.imports}
    if "torch" in roots:
        return Format.TORCH_PICKLE
    return Format.SKLEARN if "sklearn" in roots else Format.PICKLE


def pickle_details(opcodes: Opcodes, *, weights: Mapping[str, int] | None = None) -> Details:
    """What loading it would import, and what is wrong with that."""
    shown = ", ".join(opcodes.imports[:_MOST_SHOWN])
    more = len(opcodes.imports) - _MOST_SHOWN
    notes = {"imports": f"{shown} and {more} more" if more > 0 else shown}
    return Details(
        notes=notes if opcodes.imports else {},
        weights=weights or {},
        problems=tuple(pickle_problems(opcodes)),
    )


def pickle_problems(opcodes: Opcodes) -> list[Problem]:
    """That it runs code, and which of it no model needs."""
    found = [problem(Trouble.RUNS_CODE, "a pickle: loading it calls what it names")]
    bad = [name for name in opcodes.imports if _is_dangerous(name)]
    if bad:
        message = f"loading it would call {', '.join(bad[:8])}"
        found.append(problem(Trouble.DANGEROUS_CODE, message))
    return found


def _is_dangerous(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    if module in {"builtins", "__builtin__", "__builtins__"}:
        return attribute in _BUILTINS | _READS_ATTRIBUTES
    return _DANGEROUS.fullmatch(module) is not None
