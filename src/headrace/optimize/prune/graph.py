"""ONNX graphs for pruning: producers and readers of tensors, runs, and piecewise evaluation."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper

from headrace.core import Array, Tensors
from headrace.optimize.candidate import CannotBuildError

Node = Any  # onnx ships no types
Proto = Any
_MAX_BYTES: Final = 2**31 - 2**20
"""Size limit of a protobuf message, and so of a session from memory."""
_OLDEST_IR: Final = 4
"""First IR version in which initializers need not be inputs."""
_AXES_AS_INPUT: Final = 2


@dataclass(slots=True)
class PruningGraph:
    """Mutable graph; constants are arrays.

    `nodes` are in topological order.
    """

    model: Proto
    nodes: list[Node]
    constants: dict[str, Array]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shown_inside: frozenset[str]
    """Tensors that subgraphs of loops or branches read."""
    makers: dict[str, int] = field(init=False)
    readers: dict[str, list[tuple[int, int]]] = field(init=False)

    def __post_init__(self) -> None:
        self.index()

    def index(self) -> None:
        """Rebuild the producer and reader indices after nodes have changed."""
        self.makers = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.readers = {}
        for i, node in enumerate(self.nodes):
            for slot, name in enumerate(node.input):
                if name:
                    self.readers.setdefault(name, []).append((i, slot))

    @property
    def parameters(self) -> int:
        """Number of parameters in floating-point constants."""
        return sum(a.size for a in self.constants.values() if a.dtype.kind == "f")

    @property
    def opset(self) -> int:
        """Opset version of the default domain."""
        return max(
            (opset.version for opset in self.model.opset_import if not opset.domain), default=1
        )

    def attribute(self, i: int, name: str, default: Any = None) -> Any:  # noqa: ANN401  # whatever it is
        """Return an attribute of node `i`."""
        for attribute in self.nodes[i].attribute:
            if attribute.name == name:
                return onnx.helper.get_attribute_value(attribute)
        return default

    def fresh(self, name: str) -> str:
        """Return an unused tensor name with this prefix."""
        taken = self.constants.keys() | self.makers.keys() | set(self.inputs) | self.shown_inside
        return next(n for n in (f"{name}_{i}" for i in range(len(taken) + 1)) if n not in taken)

    def proto(self, *, show: Sequence[str] | None = None) -> Proto:
        """Return the graph as a message; `show` replaces the outputs."""
        nodes = self.nodes if show is None else self._before(show)
        message = self._message(nodes, self.outputs if show is None else show)
        if show is not None:
            _answer(message, show)
        return message

    def piece(
        self, nodes: Sequence[Node], inputs: Sequence[Proto], outputs: Sequence[str]
    ) -> Proto:
        """Return some of the nodes as a message with the given inputs."""
        message = self._message(nodes, outputs)
        del message.graph.input[:]
        message.graph.input.extend(inputs)
        _answer(message, outputs)
        return message

    def _message(self, nodes: Sequence[Node], outputs: Sequence[str]) -> Proto:
        message = onnx.ModelProto()
        message.CopyFrom(self.model)
        message.graph.node.extend(nodes)
        used = names_read(nodes).union(outputs)
        message.graph.initializer.extend(
            numpy_helper.from_array(np.asarray(array, order="C"), name)
            for name, array in self.constants.items()
            if name in used
        )
        return message

    def _before(self, names: Sequence[str]) -> list[Node]:
        """Return the nodes that these tensors need."""
        needed = set(names)
        nodes = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed |= names_read([node])
                nodes.append(node)
        return nodes[::-1]

    def copy(self) -> "PruningGraph":
        """Return a copy; arrays are shared until replaced."""
        nodes = []
        for node in self.nodes:
            nodes.append(onnx.NodeProto())
            nodes[-1].CopyFrom(node)
        return PruningGraph(
            model=self.model,
            nodes=nodes,
            constants=dict(self.constants),
            inputs=self.inputs,
            outputs=self.outputs,
            shown_inside=self.shown_inside,
        )


def load_graph(path: Path) -> PruningGraph:
    """Load a model's graph.

    Raises:
        CannotBuildError: It is not an ONNX file, or too large to rewrite in memory.
    """
    try:
        model = onnx.load_model(str(path))
    except Exception as error:  # protobuf and onnx raise any exception for a broken file
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CannotBuildError(f"{path.name} is not a readable ONNX file: {first}") from error
    return as_graph(model)


def as_graph(model: Proto) -> PruningGraph:
    """Return the graph of a model message, which the graph takes over.

    Raises:
        CannotBuildError: It exceeds the size limit of a message.
    """
    if model.ByteSize() > _MAX_BYTES:
        size = model.ByteSize() / 2**30
        raise CannotBuildError(f"it has {size:.1f} GiB; models of 2 GiB or more are not rewritten")
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    inside = frozenset(name for node in graph.node for name in _inside(node))
    nodes = [node for node in graph.node if not _fold(node, constants)]
    inputs = [value for value in graph.input if value.name not in constants]
    outputs = tuple(value.name for value in graph.output)
    # Declared shapes of inner tensors would be wrong afterwards; runtimes infer them.
    del graph.node[:], graph.initializer[:], graph.value_info[:], graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, _OLDEST_IR)
    names = tuple(value.name for value in inputs)
    return PruningGraph(model, nodes, constants, names, outputs, inside)


def names_read(nodes: Iterable[Node]) -> set[str]:
    """Return the tensors that nodes and their subgraphs read."""
    tensors: set[str] = set()
    for node in nodes:
        tensors.update(name for name in node.input if name)
        tensors.update(_inside(node))
    return tensors


def users(graph: PruningGraph) -> Counter[str]:
    """Return how often each tensor is read."""
    counts = Counter({name: len(readers) for name, readers in graph.readers.items()})
    counts.update(graph.outputs)
    counts.update(graph.shown_inside)
    return counts


def _answer(model: Proto, names: Sequence[str]) -> None:
    """Set the outputs; ONNX Runtime infers their types."""
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)


def _inside(node: Node) -> Iterable[str]:
    for attribute in node.attribute:
        for graph in [attribute.g, *attribute.graphs]:
            for inner in graph.node:
                yield from inner.input
                yield from _inside(inner)
            yield from (value.name for value in graph.output)


def _fold(node: Node, constants: dict[str, Array]) -> bool:
    """Fold a node with constant inputs to a constant, for the operators that exporters leave."""
    if node.op_type == "Constant" and not node.domain:
        return _fold_constant(node, constants)
    operands = [constants.get(name) for name in node.input if name]
    if node.domain or not operands or any(array is None for array in operands):
        return False
    arrays = [array for array in operands if array is not None]
    attributes = {
        attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute
    }
    folded: Array
    match node.op_type:
        case "Identity":
            folded = arrays[0]
        case "Transpose":
            folded = np.transpose(arrays[0], attributes.get("perm"))
        case "Cast":
            folded = arrays[0].astype(onnx.helper.tensor_dtype_to_np_dtype(attributes["to"]))
        case "Concat" if arrays[0].dtype.kind == "i":
            folded = np.concatenate(arrays, attributes["axis"])
        case "Unsqueeze":
            axes = arrays[1] if len(arrays) == _AXES_AS_INPUT else np.array(attributes["axes"])
            folded = np.expand_dims(arrays[0], tuple(int(i) for i in axes.reshape(-1)))
        case _:
            return False
    constants[node.output[0]] = folded
    return True


def _fold_constant(node: Node, constants: dict[str, Array]) -> bool:
    (attribute,) = node.attribute
    match attribute.name:
        case "value":
            value = numpy_helper.to_array(attribute.t)
        case "value_float":
            value = np.array(attribute.f, np.float32)
        case "value_floats":
            value = np.array(attribute.floats, np.float32)
        case "value_int":
            value = np.array(attribute.i, np.int64)
        case "value_ints":
            value = np.array(attribute.ints, np.int64)
        case _:  # strings and sparse tensors are not folded
            return False
    constants[node.output[0]] = value
    return True


_ERRORS_ONLY: Final = 3
_ROUNDING_RATIO: Final = 1e-3
"""Rounding limit over the largest answer: reordered sums differ by less, wrong cuts by more."""


def open_session(model: Proto, threads: int, *, plain: bool = False) -> ort.InferenceSession:
    """Open a CPU session.

    Args:
        plain: Disable graph optimizations, so that every tensor exists.

    Raises:
        CannotBuildError: ONNX Runtime rejects the graph.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_DISABLE_ALL if plain else level.ORT_ENABLE_BASIC
    try:
        return ort.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # ONNX Runtime has an exception class for each of its codes
        raise CannotBuildError(f"ONNX Runtime rejects it: {_first_line(error)}") from error


