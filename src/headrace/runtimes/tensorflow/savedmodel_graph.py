"""Graph of a SavedModel: its capabilities, and the part that runs when it is served.

A graph is a program: TensorFlow has operators that read and write files, call Python or open
connections. They are searched for before anything loads the graph. Functions with unbounded
recursion, which would exhaust a library's stack or memory, are refused. Schema:
https://github.com/tensorflow/tensorflow/tree/master/tensorflow/core/framework
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from headrace.runtimes.file_bytes import (
    BrokenFileError,
    FileReader,
    ProtobufField,
    inside,
    last_text,
    signed,
    text,
    within,
)

_UNSAFE: Final = re.compile(
    # calls Python; opens, reads or writes files; opens connections
    r"PyFunc|File(?!name|spec)|Dataset|Reader|Rpc|(?<!Stats)Summary|Snapshot|DataService"
    r"|^(DebugIdentity|DebugN|Dump|WorkerHeartbeat|CalibrationStatisticsSaver|ConfigureDistributed)"
    r"|^(_?(Host)?(Send|Recv)|RemoteCall|ImportEvent|RecordInput|PrintV2|ImmutableConst)$"
    r"|^(LoadAndRemapMatrix|GenerateVocabRemapping|DecodeProtoV2|EncodeProto)$"
    r"|^(Skipgram|FixedUnigramCandidateSampler|DistributedSave|DTensorRestoreV2)$"
)
_CHECKPOINT: Final = frozenset(
    {"Save", "SaveV2", "SaveSlices", "MergeV2Checkpoints", "Restore", "RestoreV2", "RestoreSlice"}
)
"""Operators by which every SavedModel stores and reads its variables; unsafe if requests reach
them.
"""
_ASSIGNS: Final = re.compile(
    r"^(Assign|Resource(Scatter|Apply|Sparse|Strided)|LookupTable(Insert|Import|Remove)|Scatter(?!Nd$)"
    r"|Queue(En|De)queue|Stage$|Unstage$|MutableHash)"
)
"""Operators whose effect may last beyond a run."""
_MAX_NODES: Final = 500_000
_MAX_EXPANDED: Final = 20_000_000
_MAX_DEPTH: Final = 200
_MAX_ELEMENTS: Final = 1 << 28
_NAME_BYTES: Final = 4096
_FUNC_DEPTH: Final = 8
# Field numbers, and paths of them through messages.
_GRAPH_NODE, _GRAPH_LIBRARY, _LIBRARY_FUNCTION = 1, 2, 1
_FUNCTION_NAME, _FUNCTION_NODE = (1, 1), 3
_NODE_NAME, _NODE_OPERATOR, _NODE_INPUT, _NODE_ATTRIBUTE, _MAP_VALUE = 1, 2, 3, 5, 2
_VALUE_LIST, _TENSOR, _LISTED_FUNCTION, _FUNCTION = 1, 8, 9, 10
"""Fields of an attribute's value."""
_CALLED_NAME, _CALLED_FUNCTION = 1, (2, 2, 10)
_TENSOR_SHAPE, _DIM, _DIM_SIZE = 2, 2, 1


@dataclass(slots=True)
class Body:
    """Contents of a function, or of a node of the graph."""

    operators: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    inputs: list[str] = field(default_factory=list)
    nodes: int = 0


@dataclass(slots=True)
class SavedModelGraph:
    """The nodes of a graph by name, and its functions."""

    nodes: dict[str, Body] = field(default_factory=dict)
    functions: dict[str, Body] = field(default_factory=dict)


def unsafe_in(names: Iterable[str]) -> list[str]:
    """Return the operators that access files, Python or the network, in any function."""
    return sorted({name for name in names if _UNSAFE.search(name)})


