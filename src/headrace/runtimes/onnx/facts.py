"""Facts of an ONNX file, read from its protobuf without the weights.

Schema: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from headrace.core import UnsupportedModelError
from headrace.runtimes.file_bytes import (
    BrokenFileError,
    FileReader,
    ProtobufField,
    fields,
    inside,
    numbers,
    signed,
    text,
)
from headrace.runtimes.onnx.file import find_onnx_file

_WITH_GRAPHS: Final = frozenset({"If", "Loop", "Scan", "SequenceMap"})
"""Operators with graphs inside. Others are not searched: the lists in trees take too long to scan.
"""
_QUANTIZED: Final = ("QLinear", "QuantizeLinear", "DequantizeLinear", "MatMulInteger")
_ALSO_QUANTIZED: Final = ("ConvInteger", "DynamicQuantize", "MatMulNBits", "QGemm", "QAttention")
_SOFTMAX: Final = frozenset({"Softmax", "QLinearSoftmax"})
_PASS_ON: Final = frozenset(
    {
        *("Cast", "Dropout", "Identity", "Where", "Mul", "Reshape", "Transpose"),
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear"),
    }
)
"""Operators allowed between the softmax of attention and the product with its values."""
_MIX: Final = frozenset({"MatMul", "FusedMatMul", "MatMulInteger", "QLinearMatMul", "Einsum"})
_MAX_DEPTH: Final = 16
_MAX_NAMES: Final = 4096
_MAX_SHOWN: Final = 64
_ORT_MARK: Final = b"ORTM"
_TYPES: Final = (
    *("?", "FP32", "UINT8", "INT8", "UINT16", "INT16", "INT32", "INT64", "BYTES", "BOOL", "FP16"),
    *("FP64", "UINT32", "UINT64", "COMPLEX64", "COMPLEX128", "BF16", "FP8E4M3FN", "FP8E4M3FNUZ"),
    *("FP8E5M2", "FP8E5M2FNUZ", "UINT4", "INT4", "FP4E2M1", "FP8E8M0", "UINT2", "INT2"),
)
"""Names of `TensorProto.DataType`, in its order."""
_KINDS: Final = {4: "sequence", 5: "map", 8: "sparse", 9: "optional"}
"""`TypeProto`: kinds of input besides tensors."""
_EXTERNAL: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """An input or output; -1 in `shape` is any size, a `shape` of None is any shape."""

    name: str
    datatype: str
    shape: tuple[int, ...] | None


@dataclass(slots=True)
class OnnxFacts:
    """Contents of a graph, of its nested graphs and of its functions."""

    operators: Counter[str] = field(default_factory=Counter)
    """Number of nodes by operator."""
    attentions: int = 0
    """Number of products with the result of a softmax, where attention is not fused."""
    opsets: dict[str, int] = field(default_factory=dict)
    """Versions by domain; that of ONNX's own operators is `opset`."""
    ir_version: int = 0
    producer: str = ""
    weights: Counter[str] = field(default_factory=Counter)
    """Bytes of all constants by datatype, external files included."""
    external: dict[str, int] = field(default_factory=dict)
    """External files with constants, and the end offset of the last constant in each."""
    inputs: list[TensorInfo] = field(default_factory=list)
    """Inputs of the outermost graph that have no initial value."""
    outputs: list[TensorInfo] = field(default_factory=list)

    @property
    def opset(self) -> int:
        """Version of ONNX's own operators; 0 if the file has none."""
        return max(self.opsets.get("", 0), self.opsets.get("ai.onnx", 0))

    @property
    def weights_bytes(self) -> int:
        """Bytes of all constants."""
        return self.weights.total()

    @property
    def takes_text(self) -> bool:
        """Whether an input holds strings."""
        return any(tensor.datatype == "BYTES" for tensor in self.inputs)

    @property
    def is_quantized(self) -> bool:
        """Whether the model is quantized already."""
        return any(name.startswith((*_QUANTIZED, *_ALSO_QUANTIZED)) for name in self.operators)

    @property
    def is_half(self) -> bool:
        """Whether most of the weights are 16-bit numbers."""
        half = self.weights["FP16"] + self.weights["BF16"]
        return 2 * half > self.weights["FP32"]

    @property
    def has_branches(self) -> bool:
        """Whether parts of the graph are conditional or loops."""
        return any(self.operators[name] for name in _WITH_GRAPHS)


