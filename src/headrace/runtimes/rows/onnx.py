"""Row analysis of ONNX models."""

from collections import ChainMap
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np

from headrace.core import TensorSpec
from headrace.runtimes.file_bytes import BrokenFileError, FileReader
from headrace.runtimes.rows.onnx_graph import (
    Call,
    OnnxAttribute,
    OnnxFunction,
    OnnxGraph,
    OnnxGraphs,
    OnnxNode,
    read_model,
)
from headrace.runtimes.rows.onnx_operators import OPERATORS, RANDOM, SIZED
from headrace.runtimes.rows.operators import Results, run_operator, unknown_operator
from headrace.runtimes.rows.symbols import BATCH
from headrace.runtimes.rows.transfer import Transfer
from headrace.runtimes.rows.values import (
    UNIFORM,
    BatchRows,
    MixedRowsError,
    RowVerdict,
    Value,
    constant,
    constants,
    judge,
    mixed,
    model_input,
    with_rows,
)

_MAX_DEPTH: Final = 32
_MAX_NODES: Final = 200_000
"""Limit of nodes after inlining, as nested function calls may expand to any number."""
_RUNTIME_DOMAINS: Final = ("ai.onnx", "com.microsoft", "com.ms.", "org.pytorch.aten")
"""Domains whose operators ONNX Runtime runs instead of a model's function of the same name."""
_ORT_MARK: Final = b"ORTM"
_MARK_AT: Final = 4

_FIRST_SCAN: Final = 9
"""First opset in which `Scan` takes no lengths."""

Environment = MutableMapping[str, Value]


def analyse_onnx(file: Path, inputs: Sequence[TensorSpec]) -> RowVerdict:
    """Return whether each output row of an ONNX model depends on its own input row alone.

    Args:
        file: The model, accepted by `scan_onnx`.
        inputs: As ONNX Runtime declares them; axis 0 of each is the batch.
    """
    try:
        with FileReader(file) as source:
            if source.head(_MARK_AT + len(_ORT_MARK))[_MARK_AT:] == _ORT_MARK:
                return RowVerdict(why_not="the ORT format is not analysed; keep the .onnx file")
            return _Analysis(read_model(source)).verdict(inputs)
    except MixedRowsError as error:
        return RowVerdict(why_not=f"the graph {error}")
    except (BrokenFileError, OSError, RecursionError) as error:
        return RowVerdict(why_not=f"the graph cannot be read: {error}")


