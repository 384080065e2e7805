"""An ONNX graph as a module of PyTorch's, whose weights can be taught and written back."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from headrace.core import Array, Tensors
from headrace.optimize.candidate import CannotBuildError
from headrace.optimize.prune.graph import Graph
from headrace.optimize.prune.torch_ops import MICROSOFT_OPS, OPS
from headrace.optimize.prune.torch_shapes import Op


class TorchGraph(torch.nn.Module):  # type: ignore[misc]  # PyTorch is not always there
    """Runs a graph node by node.

    What is learned are weights, biases and scales; tables that are looked up in, masks and the
    statistics of BatchNormalization stay.
    """

    def __init__(self, graph: Graph) -> None:
        super().__init__()
        self._graph = graph
        self._steps = [_step(graph, i) for i in range(len(graph.nodes))]
        self._learned: dict[str, str] = {}
        self._fixed: dict[str, Any] = {}
        weights = _weights(graph)
        read = [name for name in graph.constants if name in graph.readers]
        for i, name in enumerate(read):
            array = graph.constants[name]
            tensor = torch.from_numpy(np.array(array))
            if name in weights:
                self._learned[name] = f"p{i}"
                self.register_parameter(f"p{i}", torch.nn.Parameter(tensor))
            else:
                self._fixed[name] = tensor

    def forward(self, inputs: Mapping[str, Any]) -> list[Any]:
        """The graph's outputs, in order."""
        known = self.values(inputs)
        return [known[name] for name in self._graph.outputs]

    def values(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Every tensor by name."""
        known: dict[str, Any] = dict(self._fixed)
        known |= {name: getattr(self, own) for name, own in self._learned.items()}
        known |= inputs
        for node, (op, told) in zip(self._graph.nodes, self._steps, strict=True):
            given = [known[name] if name else None for name in node.input]
            made = op(told, given)
            outputs = made if isinstance(made, tuple) else (made,)
            known.update(zip(node.output, outputs, strict=False))
        return known

    def learned(self) -> dict[str, Array]:
        """Constants as they are now."""
        return {
            name: getattr(self, own).detach().numpy().copy() for name, own in self._learned.items()
        }


def as_torch(example: Tensors) -> dict[str, Any]:
    """A request's tensors."""
    return {name: torch.from_numpy(np.array(array)) for name, array in example.items()}


def stacked(examples: Sequence[Tensors]) -> dict[str, Any]:
    """Requests of one shape as one batch."""
    return {
        name: torch.from_numpy(np.concatenate([example[name] for example in examples]))
        for name in examples[0]
    }


def _step(graph: Graph, i: int) -> tuple[Op, dict[str, Any]]:
    node = graph.nodes[i]
    known = OPS if not node.domain else MICROSOFT_OPS if node.domain == "com.microsoft" else {}
    op = known.get(node.op_type)
    if op is None:
        raise CannotBuildError(f"{node.op_type} cannot be taught: it has no gradient here")
    told = {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}
    if node.op_type == "ConstantOfShape" and "value" in told:
        told["value"] = numpy_helper.to_array(told["value"])
    return op, told | {"opset": graph.opset, "count": len(node.output)}


def _weights(graph: Graph) -> set[str]:
    """Constants where weights, biases and scales are read, and not masks or tables."""
    found: set[str] = set()
    tables: set[str] = set()
    for node in graph.nodes:
        match node.op_type:
            case "MatMul" | "Gemm" | "Conv" | "LayerNormalization" | "BatchNormalization":
                found.update(node.input[1:3])
                tables.update(node.input[3:])
            case "Add" | "Mul" | "BiasGelu":
                vectors = [name for name in node.input if name in graph.constants]
                found.update(name for name in vectors if graph.constants[name].ndim == 1)
            case "Gather":
                tables.add(node.input[0])
    return {
        name
        for name in found - tables
        if name in graph.constants
        and graph.constants[name].dtype == np.float32
        and graph.constants[name].size > 1
    }
