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
_MOST_BYTES: Final = 2**31 - 2**20
"""What one protobuf message, and so a session made from memory, can hold."""
_OLDEST_IR: Final = 4
"""The first in which an initializer need not be an input too."""
_AXES_AS_INPUT: Final = 2


@dataclass(slots=True)
class PruningGraph:
    """A graph that is going to be rewritten; constants are arrays, whatever they were in the file.

    `nodes` are in the order in which they can run. `shown_inside`: tensors that a subgraph of a
    loop or branch reads.
    """

    model: Proto
    nodes: list[Node]
    constants: dict[str, Array]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shown_inside: frozenset[str]
    makers: dict[str, int] = field(init=False)
    readers: dict[str, list[tuple[int, int]]] = field(init=False)

    def __post_init__(self) -> None:
        self.index()

    def index(self) -> None:
        """Find makers and readers again after nodes have changed."""
        self.makers = {name: i for i, node in enumerate(self.nodes) for name in node.output if name}
        self.readers = {}
        for i, node in enumerate(self.nodes):
            for slot, name in enumerate(node.input):
                if name:
                    self.readers.setdefault(name, []).append((i, slot))

    @property
    def parameters(self) -> int:
        """Numbers in all floating-point constants."""
        return sum(a.size for a in self.constants.values() if a.dtype.kind == "f")

    @property
    def opset(self) -> int:
        """The version of ONNX's own operators."""
        return max(
            (opset.version for opset in self.model.opset_import if not opset.domain), default=1
        )

    def attribute(self, i: int, name: str, default: Any = None) -> Any:  # noqa: ANN401  # whatever it is
        """An attribute of node `i`."""
        for attribute in self.nodes[i].attribute:
            if attribute.name == name:
                return onnx.helper.get_attribute_value(attribute)
        return default

    def fresh(self, name: str) -> str:
        """A name like this one that no tensor has."""
        taken = self.constants.keys() | self.makers.keys() | set(self.inputs) | self.shown_inside
        return next(n for n in (f"{name}_{i}" for i in range(len(taken) + 1)) if n not in taken)

    def proto(self, *, show: Sequence[str] | None = None) -> Proto:
        """The graph as a message; `show`: tensors that it answers instead of its own outputs."""
        nodes = self.nodes if show is None else self._before(show)
        message = self._message(nodes, self.outputs if show is None else show)
        if show is not None:
            _answer(message, show)
        return message

    def piece(
        self, nodes: Sequence[Node], inputs: Sequence[Proto], outputs: Sequence[str]
    ) -> Proto:
        """Some of its nodes as a message, with inputs as declared."""
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
        """Nodes that these tensors need."""
        needed = set(names)
        nodes = []
        for node in reversed(self.nodes):
            if needed.intersection(node.output):
                needed |= names_read([node])
                nodes.append(node)
        return nodes[::-1]

    def copy(self) -> "PruningGraph":
        """One that can be changed without changing this one; arrays are shared until replaced."""
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
    """A model's graph.

    Raises:
        CannotBuildError: It is no ONNX file, or one too large to be rewritten in memory.
    """
    try:
        model = onnx.load_model(str(path))
    except Exception as error:  # protobuf and onnx raise what they like at a file
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CannotBuildError(f"{path.name} is no ONNX file that can be read: {first}") from error
    return as_graph(model)


def as_graph(model: Proto) -> PruningGraph:
    """A model's graph, of a message that becomes the graph's own.

    Raises:
        CannotBuildError: It is larger than one message may be.
    """
    if model.ByteSize() > _MOST_BYTES:
        size = model.ByteSize() / 2**30
        raise CannotBuildError(f"it has {size:.1f} GiB; what has 2 GiB or more is not rewritten")
    graph = model.graph
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    inside = frozenset(name for node in graph.node for name in _inside(node))
    nodes = [node for node in graph.node if not _fold(node, constants)]
    inputs = [value for value in graph.input if value.name not in constants]
    outputs = tuple(value.name for value in graph.output)
    # What is declared of tensors inside would be wrong afterwards; runtimes infer it themselves.
    del graph.node[:], graph.initializer[:], graph.value_info[:], graph.input[:]
    graph.input.extend(inputs)
    model.ir_version = max(model.ir_version, _OLDEST_IR)
    names = tuple(value.name for value in inputs)
    return PruningGraph(model, nodes, constants, names, outputs, inside)


def names_read(nodes: Iterable[Node]) -> set[str]:
    """Tensors that nodes read, those that their subgraphs read among them."""
    tensors: set[str] = set()
    for node in nodes:
        tensors.update(name for name in node.input if name)
        tensors.update(_inside(node))
    return tensors


