"""What may the graph of a SavedModel do, and what of it runs when it is served?

A graph is a program: TensorFlow has operators that read and write files, call Python or open
connections. They are looked for before anything loads the graph, and so is what would take a
library's stack or memory: functions that call themselves, or each other without end.
Schema: https://github.com/tensorflow/tensorflow/tree/master/tensorflow/core/framework
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from headrace.runtimes.file_bytes import (
    BrokenFileError,
    Field,
    Source,
    inside,
    signed,
    text,
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
"""What every SavedModel has to store and read its variables; unsafe where requests reach it."""
_ASSIGNS: Final = re.compile(
    r"^(Assign|Resource(Scatter|Apply|Sparse|Strided)|LookupTable(Insert|Import|Remove)|Scatter(?!Nd$)"
    r"|Queue(En|De)queue|Stage$|Unstage$|MutableHash)"
)
"""What a run may leave for the next one."""
_MOST_NODES: Final = 500_000
_MOST_EXPANDED: Final = 20_000_000
_MOST_DEPTH: Final = 200
_MOST_ELEMENTS: Final = 1 << 28
_NAME_BYTES: Final = 4096
_FUNC_DEPTH: Final = 8


@dataclass(slots=True)
class Body:
    """What a function, or a node of the graph, consists of."""

    operators: set[str] = field(default_factory=set)
    calls: Counter[str] = field(default_factory=Counter)
    inputs: list[str] = field(default_factory=list)
    nodes: int = 0


@dataclass(slots=True)
class Graph:
    """The nodes of a graph by name, and its functions."""

    nodes: dict[str, Body] = field(default_factory=dict)
    functions: dict[str, Body] = field(default_factory=dict)


def unsafe_in(names: Iterable[str]) -> list[str]:
    """The operators that reach for files, Python or the network, wherever they stand."""
    return sorted({name for name in names if _UNSAFE.search(name)})


def unsafe_operators(graph: Graph, served: Iterable[str], stored: Iterable[str]) -> list[str]:
    """The operators for which a graph needs an explicit allow.

    Args:
        served: Tensors and nodes that requests, or the start, ask for.
        stored: Those that write and read the variables.
    """
    by_requests = _reached(graph, served)
    by_storing = _reached(graph, stored)
    found = set()
    for kind, bodies in (("node", graph.nodes), ("function", graph.functions)):
        for name, body in bodies.items():
            found.update(unsafe_in(body.operators))
            key = (kind, name)
            if key in by_requests or key not in by_storing:
                found |= body.operators & _CHECKPOINT
    return sorted(found)


def assigning_operators(graph: Graph, served: Iterable[str]) -> list[str]:
    """The operators by which a request may leave something for the next one."""
    found: set[str] = set()
    for kind, name in _reached(graph, served):
        body = (graph.nodes if kind == "node" else graph.functions)[name]
        found.update(operator for operator in body.operators if _ASSIGNS.search(operator))
    return sorted(found)


def check_calls(graph: Graph) -> None:
    """Refuse functions that call themselves, or that grow beyond bounds once they are inlined.

    Raises:
        BrokenFileError: There are such.
    """
    sizes: dict[str, int] = {}
    depths: dict[str, int] = {}
    for name in _callees_first(graph.functions):
        body = graph.functions[name]
        known = {one: count for one, count in body.calls.items() if one in graph.functions}
        sizes[name] = body.nodes + sum(sizes[one] * count for one, count in known.items())
        depths[name] = 1 + max((depths[one] for one in known), default=0)
        if sizes[name] > _MOST_EXPANDED:
            raise BrokenFileError(f"its functions expand to more than {_MOST_EXPANDED} nodes")
        if depths[name] > _MOST_DEPTH:
            raise BrokenFileError(f"its functions call each other more than {_MOST_DEPTH} deep")
    total = sum(
        sizes.get(one, 0) * count
        for body in graph.nodes.values()
        for one, count in body.calls.items()
    )
    if total > _MOST_EXPANDED:
        raise BrokenFileError(f"its functions expand to more than {_MOST_EXPANDED} nodes")


def read_graph(source: Source, place: Field) -> Graph:
    """The nodes and functions of a `GraphDef`.

    Raises:
        BrokenFileError: It is damaged, or has more nodes than a model has.
    """
    graph = Graph()
    count = 0
    for part in inside(source, place):
        if part.number == 1:
            body = Body()
            _add(graph.nodes, _node(source, part, body), body)
            count += 1
        elif part.number == 2:  # noqa: PLR2004  # library
            for one in inside(source, part):
                if one.number == 1:
                    name, body = _function(source, one)
                    _add(graph.functions, name, body)
                    count += body.nodes
        if count > _MOST_NODES:
            raise BrokenFileError(f"has more than {_MOST_NODES} nodes")
    _resolve(graph)
    return graph


def _add(bodies: dict[str, Body], name: str, body: Body) -> None:
    """Of two by one name nothing may hide: TensorFlow refuses them, an inventory shows both."""
    first = bodies.setdefault(name, body)
    if first is not body:
        first.operators |= body.operators
        first.calls.update(body.calls)
        first.inputs += body.inputs
        first.nodes += body.nodes


def _function(source: Source, place: Field) -> tuple[str, Body]:
    name, body = "", Body()
    for part in inside(source, place):
        if part.number == 1:  # signature
            name = _text_of(source, part, 1)
        elif part.number == 3:  # noqa: PLR2004  # node_def
            _node(source, part, body)
            body.inputs.clear()
    return name, body


def _node(source: Source, place: Field, body: Body) -> str:
    """Add a `NodeDef` to a body; its name."""
    name = ""
    body.nodes += 1
    for part in inside(source, place):
        match part.number:
            case 1:
                name = text(source, part, _NAME_BYTES)
            case 2:
                body.operators.add(text(source, part, _NAME_BYTES))
            case 3:
                body.inputs.append(text(source, part, _NAME_BYTES))
            case 5:
                for one in inside(source, part):
                    if one.number == 2:  # noqa: PLR2004  # an attribute's value
                        _attribute(source, one, body)
    return name


def _attribute(source: Source, place: Field, body: Body) -> None:
    for part in inside(source, place):
        match part.number:
            case 8:
                _check_tensor(source, part)
            case 10:
                body.calls.update(_called(source, part, _FUNC_DEPTH))
            case 1 if part.is_bytes:
                for one in inside(source, part):
                    if one.number == 8:  # noqa: PLR2004  # tensors
                        _check_tensor(source, one)
                    elif one.number == 9:  # noqa: PLR2004  # functions
                        body.calls.update(_called(source, one, _FUNC_DEPTH))


def _called(source: Source, place: Field, depth: int) -> Iterator[str]:
    """The function that a `NameAttrList` names, and those that its attributes do."""
    if depth == 0:
        raise BrokenFileError("nests functions in attributes of functions without end")
    for part in inside(source, place):
        if part.number == 1:
            yield text(source, part, _NAME_BYTES)
        elif part.number == 2:  # noqa: PLR2004  # attr
            for value in (one for one in inside(source, part) if one.number == 2):  # noqa: PLR2004  # value
                for one in inside(source, value):
                    if one.number == 10:  # noqa: PLR2004  # func
                        yield from _called(source, one, depth - 1)


def _check_tensor(source: Source, place: Field) -> None:
    """Refuse a constant of a size that its bytes do not have: one value may stand for all."""
    sizes: list[int] = []
    for part in inside(source, place):
        if part.number == 2:  # noqa: PLR2004  # tensor_shape
            sizes = [
                signed(size.value)
                for dim in inside(source, part)
                if dim.number == 2  # noqa: PLR2004  # dim
                for size in inside(source, dim)
                if size.number == 1
            ]
    elements = math.prod(sizes)
    held = place.end - place.start
    if any(size < 0 for size in sizes) or elements > max(_MOST_ELEMENTS, 8 * held):
        raise BrokenFileError(f"a constant has the shape {sizes[:8]} and {held} bytes")


def _text_of(source: Source, place: Field, number: int) -> str:
    found = (part for part in inside(source, place) if part.number == number)
    return next((text(source, part, _NAME_BYTES) for part in found), "")


def _resolve(graph: Graph) -> None:
    """A function may be called by a node whose operator is its name."""
    for bodies in (graph.nodes, graph.functions):
        for body in bodies.values():
            body.calls.update(body.operators & graph.functions.keys())


def _reached(graph: Graph, roots: Iterable[str]) -> set[tuple[str, str]]:
    """The nodes and functions that run if `roots` are asked for."""
    waiting = [("node", _node_of(root)) for root in roots]
    seen: set[tuple[str, str]] = set()
    while waiting:
        kind, name = key = waiting.pop()
        bodies: Mapping[str, Body] = graph.nodes if kind == "node" else graph.functions
        if key in seen or name not in bodies:
            continue
        seen.add(key)
        waiting += [("node", _node_of(one)) for one in bodies[name].inputs]
        waiting += [("function", one) for one in bodies[name].calls]
    return seen


def _node_of(tensor: str) -> str:
    return tensor.removeprefix("^").partition(":")[0]


def _callees_first(functions: Mapping[str, Body]) -> Iterator[str]:
    """The functions, each after those that it calls.

    Raises:
        BrokenFileError: One calls itself, if only through others.
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