class _Analysis:
    """Analysis of one model on abstract tensors."""

    def __init__(self, graphs: OnnxGraphs) -> None:
        self._graphs = graphs
        self._transfer = Transfer()
        self._depth = 0
        self._followed = 0

    def verdict(self, inputs: Sequence[TensorSpec]) -> RowVerdict:
        """Return the verdict on the model's outputs."""
        values: dict[str, Value] = {}
        for number, spec in enumerate(inputs):
            values[spec.name] = model_input(self._transfer.symbols, spec, number)
        graph = self._graphs.graph
        environment = ChainMap(values, graph.constants)
        self._run(graph, environment, self._graphs.opsets)
        return judge({name: _of(environment, name) for name in graph.outputs})

    def _run(
        self,
        graph: OnnxGraph,
        environment: Environment,
        opsets: Mapping[str, int],
        bound: Mapping[str, OnnxAttribute] | None = None,
    ) -> None:
        """Add the values of all nodes to the environment."""
        nodes = graph.nodes
        if bound is not None:
            nodes = [_with_attributes(node, bound) for node in nodes]
        self._followed += len(nodes)
        if self._followed > _MAX_NODES:
            raise MixedRowsError(f"calls functions of more than {_MAX_NODES} nodes together")
        for node in nodes:
            for name, value in zip(
                node.outputs, self._results(node, environment, opsets), strict=False
            ):
                if name:
                    environment[name] = value

    def _results(
        self, node: OnnxNode, environment: Environment, opsets: Mapping[str, int]
    ) -> list[Value]:
        """Return the outputs of a node, as many as it names."""
        description = (
            f"node '{node.name}' ({node.operator})" if node.name else f"a {node.operator} node"
        )
        inputs = [_of(environment, name) if name else None for name in node.inputs]
        opset, count = opsets.get(node.domain, 1), len(node.outputs)
        call = Call(self._transfer, inputs, count, node, opset)
        is_function = (node.domain, node.operator, node.overload) in self._graphs.functions
        is_standard = not node.domain and not is_function
        try:
            names = _captured(node)
            is_random = _is_random(node)
        except MixedRowsError as error:
            return [mixed(f"{description} {error}")] * count
        return run_operator(
            description,
            node.operator if is_standard and node.operator in OPERATORS[""] else "",
            call,
            partial(self._operator, environment=environment, opsets=opsets),
            captured=[environment[name] for name in names if name in environment],
            may_count=is_function or (is_standard and node.operator in SIZED),
            is_deterministic=node.domain in OPERATORS and not is_random,
        )

    def _operator(self, call: Call, environment: Environment, opsets: Mapping[str, int]) -> Results:
        node, inputs = call.node, call.inputs
        function = self._graphs.functions.get((node.domain, node.operator, node.overload))
        if function is not None:
            if node.domain.startswith(_RUNTIME_DOMAINS) or not node.domain:
                raise MixedRowsError("is a function in a domain of the runtime's own operators")
            return self._call(function, node, inputs)
        match node.domain, node.operator:
            case "", "Constant":
                return _constant(node)
            case "", "If":
                return self._if(node, inputs[0], environment, opsets)
            case "", "Scan":
                return self._scan(node, inputs, environment, opsets)
        if node.operator in RANDOM:
            raise MixedRowsError("is random")
        return OPERATORS.get(node.domain, {}).get(node.operator, unknown_operator)(call)

    def _call(self, function: OnnxFunction, node: OnnxNode, inputs: list[Value | None]) -> Results:
        """Return the result of a function that the model defines, run in place of the node."""
        if self._depth >= _MAX_DEPTH:
            raise MixedRowsError("calls functions without end")
        self._depth += 1
        named = zip(function.graph.inputs, inputs, strict=False)
        values = {name: value for name, value in named if value is not None}
        bound = {**function.defaults, **node.attributes}
        self._run(function.graph, values, function.opsets, bound)
        self._depth -= 1
        return [_of(values, name) for name in function.graph.outputs]

    def _if(
        self,
        node: OnnxNode,
        condition: Value | None,
        environment: Environment,
        opsets: Mapping[str, int],
    ) -> Results:
        """Return the result of the branch taken, or the facts common to both branches."""
        if condition is None or not condition.is_uniform:
            raise MixedRowsError("chooses for all rows by values of the batch")
        conditions = constants(condition)
        names = ["then_branch", "else_branch"]
        if conditions is not None and len(conditions) == 1:
            names = names[:1] if conditions[0] else names[1:]
        branches = []
        for name in names:
            attribute = node.attributes.get(name)
            graph = None if attribute is None else attribute.graph()
            if graph is None or self._depth >= _MAX_DEPTH:
                raise MixedRowsError("has no branch")
            self._depth += 1
            inner: Environment = ChainMap({}, graph.constants, environment)
            self._run(graph, inner, opsets)
            self._depth -= 1
            branches.append([_of(inner, output) for output in graph.outputs])
        if len(branches) == 1:
            return branches[0]
        return [self._common(left, right) for left, right in zip(*branches, strict=True)]

    def _common(self, left: Value, right: Value) -> Value:
        """Return the facts that are true of both values."""
        if left.mixed or right.mixed:
            return mixed(left.mixed or right.mixed)
        if left == right:
            return left
        if left.counts_rows or right.counts_rows:
            raise MixedRowsError("computes with the number of rows")
        if left.rows is None and right.rows is None:
            return Value()
        if left.rows != right.rows or left.rank != right.rank:
            raise MixedRowsError("has branches of different shapes")
        pairs = zip(left.shape or (), right.shape or (), strict=True)
        shape = tuple(a if a == b else self._transfer.symbols.unknown() for a, b in pairs)
        return with_rows(shape, left.rows)

    def _scan(  # noqa: C901  # sequential checks
        self,
        node: OnnxNode,
        inputs: list[Value | None],
        environment: Environment,
        opsets: Mapping[str, int],
    ) -> Results:
        """Return the result of a body that runs per row and carries no state between rows."""
        attribute = node.attributes.get("body")
        graph = None if attribute is None else attribute.graph()
        count = node.attributes["num_scan_inputs"].integer() or 0
        plain = (
            "scan_input_axes",
            "scan_output_axes",
            "scan_input_directions",
            "scan_output_directions",
        )
        is_plain = not any(
            any(node.attributes[name].ints()) for name in plain if name in node.attributes
        )
        if (
            graph is None
            or opsets.get("", 1) < _FIRST_SCAN
            or not is_plain
            or len(inputs) != len(graph.inputs)
        ):
            raise MixedRowsError("is not followed")
        states, scanned = inputs[: len(inputs) - count], inputs[len(inputs) - count :]
        by_row = all(value is not None and value.rows == BatchRows(axis=0) for value in scanned)
        if not by_row and any(value is None or not value.is_uniform for value in scanned):
            raise MixedRowsError("runs along an axis of all rows")
        sources = {inner.outputs[0]: inner for inner in graph.nodes if inner.operator == "Identity"}
        inner: Environment = ChainMap({}, graph.constants, environment)
        for i, state in enumerate(states):
            name = graph.outputs[i]
            for _ in sources:
                name = sources[name].inputs[0] if name in sources else name
            if state is None or (by_row and not state.is_uniform) or name != graph.inputs[i]:
                raise MixedRowsError("carries a state from row to row")
            inner[graph.inputs[i]] = replace(state, elements=None)
        for name, value in zip(graph.inputs[len(states) :], scanned, strict=True):
            assert value is not None
            # One entry; if it is a row, the body reads no other.
            inner[name] = Value(shape=(value.shape or ())[1:], is_integer=value.is_integer)
        captured = [environment[name] for name in _captured(node) if name in environment]
        if by_row and not all(value.is_uniform for value in captured):
            raise MixedRowsError("runs its body on values of several rows")
        self._run(graph, inner, opsets)
        results: list[Value] = [state for state in states if state is not None]
        length = (
            BATCH if by_row else next(value.shape for value in scanned if value and value.shape)[0]
        )
        for name in graph.outputs[len(states) :]:
            value = _of(inner, name)
            if value.mixed or value.counts_rows or (by_row and not value.is_uniform):
                raise MixedRowsError(value.mixed or "is not followed")
            rows = BatchRows(axis=0) if by_row else value.rows
            if not by_row and rows is not None:
                rows = replace(rows, axis=rows.axis + 1)
            if value.shape is None:
                raise MixedRowsError("makes a tensor of unknown shape")
            shape = (length, *value.shape)
            results.append(with_rows(shape, rows, is_integer=value.is_integer))
        return results


