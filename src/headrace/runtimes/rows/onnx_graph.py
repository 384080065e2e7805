"""ONNX graphs for the row analysis: nodes, attributes, small constants, calls.

`scan_onnx` has checked the file's declarations. Attributes are decoded only when an operator reads
them, because those of trees are as large as the file.
"""

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Final

import numpy as np

from headrace.runtimes.file_bytes import (
    BrokenFileError,
    FileReader,
    ProtobufField,
    fields,
    inside,
    last_text,
    numbers,
    text,
    within,
)
from headrace.runtimes.rows.operators import OperatorCall, Results
from headrace.runtimes.rows.symbols import Size
from headrace.runtimes.rows.values import MAX_ELEMENTS, Value, constant

# Field numbers: https://github.com/onnx/onnx/blob/main/onnx/onnx.proto


class _Model:
    GRAPH, OPSETS, FUNCTIONS = 7, 8, 25


class _Graph:
    NODE, TENSOR, INPUT, OUTPUT, SPARSE = 1, 5, 11, 12, 15


class _Node:
    INPUT, OUTPUT, NAME, OPERATOR, ATTRIBUTE, DOMAIN, OVERLOAD = 1, 2, 3, 4, 5, 7, 8


class _Attribute:
    FLOAT, INT, TEXT, TENSOR, GRAPH, FLOATS, INTS, STRINGS, REFERENCE = 2, 3, 4, 5, 6, 7, 8, 9, 21


class _Function:
    NAME, INPUT, OUTPUT, NODE, OPSETS, DOMAIN, DEFAULTS, OVERLOAD = 1, 4, 5, 7, 9, 10, 11, 13


class _Tensor:
    DIMS, TYPE, FLOATS, INT32, INT64, NAME, RAW = 1, 2, 4, 5, 7, 8, 9
    DOUBLES, UINT64, EXTERNAL = 10, 11, 13


_FIRST: Final = 1
"""Field number of the name in most messages, of a domain, and of a sparse tensor's values."""
_DTYPES: Final = {
    1: "<f4",
    2: "u1",
    3: "i1",
    4: "<u2",
    5: "<i2",
    6: "<i4",
    7: "<i8",
    9: "?",
    10: "<f2",
    11: "<f8",
    12: "<u4",
    13: "<u8",
}
_ITEMS: Final = frozenset(
    {_Tensor.FLOATS, _Tensor.INT32, _Tensor.INT64, _Tensor.DOUBLES, _Tensor.UINT64}
)
"""Fields that list elements, one for each type."""
_MAX_NODES: Final = 500_000
_MAX_NAME: Final = 1 << 16
_MAX_ATTRIBUTE: Final = 4096
_MAX_INDICES: Final = 1 << 16
"""Integer tensors with more elements are not searched for their largest value."""


@dataclass(frozen=True, slots=True)
class OnnxAttribute:
    """One attribute of a node, not yet decoded."""

    source: FileReader
    field: ProtobufField

    def ints(self) -> list[int]:
        """Return a list of integers.

        Raises:
            BrokenFileError: It is longer than any list of axes.
        """
        values: list[int] = []
        for part in self._parts(_Attribute.INTS):
            values += numbers(self.source, part, _MAX_ATTRIBUTE)
            if len(values) > _MAX_ATTRIBUTE:
                raise BrokenFileError("has a list of axes that no tensor has")
        return values

    def integer(self) -> int | None:
        """Return an integer; None if it is of another type."""
        values = [
            numbers(self.source, part)[0]
            for part in self._parts(_Attribute.INT)
            if not part.is_bytes
        ]
        return values[-1] if values else None

    def decimal(self) -> float | None:
        """Return a number; None if it is of another type."""
        parts = list(self._parts(_Attribute.FLOAT))
        return self._decimal(parts[-1]) if parts else None

    def decimals(self) -> list[float]:
        """Return a list of numbers, not packed."""
        return [self._decimal(part) for part in self._parts(_Attribute.FLOATS)][:_MAX_ATTRIBUTE]

    def text(self) -> str:
        """Return a string."""
        return "".join(text(self.source, part) for part in self._parts(_Attribute.TEXT))

    def count(self) -> int:
        """Return the length of a list of strings or integers."""
        return sum(1 for _ in self._parts(_Attribute.STRINGS)) or len(self.ints())

    def tensor(self) -> "OnnxConstant | None":
        """Return a constant, without known content if its message is split into several parts."""
        parts = list(self._parts(_Attribute.TENSOR))
        if len(parts) > 1:
            return OnnxConstant(name="", value=Value())
        return read_tensor(self.source, parts[0]) if parts else None

    def graph(self) -> "OnnxGraph | None":
        """Return a graph that the node runs."""
        parts = list(self._parts(_Attribute.GRAPH))
        return read_graph(self.source, parts) if parts else None

    def reference(self) -> str:
        """Return the referenced attribute of the outer function; empty if it has a value."""
        return "".join(text(self.source, part) for part in self._parts(_Attribute.REFERENCE))

    def _parts(self, number: int) -> Iterator[ProtobufField]:
        return (part for part in inside(self.source, self.field) if part.number == number)

    def _decimal(self, part: ProtobufField) -> float:
        if part.end - part.start != 4:  # noqa: PLR2004  # bytes of a float
            raise BrokenFileError("is damaged: an attribute is no number")
        (value,) = struct.unpack("<f", self.source.read(part.start, 4))
        return float(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxConstant:
    """Known facts of a constant."""

    name: str
    value: Value


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxNode:
    """An operator with its inputs and outputs by name; an absent one has an empty name."""

    operator: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, OnnxAttribute]
    overload: str = ""