def bits_of(datatype: str) -> int:
    """Return the bits per element of a datatype; 8 if it is unknown."""
    digits = re.match(r"[A-Z]+(\d+)", datatype)
    return min(int(digits[1]), 128) if digits else 8


def read_onnx_facts(path: Path) -> OnnxFacts:
    """Return the facts of an ONNX file, or of the only one in a directory.

    Raises:
        UnsupportedModelError: No such file exists, or it is damaged.
    """
    file = find_onnx_file(path)
    try:
        with FileReader(file) as source:
            if source.head(8)[4:] == _ORT_MARK:
                msg = f"{file}: is in ONNX Runtime's own format, which cannot be rewritten; "
                raise UnsupportedModelError(f"{msg}name the .onnx file that it was made of")
            return onnx_facts(source)
    except (BrokenFileError, OSError) as error:
        raise UnsupportedModelError(f"{file}: {error}") from error


def onnx_facts(source: FileReader) -> OnnxFacts:
    """Return the facts of an open ONNX file.

    Raises:
        BrokenFileError: It is damaged.
    """
    facts = OnnxFacts()
    producer = {2: "", 3: ""}
    has_graph = False
    for entry in fields(source):
        match entry.number:
            case 1:
                facts.ir_version = signed(entry.value)
            case 2 | 3:
                producer[entry.number] = text(source, entry)
            case 7:
                has_graph = True
                _Graph(source, facts, depth=0).read(entry)
            case 8:
                parts = {part.number: part for part in inside(source, entry)}
                domain = text(source, parts[1]) if 1 in parts else ""
                facts.opsets[domain] = signed(parts[2].value) if 2 in parts else 0  # noqa: PLR2004  # version
            case 25:
                _Graph(source, facts, depth=1).read_function(entry)
    if not has_graph:
        raise BrokenFileError("is truncated or damaged: it holds no graph")
    facts.producer = " ".join(filter(None, producer.values()))
    return facts


class _Graph:
    """Reader state of one graph or one function."""

    def __init__(self, source: FileReader, facts: OnnxFacts, *, depth: int) -> None:
        if depth > _MAX_DEPTH:
            raise BrokenFileError(f"nests graphs deeper than {_MAX_DEPTH}")
        self._source = source
        self._found = facts
        self._depth = depth
        self._shares: set[str] = set()
        """Tensors derived from a softmax."""

    def read(self, graph: ProtobufField) -> None:
        """Count the contents of a `GraphProto`."""
        initial: set[str] = set()
        taken: list[TensorInfo] = []
        for entry in inside(self._source, graph):
            match entry.number:
                case 1:
                    self._read_node(entry)
                case 5:
                    initial.add(_read_tensor(self._source, entry, self._found))
                case 11 if self._depth == 0 and len(taken) < _MAX_NAMES:
                    taken.append(_read_value(self._source, entry))
                case 12 if self._depth == 0 and len(self._found.outputs) < _MAX_SHOWN:
                    self._found.outputs.append(_read_value(self._source, entry))
        self._found.inputs += [tensor for tensor in taken if tensor.name not in initial]

    def read_function(self, function: ProtobufField) -> None:
        """Count the contents of a `FunctionProto`, whose nodes are field 7."""
        for entry in inside(self._source, function):
            if entry.number == 7:  # noqa: PLR2004  # FunctionProto.node
                self._read_node(entry)

    def _read_node(self, node: ProtobufField) -> None:
        parts = list(inside(self._source, node))
        kind = next((self._text(part) for part in parts if part.number == 4), "")  # noqa: PLR2004  # op_type
        self._found.operators[kind] += 1
        self._follow(kind, parts)
        if kind != "Constant" and kind not in _WITH_GRAPHS:
            return
        for attribute in (part for part in parts if part.number == 5):  # noqa: PLR2004  # attribute
            for entry in inside(self._source, attribute):
                if entry.number in {6, 11}:  # g, graphs
                    _Graph(self._source, self._found, depth=self._depth + 1).read(entry)
                elif entry.number == 5 and kind == "Constant":  # noqa: PLR2004  # t
                    _read_tensor(self._source, entry, self._found)

    def _follow(self, kind: str, parts: list[ProtobufField]) -> None:
        """Record the outputs of a node; nodes are in topological order."""
        if kind in _SOFTMAX:
            comes_of_softmax = True
        elif kind in _PASS_ON or kind in _MIX:
            comes_of_softmax = any(
                part.number == 1 and self._text(part) in self._shares for part in parts
            )
        else:
            return
        if comes_of_softmax and kind in _MIX:
            self._found.attentions += 1
        elif comes_of_softmax:
            self._shares.update(self._text(part) for part in parts if part.number == 2)  # noqa: PLR2004  # output

    def _text(self, entry: ProtobufField) -> str:
        return text(self._source, entry, _MAX_NAMES)


