"""LightGBM's trees as one ONNX operator that compares and adds in doubles, as LightGBM does.

Converters write thresholds in FP32, so that a value which FP32 cannot tell apart from one, such as
a time in seconds or an account's number, goes down the other branch. `TreeEnsemble` of the domain
`ai.onnx.ml` 5 takes doubles, and ONNX Runtime runs it faster than the older operators.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from headrace.core import Array, UnsupportedModelError
from headrace.optimize.sources import Graph
from headrace.runtimes.tabular import INPUT, LABEL, PREDICTION, PROBABILITIES

OPSET: Final = 17
_TREES_OPSET: Final = 5
_BRANCH_LEQ: Final = 0
_SUM: Final = 1
_DEFAULT_LEFT: Final = 2
_MISSING_SHIFT: Final = 2
_MISSING_ZERO, _MISSING_NAN = 1, 2
_PLAIN: Final = (
    *("", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg"),
)
_EXPONENTIAL: Final = ("poisson", "gamma", "tweedie")


def lightgbm_graph(text: str) -> Graph:
    """A model's text, checked, as a graph from `input` to a label and probabilities, or a value.

    Raises:
        UnsupportedModelError: It predicts in a way that is not known here.
    """
    header, *trees = (_fields(part) for part in text.split("\nTree="))
    targets = int(header["num_class"])
    ensemble = _Ensemble()
    for number, tree in enumerate(trees):
        ensemble.add(tree, target=number % targets)
    nodes = _Nodes()
    raw = nodes.add("TreeEnsemble", INPUT, domain="ai.onnx.ml", **ensemble.attributes(targets))
    if "average_output" in header:  # a forest
        raw = nodes.add("Div", raw, nodes.number(len(trees) / targets))
    kinds = _answers(nodes, raw, header.get("objective", ""), targets)
    features = int(header["max_feature_idx"]) + 1
    graph = helper.make_graph(
        nodes.nodes,
        "model",
        [helper.make_tensor_value_info(INPUT, TensorProto.DOUBLE, ["N", features])],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
        nodes.constants,
    )
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("ai.onnx.ml", _TREES_OPSET)]
    versions = helper.find_min_ir_version_for(opsets)
    return helper.make_model(graph, opset_imports=opsets, ir_version=versions)


@dataclass(frozen=True, slots=True)
class _Ensemble:
    """The nodes and leaves of all trees, each numbered through."""

    columns: dict[str, list[Array]] = field(default_factory=dict)
    sizes: list[int] = field(default_factory=lambda: [0])
    leaves: list[int] = field(default_factory=lambda: [0])

    def add(self, tree: Mapping[str, str], *, target: int) -> None:
        values = _floats(tree["leaf_value"])
        first_node, first_leaf = self.sizes[-1], self.leaves[-1]
        found: dict[str, Array] = {
            "leaf_weights": values,
            "leaf_targetids": np.full(len(values), target),
        }
        if len(values) == 1:  # no split, which the operator says by one whose branches are a leaf
            no, yes = np.array([0]), np.array([-1])
            features, thresholds, tracks = no, np.zeros(1), no
            left = right = yes
        else:
            features, thresholds = _ints(tree["split_feature"]), _floats(tree["threshold"])
            tracks = _goes_left_where_missing(_ints(tree["decision_type"]), thresholds)
            left, right = _ints(tree["left_child"]), _ints(tree["right_child"])
        found |= {
            "nodes_featureids": features,
            "nodes_splits": thresholds,
            "nodes_missing_value_tracks_true": tracks,
            "nodes_truenodeids": np.where(left < 0, first_leaf + ~left, first_node + left),
            "nodes_trueleafs": left < 0,
            "nodes_falsenodeids": np.where(right < 0, first_leaf + ~right, first_node + right),
            "nodes_falseleafs": right < 0,
        }
        for name, column in found.items():
            self.columns.setdefault(name, []).append(column)
        self.sizes.append(first_node + len(features))
        self.leaves.append(first_leaf + len(values))

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


def _goes_left_where_missing(decisions: Array, thresholds: Array) -> Array:
    """Where each split sends a value that is not there; where none was in training, it is zero."""
    kind = (decisions >> _MISSING_SHIFT) & 3
    is_left = (decisions & _DEFAULT_LEFT) != 0
    zero_is_left = thresholds >= 0
    if (is_left != zero_is_left)[kind == _MISSING_ZERO].any():
        msg = "zeros count as missing (zero_as_missing), which ONNX's trees have nothing like"
        raise UnsupportedModelError(msg)
    found: Array = np.where(kind == _MISSING_NAN, is_left, zero_is_left)
    return found


@dataclass(frozen=True, slots=True)
class _Nodes:
    nodes: list[Graph] = field(default_factory=list)
    constants: list[Graph] = field(default_factory=list)

    def add(self, operator: str, *inputs: str, to: str = "", **attributes: Any) -> str:  # noqa: ANN401  # of any operator
        """Append one, whose only output is called `to`."""
        output = to or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def number(self, value: float) -> str:
        """A constant."""
        name = f"number_{len(self.constants)}"
        self.constants.append(helper.make_tensor(name, TensorProto.DOUBLE, [], [value]))
        return name

    def classes(self, scores: str) -> dict[str, int]:
        """Outputs of a classifier; of classes that tie the first is meant."""
        self.add("ArgMax", scores, axis=1, keepdims=0, to=LABEL)
        self.add("Identity", scores, to=PROBABILITIES)
        return {LABEL: TensorProto.INT64, PROBABILITIES: TensorProto.DOUBLE}

    def sigmoid(self, raw: str, objective: Sequence[str]) -> str:
        """LightGBM's, whose steepness the objective says."""
        told = dict(word.partition(":")[::2] for word in objective)
        steepness = float(told.get("sigmoid", 1))
        scaled = raw if steepness == 1 else self.add("Mul", raw, self.number(steepness))
        return self.add("Sigmoid", scaled)


def _answers(nodes: _Nodes, raw: str, objective: str, targets: int) -> dict[str, int]:
    """Nodes that make of the trees' sums what the objective predicts; the outputs, with types."""
    name, *rest = objective.split() or [""]
    if name == "binary" and targets == 1:
        second = nodes.sigmoid(raw, rest)
        first = nodes.add("Sub", nodes.number(1), second)
        return nodes.classes(nodes.add("Concat", first, second, axis=1))
    if name == "multiclass":
        return nodes.classes(nodes.add("Softmax", raw, axis=1))
    if name == "multiclassova":
        return nodes.classes(nodes.sigmoid(raw, rest))
    if name in _PLAIN or (name == "regression" and not rest):
        value = raw
    elif name == "regression" and rest == ["sqrt"]:
        value = nodes.add("Mul", raw, nodes.add("Abs", raw))
    elif name in _EXPONENTIAL:
        value = nodes.add("Exp", raw)
    elif name == "cross_entropy":
        value = nodes.add("Sigmoid", raw)
    else:
        msg = f"how its objective '{objective[:100]}' predicts is not known here"
        raise UnsupportedModelError(msg)
    nodes.add("Identity", value, to=PREDICTION)
    return {PREDICTION: TensorProto.DOUBLE}


def _fields(text: str) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in text.split("\n"))


def _ints(text: str) -> Array:
    return np.array(text.split(" "), np.int64)


def _floats(text: str) -> Array:
    return np.array(text.split(" "), np.float64)