@dataclass(slots=True, kw_only=True)
class OnnxGraph:
    """Nodes in order, constants by name, inputs and outputs by name."""

    nodes: list[OnnxNode] = field(default_factory=list)
    constants: dict[str, Value] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxFunction:
    """An operator that the model defines."""

    graph: OnnxGraph
    opsets: Mapping[str, int]
    defaults: Mapping[str, OnnxAttribute]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxGraphs:
    """Executable content of an ONNX file."""

    graph: OnnxGraph
    opsets: Mapping[str, int]
    functions: Mapping[tuple[str, str, str], OnnxFunction]


def read_model(source: FileReader) -> OnnxGraphs:
    """Return the graph of an ONNX file.

    Raises:
        BrokenFileError: It is damaged, or has more nodes than a model has.
    """
    graphs: list[ProtobufField] = []
    opsets: dict[str, int] = {}
    functions: dict[tuple[str, str, str], OnnxFunction] = {}
    for part in fields(source):
        match part.number:
            case _Model.GRAPH:
                graphs.append(part)
            case _Model.OPSETS:
                opsets |= _opset(source, part)
            case _Model.FUNCTIONS:
                functions |= _function(source, part)
    return OnnxGraphs(graph=read_graph(source, graphs), opsets=opsets, functions=functions)


def read_graph(source: FileReader, parts: Iterable[ProtobufField]) -> OnnxGraph:
    """Return the graph in a message."""
    graph = OnnxGraph()
    for part in (inner for outer in parts for inner in inside(source, outer)):
        match part.number:
            case _Graph.NODE:
                graph.nodes.append(_node(source, part))
            case _Graph.TENSOR:
                tensor = read_tensor(source, part)
                graph.constants[tensor.name] = tensor.value
            case _Graph.INPUT:
                graph.inputs.append(_name(source, part))
            case _Graph.OUTPUT:
                graph.outputs.append(_name(source, part))
            case _Graph.SPARSE:
                for inner in within(source, part, _FIRST):
                    graph.constants[read_tensor(source, inner).name] = Value()
        if len(graph.nodes) > _MAX_NODES:
            raise BrokenFileError(f"has more than {_MAX_NODES} nodes")
    return graph


def read_tensor(source: FileReader, field: ProtobufField) -> OnnxConstant:  # noqa: C901  # one case for each field
    """Return the shape and type of a constant, and its content if small."""
    dims: list[int] = []
    kind, name, is_external = 0, "", False
    raw: ProtobufField | None = None
    items: list[float] = []
    for part in inside(source, field):
        match part.number:
            case _Tensor.DIMS:
                dims += numbers(source, part)
            case _Tensor.TYPE:
                kind = part.value
            case _Tensor.NAME:
                name = text(source, part, _MAX_NAME)
            case _Tensor.RAW:
                raw = part
            case _Tensor.EXTERNAL:
                is_external = True
            case _ if part.number in _ITEMS and part.end - part.start <= 10 * MAX_ELEMENTS:
                items += _items(source, part)
    dtype = _DTYPES.get(kind)
    count = math.prod(dims)
    is_integer = dtype is not None and np.dtype(dtype).kind in "iub"
    symbolic = Value(shape=tuple(map(Size, dims)), is_integer=is_integer)
    limit = _MAX_INDICES if is_integer else MAX_ELEMENTS
    if dtype is None or count > limit or is_external:
        return OnnxConstant(name=name, value=symbolic)
    if raw is not None and raw.end - raw.start == count * np.dtype(dtype).itemsize:
        array = np.frombuffer(source.read(raw.start, raw.end - raw.start), dtype)
        if count > MAX_ELEMENTS:
            below = Size(int(array.max()) + 1) if array.min() >= 0 else None
            return OnnxConstant(name=name, value=replace(symbolic, below=below))
    elif len(items) == count and kind != 10:  # noqa: PLR2004  # FLOAT16 is stored as bits
        array = np.array(items, dtype)
    else:
        return OnnxConstant(name=name, value=symbolic)
    return OnnxConstant(name=name, value=constant(array.reshape(dims)))