def users(graph: PruningGraph) -> Counter[str]:
    """How often each tensor is read."""
    counts = Counter({name: len(readers) for name, readers in graph.readers.items()})
    counts.update(graph.outputs)
    counts.update(graph.shown_inside)
    return counts


def _answer(model: Proto, names: Sequence[str]) -> None:
    """Make these the outputs; ONNX Runtime infers their types."""
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
    """Make a constant of what a node makes of constants, where exporters leave such nodes."""
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
        case _:  # strings and sparse tensors stay as they are
            return False
    constants[node.output[0]] = value
    return True


_ERRORS_ONLY: Final = 3
_ROUNDING_RATIO: Final = 1e-3
"""Of the largest answer: a sum in another order changes less, and a wrong cut more."""


def open_session(model: Proto, threads: int, *, plain: bool = False) -> ort.InferenceSession:
    """A session on the CPU.

    Args:
        plain: As written, so that no tensor is optimized away.

    Raises:
        CannotBuildError: ONNX Runtime does not take the graph.
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
    except Exception as error:  # a class for each of ONNX Runtime's own codes
        raise CannotBuildError(f"ONNX Runtime does not take it: {_first_line(error)}") from error


def run(session: ort.InferenceSession, example: Tensors) -> list[Array]:
    """Its outputs, in order.

    Raises:
        CannotBuildError: It fails on this example.
    """
    try:
        outputs: list[Array] = session.run(None, example)
    except Exception as error:  # as above
        raise CannotBuildError(f"it does not run on an example: {_first_line(error)}") from error
    return outputs


def floats(answers: Sequence[Array]) -> list[int]:
    """Which outputs are floats: scores. Labels beside them say less, and jump where they tie."""
    return [i for i, answer in enumerate(answers) if answer.dtype.kind == "f"]


def is_alike(actual: Sequence[Array], expected: Sequence[Array]) -> bool:
    """Whether two graphs answer the same but for rounding.

    Floats are compared where there are some; without them all outputs have to be equal.
    """
    if [answer.shape for answer in actual] != [answer.shape for answer in expected]:
        return False
    scores = floats(expected)
    if not scores:
        return all(np.array_equal(a, b) for a, b in zip(actual, expected, strict=True))
    return all(_difference(actual[i], expected[i]) <= _ROUNDING_RATIO for i in scores)


def _difference(actual: Array, expected: Array) -> float:
    """Largest difference, of the largest number; infinite where only one has numbers."""
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
    """The shape of every tensor when one example runs; declared shapes are not to be trusted."""
    names = [name for node in graph.nodes for name in node.output if name]
    answers = run(open_session(graph.proto(show=names), threads, plain=True), example)
    # Sequences and maps come as other things than arrays.
    shapes = {
        name: tuple(array.shape)
        for name, array in zip(names, answers, strict=True)
        if hasattr(array, "shape")
    }
    return shapes | {name: array.shape for name, array in example.items()}


def shown(
    graph: PruningGraph, names: Sequence[str], examples: Sequence[Tensors], *, threads: int
) -> Iterator[list[Array]]:
    """These tensors, for one example after the other."""
    session = open_session(graph.proto(show=names), threads)
    for example in examples:
        yield run(session, example)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


class ActivationCache:
    """Where examples have got to: all tensors that a later node reads, for each example.

    Fitting layer after layer then takes one run of the graph, and not one for each layer.
    """

    def __init__(self, examples: Sequence[Tensors], *, threads: int) -> None:
        self.tensors: list[Tensors] = [dict(example) for example in examples]
        self._threads = threads
        self._position = 0

    def fork(self) -> "ActivationCache":
        """Another one that starts here."""
        other = ActivationCache(self.tensors, threads=self._threads)
        other._position = self._position
        return other

    def advance(self, graph: PruningGraph, upto: int, needed: set[str]) -> None:
        """Run nodes before `upto` that have not run; keep `wanted` and what later nodes read.

        Args:
            graph: The same nodes as before, perhaps with other constants.

        Raises:
            CannotBuildError: It fails on an example.
        """
        nodes = graph.nodes[self._position : upto]
        if not nodes:
            return
        self._position = upto
        produced = {name for node in nodes for name in node.output if name}
        read = names_read(nodes) - produced - graph.constants.keys()
        later = names_read(graph.nodes[upto:]) | needed
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
    """An input of any shape."""
    kind = helper.np_dtype_to_tensor_dtype(tensors[name].dtype)
    return helper.make_tensor_value_info(name, kind, None)