def unsafe_operators(
    graph: SavedModelGraph, served: Iterable[str], stored: Iterable[str]
) -> list[str]:
    """Return the operators for which a graph needs an explicit allow.

    Args:
        served: Tensors and nodes that requests or the start run.
        stored: Those that write and read the variables.
    """
    by_requests = _reached(graph, served)
    by_storing = _reached(graph, stored)
    unsafe = set()
    for kind, bodies in (("node", graph.nodes), ("function", graph.functions)):
        for name, body in bodies.items():
            unsafe.update(unsafe_in(body.operators))
            key = (kind, name)
            if key in by_requests or key not in by_storing:
                unsafe |= body.operators & _CHECKPOINT
    return sorted(unsafe)


def assigning_operators(graph: SavedModelGraph, served: Iterable[str]) -> list[str]:
    """Return the operators by which a request may affect the next one."""
    operators: set[str] = set()
    for kind, name in _reached(graph, served):
        body = (graph.nodes if kind == "node" else graph.functions)[name]
        operators.update(operator for operator in body.operators if _ASSIGNS.search(operator))
    return sorted(operators)


def check_calls(graph: SavedModelGraph) -> None:
    """Refuse recursive functions, and those that exceed a size limit once they are inlined.

    Raises:
        BrokenFileError: There are such functions.
    """
    sizes: dict[str, int] = {}
    depths: dict[str, int] = {}
    for name in _callees_first(graph.functions):
        body = graph.functions[name]
        callees = {
            callee: count for callee, count in body.calls.items() if callee in graph.functions
        }
        sizes[name] = body.nodes + sum(sizes[callee] * count for callee, count in callees.items())
        depths[name] = 1 + max((depths[callee] for callee in callees), default=0)
        if sizes[name] > _MAX_EXPANDED:
            raise BrokenFileError(f"its functions expand to more than {_MAX_EXPANDED} nodes")
        if depths[name] > _MAX_DEPTH:
            raise BrokenFileError(
                f"its functions call each other more than {_MAX_DEPTH} levels deep"
            )
    total = sum(
        sizes.get(callee, 0) * count
        for body in graph.nodes.values()
        for callee, count in body.calls.items()
    )
    if total > _MAX_EXPANDED:
        raise BrokenFileError(f"its functions expand to more than {_MAX_EXPANDED} nodes")


def read_graph(source: FileReader, field: ProtobufField) -> SavedModelGraph:
    """Return the nodes and functions of a `GraphDef`.

    Raises:
        BrokenFileError: It is damaged, or has more nodes than a model has.
    """
    graph = SavedModelGraph()
    count = 0
    for part in inside(source, field):
        if part.number == _GRAPH_NODE:
            body = Body()
            _add(graph.nodes, _node(source, part, body), body)
            count += 1
        elif part.number == _GRAPH_LIBRARY:
            for function in within(source, part, _LIBRARY_FUNCTION):
                body = Body()
                for node in within(source, function, _FUNCTION_NODE):
                    _node(source, node, body)
                body.inputs.clear()
                name = last_text(source, function, *_FUNCTION_NAME, limit=_NAME_BYTES)
                _add(graph.functions, name, body)
                count += body.nodes
        if count > _MAX_NODES:
            raise BrokenFileError(f"has more than {_MAX_NODES} nodes")
    # A node may call a function by using its name as operator.
    for bodies in (graph.nodes, graph.functions):
        for body in bodies.values():
            body.calls.update(body.operators & graph.functions.keys())
    return graph


def _add(bodies: dict[str, Body], name: str, body: Body) -> None:
    """Add a body; of two with one name both count, as TensorFlow refuses them and none may hide."""
    first = bodies.setdefault(name, body)
    if first is not body:
        first.operators |= body.operators
        first.calls.update(body.calls)
        first.inputs += body.inputs
        first.nodes += body.nodes