def _items(source: FileReader, part: ProtobufField) -> list[float]:
    if part.number not in {_Tensor.FLOATS, _Tensor.DOUBLES}:
        return list(numbers(source, part, MAX_ELEMENTS))
    dtype = "<f4" if part.number == _Tensor.FLOATS else "<f8"
    data = source.read(part.start, part.end - part.start)
    if len(data) % np.dtype(dtype).itemsize:
        raise BrokenFileError("is damaged: a constant is no list of numbers")
    return [float(value) for value in np.frombuffer(data, dtype)]


def _node(source: FileReader, field: ProtobufField) -> OnnxNode:
    inputs, outputs, attributes = [], [], {}
    texts: dict[int, str] = {}
    for part in inside(source, field):
        match part.number:
            case _Node.INPUT:
                inputs.append(text(source, part, _MAX_NAME))
            case _Node.OUTPUT:
                outputs.append(text(source, part, _MAX_NAME))
            case _Node.ATTRIBUTE:
                attributes[_name(source, part)] = OnnxAttribute(source, part)
            case _Node.NAME | _Node.OPERATOR | _Node.DOMAIN | _Node.OVERLOAD:
                texts[part.number] = text(source, part, _MAX_NAME)
    domain = texts.get(_Node.DOMAIN, "")
    return OnnxNode(
        operator=texts.get(_Node.OPERATOR, ""),
        domain="" if domain == "ai.onnx" else domain,
        name=texts.get(_Node.NAME, ""),
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        attributes=attributes,
        overload=texts.get(_Node.OVERLOAD, ""),
    )


def _function(source: FileReader, field: ProtobufField) -> dict[tuple[str, str, str], OnnxFunction]:
    graph = OnnxGraph()
    opsets: dict[str, int] = {}
    defaults = {}
    texts: dict[int, str] = {}
    for part in inside(source, field):
        match part.number:
            case _Function.INPUT:
                graph.inputs.append(text(source, part, _MAX_NAME))
            case _Function.OUTPUT:
                graph.outputs.append(text(source, part, _MAX_NAME))
            case _Function.NODE:
                graph.nodes.append(_node(source, part))
            case _Function.OPSETS:
                opsets |= _opset(source, part)
            case _Function.DEFAULTS:
                defaults[_name(source, part)] = OnnxAttribute(source, part)
            case _Function.NAME | _Function.DOMAIN | _Function.OVERLOAD:
                texts[part.number] = text(source, part, _MAX_NAME)
    key = (
        texts.get(_Function.DOMAIN, ""),
        texts.get(_Function.NAME, ""),
        texts.get(_Function.OVERLOAD, ""),
    )
    return {key: OnnxFunction(graph=graph, opsets=opsets, defaults=defaults)}


def _opset(source: FileReader, field: ProtobufField) -> dict[str, int]:
    domain, version = "", 1
    for part in inside(source, field):
        if part.number == _FIRST:
            domain = text(source, part)
        elif not part.is_bytes:
            version = part.value
    return {"" if domain == "ai.onnx" else domain: version}


def _name(source: FileReader, field: ProtobufField) -> str:
    return last_text(source, field, _FIRST, limit=_MAX_NAME)


@dataclass(slots=True)
class Call(OperatorCall):
    """One node with its inputs' values."""

    node: OnnxNode
    opset: int

    def integer(self, name: str, default: int) -> int:
        """Return an integer attribute."""
        attribute = self.node.attributes.get(name)
        value = None if attribute is None else attribute.integer()
        return default if value is None else value

    def ints(self, name: str) -> list[int] | None:
        """Return a list attribute; None if it is absent."""
        attribute = self.node.attributes.get(name)
        return None if attribute is None else attribute.ints()

    def counted(self, name: str) -> int:
        """Return the length of a list of strings or integers; 0 if it is absent."""
        attribute = self.node.attributes.get(name)
        return 0 if attribute is None else attribute.count()

    def text(self, name: str, default: str = "") -> str:
        """Return a string attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.text()

    def listed(self, name: str, number: int) -> list[Size | None]:
        """Return sizes from an attribute or, in newer versions, an input."""
        if name in self.node.attributes:
            return [Size(item) for item in self.ints(name) or []]
        return self.sizes(number)

    def named_axes(self) -> list[int] | None:
        """Return axes from an attribute or, in newer versions, an input; None if there are none."""
        if "axes" in self.node.attributes:
            return self.ints("axes")
        return None if self.optional(1) is None else self.axes(1)


Operator = Callable[[Call], Results]