def _of(environment: Mapping[str, Value], name: str) -> Value:
    value = environment.get(name)
    return mixed("the graph names a tensor that nothing gives") if value is None else value


def _constant(node: OnnxNode) -> Value:
    for name, attribute in node.attributes.items():
        match name:
            case "value":
                tensor = attribute.tensor()
                return UNIFORM if tensor is None else tensor.value
            case "value_int":
                return constant(np.array(attribute.integer() or 0))
            case "value_ints":
                return constant(np.array(attribute.ints(), np.int64))
            case "value_float":
                return constant(np.array(attribute.decimal() or 0.0))
            case "value_floats":
                return constant(np.array(attribute.decimals()))
    return UNIFORM


def _with_attributes(node: OnnxNode, bound: Mapping[str, OnnxAttribute]) -> OnnxNode:
    """Return a node of a function's body with the call's attributes."""
    attributes = {}
    for name, attribute in node.attributes.items():
        reference = attribute.reference()
        if not reference:
            attributes[name] = attribute
        elif reference in bound:
            attributes[name] = bound[reference]
    return replace(node, attributes=attributes)


def _inner_nodes(node: OnnxNode, depth: int = _MAX_DEPTH) -> Iterator[tuple[OnnxGraph, OnnxNode]]:
    """Yield the nodes of the graphs that a node runs, recursively."""
    if node.operator not in {"If", "Loop", "Scan"} or node.domain:
        return
    if not depth:
        raise MixedRowsError("nests graphs without end")
    for name in ("then_branch", "else_branch", "body"):
        attribute = node.attributes.get(name)
        graph = None if attribute is None else attribute.graph()
        for inner in () if graph is None else graph.nodes:
            assert graph is not None
            yield graph, inner
            yield from _inner_nodes(inner, depth - 1)


def _captured(node: OnnxNode) -> set[str]:
    """Return the names that a node's graphs use, including those of outer graphs."""
    names: set[str] = set()
    for graph, inner in _inner_nodes(node):
        names.update(inner.inputs, graph.outputs)
    return names


def _is_random(node: OnnxNode) -> bool:
    """Whether the node, or a graph it runs, may give different outputs for the same inputs."""
    return node.operator in RANDOM or any(
        inner.operator in RANDOM or inner.domain not in OPERATORS for _, inner in _inner_nodes(node)
    )