def _node(source: FileReader, field: ProtobufField, body: Body) -> str:
    """Add a `NodeDef` to a body and return its name."""
    name = ""
    body.nodes += 1
    for part in inside(source, field):
        if part.number == _NODE_NAME:
            name = text(source, part, _NAME_BYTES)
        elif part.number == _NODE_OPERATOR:
            body.operators.add(text(source, part, _NAME_BYTES))
        elif part.number == _NODE_INPUT:
            body.inputs.append(text(source, part, _NAME_BYTES))
        elif part.number == _NODE_ATTRIBUTE:
            for value in within(source, part, _MAP_VALUE):
                _attribute(source, value, body)
    return name


def _attribute(source: FileReader, value: ProtobufField, body: Body) -> None:
    parts = list(inside(source, value))
    lists = (part for part in parts if part.number == _VALUE_LIST and part.is_bytes)
    listed = [item for part in lists for item in inside(source, part)]
    for items, function in ((parts, _FUNCTION), (listed, _LISTED_FUNCTION)):
        for item in items:
            if item.number == _TENSOR:
                _check_tensor(source, item)
            elif item.number == function:
                body.calls.update(_called(source, item, _FUNC_DEPTH))


def _called(source: FileReader, field: ProtobufField, depth: int) -> Iterator[str]:
    """Yield the function of a `NameAttrList`, and those in its attributes."""
    if depth == 0:
        raise BrokenFileError("nests functions in attributes too deeply")
    for name in within(source, field, _CALLED_NAME):
        yield text(source, name, _NAME_BYTES)
    for function in within(source, field, *_CALLED_FUNCTION):
        yield from _called(source, function, depth - 1)


def dimensions(source: FileReader, shape: ProtobufField) -> list[int]:
    """Return the sizes in a `TensorShapeProto`; 0 for one without a size."""
    dims = within(source, shape, _DIM)
    sizes = ([signed(size.value) for size in within(source, dim, _DIM_SIZE)] for dim in dims)
    return [items[-1] if items else 0 for items in sizes]  # the last one counts in protobuf


def _check_tensor(source: FileReader, field: ProtobufField) -> None:
    """Refuse a constant larger than its data: a single value may fill the whole tensor."""
    held = field.end - field.start
    # Protobuf concatenates the lists of a repeated message.
    shapes = within(source, field, _TENSOR_SHAPE)
    sizes = [size for shape in shapes for size in dimensions(source, shape)]
    if min(sizes, default=0) < 0 or math.prod(sizes) > max(_MAX_ELEMENTS, 8 * held):
        raise BrokenFileError(f"a constant has the shape {sizes[:8]} and {held} bytes")


def _reached(graph: SavedModelGraph, roots: Iterable[str]) -> set[tuple[str, str]]:
    """Return the nodes and functions that run for `roots`."""
    waiting = [("node", _node_of(root)) for root in roots]
    reached: set[tuple[str, str]] = set()
    while waiting:
        kind, name = key = waiting.pop()
        bodies: Mapping[str, Body] = graph.nodes if kind == "node" else graph.functions
        if key in reached or name not in bodies:
            continue
        reached.add(key)
        waiting += [("node", _node_of(node_input)) for node_input in bodies[name].inputs]
        waiting += [("function", callee) for callee in bodies[name].calls]
    return reached


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _callees_first(functions: Mapping[str, Body]) -> Iterator[str]:
    """Yield the functions, each after those that it calls.

    Raises:
        BrokenFileError: A function calls itself, directly or indirectly.
    """
    done: set[str] = set()
    for start in functions:
        waiting, open_ = [(start, iter(functions[start].calls))], {start}
        if start in done:
            continue
        while waiting:
            name, callees = waiting[-1]
            callee = next(callees, None)
            if callee is None:
                waiting.pop()
                open_.discard(name)
                done.add(name)
                yield name
            elif callee in open_:
                raise BrokenFileError(f"its function '{callee[:100]}' calls itself")
            elif callee in functions and callee not in done:
                open_.add(callee)
                waiting.append((callee, iter(functions[callee].calls)))