def run(session: ort.InferenceSession, example: Tensors) -> list[Array]:
    """Run the session and return its outputs in order.

    Raises:
        CannotBuildError: It fails on this example.
    """
    try:
        outputs: list[Array] = session.run(None, example)
    except Exception as error:  # as above
        raise CannotBuildError(f"it does not run on an example: {_first_line(error)}") from error
    return outputs


def floats(answers: Sequence[Array]) -> list[int]:
    """Return the indices of float outputs (scores); labels beside them jump at ties."""
    return [i for i, answer in enumerate(answers) if answer.dtype.kind == "f"]


def is_compatible(actual: Sequence[Array], expected: Sequence[Array]) -> bool:
    """Return whether two graphs' outputs are equal up to rounding.

    Float outputs are compared if there are any; else all outputs must be equal.
    """
    if [answer.shape for answer in actual] != [answer.shape for answer in expected]:
        return False
    scores = floats(expected)
    if not scores:
        return all(np.array_equal(a, b) for a, b in zip(actual, expected, strict=True))
    return all(_difference(actual[i], expected[i]) <= _ROUNDING_RATIO for i in scores)


def _difference(actual: Array, expected: Array) -> float:
    """Return the largest difference over the largest value; infinite if finiteness differs."""
    wide_actual, wide_expected = actual.astype(np.float64), expected.astype(np.float64)
    if not np.array_equal(np.isfinite(wide_actual), np.isfinite(wide_expected)):
        return float("inf")
    is_number = np.isfinite(wide_expected)
    scale = float(np.max(np.abs(wide_expected), initial=1e-6, where=is_number))
    difference = np.abs(
        np.subtract(wide_actual, wide_expected, where=is_number, out=np.zeros_like(wide_actual))
    )
    return float(np.max(difference, initial=0.0)) / scale


