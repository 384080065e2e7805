"""Model files that OpenVINO reads, found and checked.

Checked before OpenVINO sees it: weights that lie outside of the `.bin` or the directory, entities
and nesting without end, lists that cannot be true.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final
from xml.parsers import expat

from headrace.runtimes.file_bytes import BrokenFileError, Source, fields, inside
from headrace.runtimes.onnx_facts import TensorInfo
from headrace.runtimes.onnx_file import find_onnx_file, scan_onnx
from headrace.runtimes.savedmodel_file import looks_like_savedmodel, read_savedmodel
from headrace.runtimes.tabular import corrupt, read_head, refuse
from headrace.runtimes.tflite_file import read_tflite

_HEAD_BYTES: Final = 1024
_IR: Final = re.compile(
    rb"(\xef\xbb\xbf)?\s*(<\?xml[^>]*\?>\s*)?(<!--.*?-->\s*)*<net[\s>]", re.DOTALL
)
_USUAL: Final = {"model.xml", "openvino_model.xml"}
"""Triton's name, and Optimum's, which puts its tokenizers beside the model."""
_MOST_XML_BYTES: Final = 512 << 20
_CHUNK_BYTES: Final = 1 << 16
_MOST_DEPTH: Final = 64
_MOST_LAYERS: Final = 2_000_000
_OLDEST_VERSION: Final = 10
"""Of the IR: OpenVINO 2020.1 wrote the first that this one reads."""
_MOST_SHOWN: Final = 64
_MAX_ELEMENTS: Final = 1 << 40
_BITS: Final = {"boolean": 8, "bf16": 16, "nf4": 4, "string": 8, "f8e4m3": 8, "f8e5m2": 8}


class Kind(StrEnum):
    """What OpenVINO reads."""

    IR = ".xml"
    ONNX = ".onnx"
    PADDLE = ".pdmodel"
    TFLITE = ".tflite"
    SAVEDMODEL = "saved_model.pb"


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenvinoFile:
    """What to hand to OpenVINO."""

    kind: Kind
    path: Path


def looks_like_openvino(path: Path) -> bool:
    """Whether `path` is an IR, or a directory with exactly one; no other format is claimed."""
    if path.is_dir():
        found = _entries(path, {Kind.IR.value})
        return len(found) == 1 and _begins_like_ir(found[0]) and not (path / "model.py").exists()
    return path.suffix.lower() == Kind.IR and _begins_like_ir(path)


def find_openvino_file(path: Path) -> OpenvinoFile:
    """The model at `path`, checked.

    Raises:
        UnsupportedModelError: There is none, or several, or it is damaged.
    """
    if looks_like_savedmodel(path):
        read_savedmodel(path)
        return OpenvinoFile(kind=Kind.SAVEDMODEL, path=path)
    file = _only_file(path) if path.is_dir() else path
    if not file.is_file():
        raise refuse(file, "no such file")
    match file.suffix.lower():
        case Kind.IR.value:
            _check_ir(file)
        case Kind.ONNX.value:
            scan_onnx(find_onnx_file(file))
        case Kind.PADDLE.value:
            _check_paddle(file)
        case Kind.TFLITE.value:
            read_tflite(file)
        case _:
            raise refuse(file, f"is none of what OpenVINO reads ({', '.join(Kind)})")
    return OpenvinoFile(kind=Kind(file.suffix.lower()), path=file)


def _entries(directory: Path, suffixes: set[str]) -> list[Path]:
    found = sorted(
        file
        for file in directory.iterdir()
        if file.suffix.lower() in suffixes and not file.name.startswith(".") and file.is_file()
    )
    usual = [file for file in found if file.name in _USUAL]
    return usual if len(usual) == 1 else found


def _begins_like_ir(file: Path) -> bool:
    return _IR.match(read_head(file, _HEAD_BYTES)) is not None


def _only_file(directory: Path) -> Path:
    found = _entries(directory, {kind.value for kind in Kind})
    if len(found) == 1:
        return found[0]
    names = ", ".join(file.name for file in found[:8])
    have = f"several models ({names})" if found else "no model"
    raise refuse(directory, f"holds {have} that OpenVINO reads; one is needed")


def _check_ir(file: Path) -> None:
    if not _begins_like_ir(file):
        raise refuse(file, "is no OpenVINO IR: it does not begin with <net>")
    try:
        with Source(file) as source:
            found = read_ir(source)
    except expat.ExpatError as error:
        where = f"line {error.lineno}, column {error.offset}"
        raise corrupt(file, f"no whole XML ({where})") from None
    except BrokenFileError as error:
        raise refuse(file, str(error)) from error
    _check_weights(file, found.end_bytes)


def read_ir(source: Source) -> "IrFile":
    """What an IR says of its model and of its weights.

    Raises:
        ExpatError: It is no whole XML.
        BrokenFileError: It declares what cannot be.
    """
    if source.size > _MOST_XML_BYTES:
        raise BrokenFileError(f"is larger than {_MOST_XML_BYTES} bytes")
    found = IrFile()
    parser = xml_parser()
    parser.StartElementHandler = found.start
    parser.EndElementHandler = found.end
    parser.CharacterDataHandler = found.characters
    for offset in range(0, source.size, _CHUNK_BYTES):
        size = min(_CHUNK_BYTES, source.size - offset)
        parser.Parse(source.read(offset, size), False)  # noqa: FBT003  # expat's
    parser.Parse(b"", True)  # noqa: FBT003  # expat's own signature: the end
    return found


def xml_parser() -> expat.XMLParserType:
    """A parser that refuses entities: a few lines of them make gigabytes."""
    parser = expat.ParserCreate()
    parser.EntityDeclHandler = _no_entities
    return parser


def _check_weights(file: Path, end: int) -> None:
    if not end:
        return
    weights = file.with_suffix(".bin")
    if not weights.is_file():
        msg = f"its weights, {weights.name}, are not beside it; put both files into a directory"
        raise refuse(file, f"{msg} and name that")
    if weights.resolve().parent != file.resolve().parent:
        raise refuse(file, f"its weights, {weights.name}, are a link that leads elsewhere")
    size = weights.stat().st_size
    if size < end:
        raise refuse(file, f"{weights.name} has {size} bytes, and the weights end at {end}")


def _check_paddle(file: Path) -> None:
    """Read the outer two levels of the program: OpenVINO's own reader has no bound."""
    try:
        with Source(file) as source:
            blocks = [one for one in fields(source) if one.number == 1]
            for block in blocks:
                for _ in inside(source, block):
                    pass
    except (BrokenFileError, OSError) as error:
        raise refuse(file, f"cannot be read as a Paddle program: {error}") from error
    if not blocks:
        raise refuse(file, "is no Paddle program: it has no blocks")
    weights = file.with_suffix(".pdiparams")
    if weights.exists() and weights.resolve().parent != file.resolve().parent:
        raise refuse(file, f"its weights, {weights.name}, are a link that leads elsewhere")


