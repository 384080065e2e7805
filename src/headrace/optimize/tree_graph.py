"""ONNX graphs of tree ensembles that compare and add in doubles.

`TreeEnsemble` of the domain `ai.onnx.ml` 5 takes doubles, and ONNX Runtime runs it faster than the
older operators. Converters write thresholds in FP32, so that a value which FP32 cannot tell apart
from one goes down the other branch.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from headrace.core import Array
from headrace.optimize.sources import Graph
from headrace.runtimes.tabular import INPUT, LABEL, PROBABILITIES

TREES_DOMAIN: Final = "ai.onnx.ml"
_OPSET: Final = 17
_TREES_OPSET: Final = 5
_BRANCH_LEQ: Final = 0
_SUM: Final = 1


@dataclass(frozen=True, slots=True)
class TreeEnsemble:
    """The nodes and leaves of all trees, each numbered through."""

    columns: dict[str, list[Array]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=lambda: [0])
    leaves: list[int] = field(default_factory=lambda: [0])

    def add(
        self,
        *,
        features: Array,
        thresholds: Array,
        tracks: Array,
        left: Array,
        right: Array,
        leaves: Array,
        target: int,
    ) -> None:
        """Add a tree of at least one split.

        Args:
            features: By split, the feature that is compared; a value up to the threshold goes left.
            tracks: By split, whether a missing value goes left.
            left: By split, the next split, or the complement of a leaf's number.
            right: As `left`.
            leaves: The value of each leaf.
            target: Which of the ensemble's sums the tree belongs to.
        """
        first_node, first_leaf = self.sizes[-1], self.leaves[-1]
        added: dict[str, Array] = {
            "leaf_weights": leaves,
            "leaf_targetids": np.full(len(leaves), target),
            "nodes_featureids": features,
            "nodes_splits": thresholds,
            "nodes_missing_value_tracks_true": tracks,
            "nodes_truenodeids": np.where(left < 0, first_leaf + ~left, first_node + left),
            "nodes_trueleafs": left < 0,
            "nodes_falsenodeids": np.where(right < 0, first_leaf + ~right, first_node + right),
            "nodes_falseleafs": right < 0,
        }
        for name, column in added.items():
            self.columns.setdefault(name, []).append(column)
        self.sizes.append(first_node + len(features))
        self.leaves.append(first_leaf + len(leaves))

    def add_leaf(self, value: float, *, target: int) -> None:
        """Add a tree without a split, which is one whose branches end at the same leaf."""
        no, yes = np.array([0]), np.array([-1])
        self.add(
            features=no,
            thresholds=np.zeros(1),
            tracks=no,
            left=yes,
            right=yes,
            leaves=np.array([value]),
            target=target,
        )

    def attributes(self, targets: int) -> dict[str, Any]:
        """Of the operator."""
        whole = {name: np.concatenate(parts) for name, parts in self.columns.items()}
        doubles = {
            name: numpy_helper.from_array(whole.pop(name).astype(np.float64), name)
            for name in ("nodes_splits", "leaf_weights")
        }
        modes = np.full(self.sizes[-1], _BRANCH_LEQ, np.uint8)
        return {
            **{name: column.astype(np.int64).tolist() for name, column in whole.items()},
            **doubles,
            "nodes_modes": numpy_helper.from_array(modes, "nodes_modes"),
            "tree_roots": self.sizes[:-1],
            "n_targets": targets,
            "aggregate_function": _SUM,
        }


@dataclass(frozen=True, slots=True)
class GraphNodes:
    """Nodes and constants of a graph from `input` to a label and probabilities, or a value."""

    nodes: list[Graph] = field(default_factory=list)
    constants: list[Graph] = field(default_factory=list)

    def add(self, operator: str, *inputs: str, to: str = "", **attributes: Any) -> str:  # noqa: ANN401  # of any operator
        """Append one, whose only output is called `to`."""
        output = to or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def number(self, value: float) -> str:
        """A constant."""
        return self.constant(np.float64(value))

    def constant(self, values: Array | np.float64) -> str:
        """A constant of a name of its own; texts are an object array of `bytes`."""
        name = f"constant_{len(self.constants)}"
        array = np.asarray(values)
        if array.dtype.kind == "O":
            made = helper.make_tensor(name, TensorProto.STRING, array.shape, array.tolist())
        else:
            made = numpy_helper.from_array(array, name)
        self.constants.append(made)
        return name

    def both(self, second: str) -> str:
        """Probabilities of both classes, from those of the second."""
        first = self.add("Sub", self.number(1), second)
        return self.add("Concat", first, second, axis=1)

    def classes(self, scores: str) -> dict[str, int]:
        """Outputs of a classifier; of classes that tie the first is meant."""
        self.add("ArgMax", scores, axis=1, keepdims=0, to=LABEL)
        self.add("Identity", scores, to=PROBABILITIES)
        return {LABEL: TensorProto.INT64, PROBABILITIES: TensorProto.DOUBLE}

    def graph(self, *, features: int, outputs: Mapping[str, int]) -> Graph:
        """The model; `outputs`: the types of its outputs."""
        graph = helper.make_graph(
            self.nodes,
            "model",
            [helper.make_tensor_value_info(INPUT, TensorProto.DOUBLE, ["N", features])],
            [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
            self.constants,
        )
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(TREES_DOMAIN, _TREES_OPSET)]
        versions = helper.find_min_ir_version_for(opsets)
        return helper.make_model(graph, opset_imports=opsets, ir_version=versions)