def traced_shapes(
    graph: PruningGraph, example: Tensors, *, threads: int
) -> dict[str, tuple[int, ...]]:
    """Return the actual shape of every tensor in a run; declared shapes are not trusted."""
    names = [name for node in graph.nodes for name in node.output if name]
    answers = run(open_session(graph.proto(show=names), threads, plain=True), example)
    # Sequences and maps are returned in types other than arrays.
    shapes = {
        name: tuple(array.shape)
        for name, array in zip(names, answers, strict=True)
        if hasattr(array, "shape")
    }
    return shapes | {name: array.shape for name, array in example.items()}


def shown(
    graph: PruningGraph, names: Sequence[str], examples: Sequence[Tensors], *, threads: int
) -> Iterator[list[Array]]:
    """Yield these tensors for each example."""
    session = open_session(graph.proto(show=names), threads)
    for example in examples:
        yield run(session, example)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class ActivationCache:
    """Cached activations of examples up to a position in the graph.

    Fitting layer after layer thus takes one run of the graph, not one per layer.
    """

    def __init__(self, examples: Sequence[Tensors], *, threads: int) -> None:
        self.tensors: list[Tensors] = [dict(example) for example in examples]
        self._threads = threads
        self._position = 0

    def fork(self) -> "ActivationCache":
        """Return a copy at the same position."""
        other = ActivationCache(self.tensors, threads=self._threads)
        other._position = self._position
        return other

    def advance(self, graph: PruningGraph, upper: int, needed: set[str]) -> None:
        """Run the graph up to `upto`; keep `needed` tensors and those that later nodes read.

        Args:
            graph: The same nodes as before, perhaps with other constants.

        Raises:
            CannotBuildError: It fails on an example.
        """
        nodes = graph.nodes[self._position : upper]
        if not nodes:
            return
        self._position = upper
        produced = {name for node in nodes for name in node.output if name}
        read = names_read(nodes) - produced - graph.constants.keys()
        later = names_read(graph.nodes[upper:]) | needed
        outputs = sorted(produced & later)
        inputs = sorted(name for name in read if name in self.tensors[0])
        session = None
        if outputs:
            values = [_declared(name, self.tensors[0]) for name in inputs]
            session = open_session(graph.piece(nodes, values, outputs), self._threads)
        for i, tensors in enumerate(self.tensors):
            live = {name: array for name, array in tensors.items() if name in later}
            if session is not None:
                answers = run(session, {name: tensors[name] for name in inputs})
                live |= dict(zip(outputs, answers, strict=True))
            self.tensors[i] = live


def _declared(name: str, tensors: Tensors) -> object:
    """Return an input declaration of any shape."""
    kind = helper.np_dtype_to_tensor_dtype(tensors[name].dtype)
    return helper.make_tensor_value_info(name, kind, None)