def _no_entities(*_: object) -> None:
    raise BrokenFileError("declares XML entities, which no model needs")


class IrFile:
    """An IR as its elements come: signature, weights by datatype, and where they end."""

    def __init__(self) -> None:
        self.name = self.version = ""
        self.inputs: list[TensorInfo] = []
        self.outputs: list[TensorInfo] = []
        self.weights: Counter[str] = Counter()
        self.is_quantised = False
        self.end_bytes = 0
        self._depth = self._layers = 0
        self._kind = self._layer = self._text = ""
        self._dims: list[int] = []

    def start(self, element: str, attributes: dict[str, str]) -> None:
        """Take an element's beginning."""
        self._depth += 1
        if self._depth > _MOST_DEPTH:
            raise BrokenFileError(f"nests deeper than {_MOST_DEPTH} elements")
        self._text = ""
        if self._depth == 1:
            self.name, self.version = attributes.get("name", ""), attributes.get("version", "")
            _check_version(self.version)
        elif element == "layer":
            self._layers += 1
            if self._layers > _MOST_LAYERS:
                raise BrokenFileError(f"has more than {_MOST_LAYERS} layers")
            self._kind, self._layer = attributes.get("type", ""), attributes.get("name", "")
            self._dims = []
            self.is_quantised |= self._kind == "FakeQuantize"
        elif element == "data" and self._kind == "Const":
            self._constant(attributes)
        elif element == "data" and self._kind == "Parameter" and len(self.inputs) < _MOST_SHOWN:
            datatype = _datatype(attributes.get("element_type", ""))
            shape = tuple(_sizes(attributes.get("shape", "")))
            self.inputs.append(TensorInfo(name=self._layer, datatype=datatype, shape=shape))

    def characters(self, data: str) -> None:
        """Take text."""
        self._text = (self._text + data)[:32]

    def end(self, element: str) -> None:
        """Take an element's end."""
        self._depth -= 1
        if element == "dim" and len(self._dims) < _MOST_SHOWN:
            self._dims.append(_whole(self._text))
        elif element == "layer" and self._kind == "Result" and len(self.outputs) < _MOST_SHOWN:
            shape = tuple(self._dims)
            self.outputs.append(TensorInfo(name=self._layer, datatype="?", shape=shape))

    def _constant(self, attributes: dict[str, str]) -> None:
        what = f"the constant '{self._layer[:100]}'"
        offset, size = _whole(attributes.get("offset", "")), _whole(attributes.get("size", ""))
        dims = _sizes(attributes.get("shape", ""))
        if min([offset, size, *dims]) < 0:
            raise BrokenFileError(f"is damaged: {what} says no place or shape that can be")
        elements = math.prod(dims)
        kind = attributes.get("element_type", "")
        if elements > _MAX_ELEMENTS or elements * _bits(kind) > 8 * size + 7:
            raise BrokenFileError(f"{what} declares {elements} elements and has {size} bytes")
        self.weights[_datatype(kind)] += size
        self.end_bytes = max(self.end_bytes, offset + size)


def _check_version(version: str) -> None:
    if _whole(version) < _OLDEST_VERSION:
        msg = "is an IR of a version that is not read; convert the model again with OpenVINO"
        raise BrokenFileError(f"{msg} 2022 or newer")


def _bits(kind: str) -> int:
    if kind == "string":
        return 0  # of any length
    return _BITS.get(kind) or int(re.sub(r"\D", "", kind)[:2] or 0)


def _datatype(kind: str) -> str:
    """The name that other formats have for an element type; `?` if there is none."""
    plain = re.fullmatch(r"(f|bf|i|u)(\d{1,2})", kind)
    if plain is None:
        return {"boolean": "BOOL", "string": "BYTES"}.get(kind, "?")
    return {"f": "FP", "bf": "BF", "i": "INT", "u": "UINT"}[plain[1]] + plain[2]


def _sizes(shape: str) -> list[int]:
    """The dimensions of a list with commas; -1 where one varies."""
    return [_whole(part) for part in shape.split(",") if part.strip()]


def _whole(digits: str) -> int:
    digits = digits.strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 18 else -1  # noqa: PLR2004  # 64 bits
