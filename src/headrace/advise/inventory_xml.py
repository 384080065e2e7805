"""What do models in XML say of themselves: OpenVINO IR, PMML?"""

import contextlib
from collections import Counter
from pathlib import Path
from typing import Final
from xml.parsers import expat

from headrace.advise.inventory_model import Details, Problem, TensorInfo, Trouble, problem
from headrace.runtimes.file_bytes import BrokenFileError, Source

_MOST_XML: Final = 256 << 20
_CHUNK: Final = 1 << 16
_MOST_SHOWN: Final = 64
_MOST_DEPTH: Final = 64
_ELEMENTS: Final = {
    "f64": "FP64",
    "f32": "FP32",
    "f16": "FP16",
    "bf16": "BF16",
    "i64": "INT64",
    "i32": "INT32",
    "i16": "INT16",
    "i8": "INT8",
    "u8": "UINT8",
    "i4": "INT4",
    "u4": "UINT4",
    "boolean": "BOOL",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "string": "BYTES",
}


class _StopError(Exception):
    """Enough was read."""


def xml_root(source: Source) -> str:
    """The name of the first element of an XML file; empty if it is none."""
    if not source.head(512).lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        return ""
    name = [""]

    def start(element: str, _: dict[str, str]) -> None:
        name[0] = element
        raise _StopError

    parser = _parser()
    parser.StartElementHandler = start
    with contextlib.suppress(expat.ExpatError, BrokenFileError, _StopError):
        parser.Parse(source.head(_CHUNK), True)  # noqa: FBT003  # expat's own signature: the end
    return name[0]


def openvino_details(source: Source) -> Details:
    """Inputs, outputs and weights of an OpenVINO IR, and whether its `.bin` has them all.

    Raises:
        BrokenFileError: It is damaged.
    """
    if source.size > _MOST_XML:
        raise BrokenFileError(f"is larger than {_MOST_XML} bytes")
    reader = _Ir()
    parser = _parser()
    parser.StartElementHandler = reader.start
    parser.EndElementHandler = reader.end
    parser.CharacterDataHandler = reader.characters
    try:
        for offset in range(0, source.size, _CHUNK):
            parser.Parse(source.read(offset, min(_CHUNK, source.size - offset)), False)  # noqa: FBT003  # expat's
        parser.Parse(b"", True)  # noqa: FBT003  # expat's own signature: the end
    except expat.ExpatError as error:
        raise BrokenFileError("is truncated or damaged: no whole XML") from error
    weights_file = source.path.with_suffix(".bin")
    return Details(
        inputs=tuple(reader.inputs),
        outputs=tuple(reader.outputs),
        producer=f"openvino IR {reader.version}".strip(),
        weights={name: size for name, size in reader.weights.items() if size},
        quantised=True if reader.quantised else None if reader.weights else False,
        notes={"name": reader.name[:100]},
        parts=(weights_file.name,) if reader.end_bytes else (),
        problems=tuple(_bin_problems(weights_file, reader.end_bytes)),
    )


def _bin_problems(file: Path, end: int) -> list[Problem]:
    if not end:
        return []
    try:
        size = file.stat().st_size
    except OSError:
        return [problem(Trouble.MISSING_PART, f"its weights, {file.name}, are not there")]
    if size < end:
        message = f"{file.name} has {size} bytes; its weights end at {end}"
        return [problem(Trouble.MISSING_PART, message)]
    return []


class _Ir:
    """What is taken from an IR's elements as they come."""

    def __init__(self) -> None:
        self.name = self.version = ""
        self.inputs: list[TensorInfo] = []
        self.outputs: list[TensorInfo] = []
        self.weights: Counter[str] = Counter()
        self.end_bytes = 0
        self.quantised = False
        self._path: list[str] = []
        self._kind = self._layer = ""
        self._dims: list[int] = []
        self._text = ""

    def start(self, element: str, attributes: dict[str, str]) -> None:
        self._path.append(element)
        if len(self._path) > _MOST_DEPTH:
            raise BrokenFileError(f"is nested deeper than {_MOST_DEPTH} levels")
        match element:
            case "net" if len(self._path) == 1:
                self.name = attributes.get("name", "")
                self.version = attributes.get("version", "")
            case "layer":
                self._kind, self._layer = attributes.get("type", ""), attributes.get("name", "")
                self._dims = []
                self.quantised |= self._kind == "FakeQuantize"
            case "data":
                self._data(attributes)
            case "dim":
                self._text = ""

    def _data(self, attributes: dict[str, str]) -> None:
        datatype = _ELEMENTS.get(attributes.get("element_type", ""), "?")
        if self._kind == "Parameter" and len(self.inputs) < _MOST_SHOWN:
            shape = tuple(
                _whole(part) for part in attributes.get("shape", "").split(",") if part.strip()
            )
            self.inputs.append(TensorInfo(name=self._layer, datatype=datatype, shape=shape))
        elif self._kind == "Const":
            offset, size = _whole(attributes.get("offset", "")), _whole(attributes.get("size", ""))
            if offset >= 0 and size >= 0:
                self.weights[datatype] += size
                self.end_bytes = max(self.end_bytes, offset + size)

    def characters(self, data: str) -> None:
        if self._path[-1:] == ["dim"]:
            self._text = (self._text + data)[:32]

    def end(self, element: str) -> None:
        self._path.pop()
        if element == "dim" and len(self._dims) < _MOST_SHOWN:
            self._dims.append(_whole(self._text))
        elif element == "layer" and self._kind == "Result" and len(self.outputs) < _MOST_SHOWN:
            info = TensorInfo(name=self._layer, datatype="?", shape=tuple(self._dims))
            self.outputs.append(info)


def _whole(digits: str) -> int:
    digits = digits.strip()
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 18 else -1  # noqa: PLR2004  # 64 bits


def _parser() -> expat.XMLParserType:
    """A parser that refuses entities: a few lines of them make gigabytes."""
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        raise BrokenFileError("declares XML entities, which no model needs")

    parser.EntityDeclHandler = refuse
    return parser