def _read_tensor(source: FileReader, tensor: ProtobufField, facts: OnnxFacts) -> str:
    """Count a constant tensor and return its name."""
    elements, datatype, name, is_external = 1, "?", "", False
    entries: dict[str, str] = {}
    for entry in inside(source, tensor):
        match entry.number:
            case 1:
                for size in numbers(source, entry):
                    elements = min(elements * max(size, 0), 1 << 60)
            case 2:
                datatype = _type_name(entry.value)
            case 8:
                name = text(source, entry, _MAX_NAMES)
            case 13:
                parts = {part.number: text(source, part, 4096) for part in inside(source, entry)}
                entries[parts.get(1, "")] = parts.get(2, "")
            case 14:
                is_external = entry.value == _EXTERNAL
    size_bytes = -(-elements * bits_of(datatype) // 8)
    facts.weights[datatype] += size_bytes
    if is_external or "location" in entries:
        location = entries.get("location", "")
        end = _whole(entries.get("offset", "")) + (_whole(entries.get("length", "")) or size_bytes)
        facts.external[location] = max(facts.external.get(location, 0), end)
    return name


def _type_name(number: int) -> str:
    return _TYPES[number] if 0 < number < len(_TYPES) else f"type {number}"


def _whole(digits: str) -> int:
    return int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 20 else 0  # noqa: PLR2004  # 64 bits


def _read_value(source: FileReader, value: ProtobufField) -> TensorInfo:
    """Return the name, element type and shape of a `ValueInfoProto`, or its kind if no tensor."""
    name, datatype, shape = "", "?", None
    for part in inside(source, value):
        if part.number == 1:
            name = text(source, part, _MAX_NAMES)
        elif part.number == 2:  # noqa: PLR2004  # ValueInfoProto.type
            kind = next(inside(source, part), None)
            if kind is not None and kind.number == 1:
                for item in inside(source, kind):
                    if item.number == 1:
                        datatype = _type_name(item.value)
                    elif item.number == 2:  # noqa: PLR2004  # TypeProto.Tensor.shape
                        dims = [dim for dim in inside(source, item) if dim.number == 1]
                        shape = tuple(_dimension(source, dim) for dim in dims[:_MAX_SHOWN])
            elif kind is not None:
                datatype = _KINDS.get(kind.number, "?")
    return TensorInfo(name=name, datatype=datatype, shape=shape)


def _dimension(source: FileReader, dim: ProtobufField) -> int:
    """Return the size of a dimension; -1 if it is variable."""
    sizes = [signed(part.value) for part in inside(source, dim) if part.number == 1]
    return max(sizes[0], -1) if sizes else -1
