"""Tree ensembles as ONNX graphs that compare and add in FP64.

Converters, skl2onnx among them, write thresholds in FP32. Thresholds are values of the training
data, so a row with such a value, or with one that FP32 cannot distinguish from it, such as a time
in seconds or an account number, goes down the other branch. `TreeEnsemble` of the domain
`ai.onnx.ml` 5 takes FP64, and ONNX Runtime runs it faster than the older operators.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from headrace.core import Array, UnsupportedModelError
from headrace.optimize.sources import Graph
from headrace.runtimes.tables.tabular import INPUT, LABEL, PREDICTION, PROBABILITIES, as_label

TREES_DOMAIN: Final = "ai.onnx.ml"
_OPSET: Final = 17
_TREES_OPSET: Final = 5
_BRANCH_LEQ: Final = 0
_SUM: Final = 1


@dataclass(frozen=True, slots=True)
class TreeEnsemble:
    """Nodes and leaves of all trees, with consecutive numbers."""

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
            right: Like `left`.
            leaves: The value of each leaf.
            target: The ensemble's sum to which the tree is added.
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
        """Add a tree without a split, as one whose branches end at the same leaf."""
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
        """Return the attributes of the operator."""
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
        """Append a node, whose only output is called `to`."""
        output = to or f"value_{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def number(self, value: float) -> str:
        """Add a number as a constant and return its name."""
        return self.constant(np.float64(value))

    def constant(self, values: Array | np.float64) -> str:
        """Add a constant and return its unique name; texts are an object array of `bytes`."""
        name = f"constant_{len(self.constants)}"
        array = np.asarray(values)
        if array.dtype.kind == "O":
            tensor = helper.make_tensor(name, TensorProto.STRING, array.shape, array.tolist())
        else:
            tensor = numpy_helper.from_array(array, name)
        self.constants.append(tensor)
        return name

    def both(self, second: str) -> str:
        """Return the probabilities of both classes from those of the second."""
        first = self.add("Sub", self.number(1), second)
        return self.add("Concat", first, second, axis=1)

    def classes(self, scores: str) -> dict[str, int]:
        """Add the outputs of a classifier; ties go to the first class."""
        self.add("ArgMax", scores, axis=1, keepdims=0, to=LABEL)
        self.add("Identity", scores, to=PROBABILITIES)
        return {LABEL: TensorProto.INT64, PROBABILITIES: TensorProto.DOUBLE}

    def graph(self, *, features: int, outputs: Mapping[str, int]) -> Graph:
        """Return the model; `outputs` holds the types of its outputs."""
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


def histogram_graph(estimator: Any) -> Graph:  # noqa: ANN401  # ships no types
    """Return `HistGradientBoostingClassifier` or `HistGradientBoostingRegressor` as a graph.

    Raises:
        UnsupportedModelError: It has categorical features, or an unsupported loss.
    """
    if estimator.is_categorical_ is not None:
        msg = "ONNX's trees in doubles have nothing like its categorical features"
        raise UnsupportedModelError(msg)
    rounds = estimator._predictors  # noqa: SLF001  # nothing public holds the trees
    start = np.asarray(estimator._baseline_prediction, np.float64).reshape(1, -1)  # noqa: SLF001  # as above
    targets = estimator.n_trees_per_iteration_
    ensemble = TreeEnsemble()
    for trees in rounds:
        for target, tree in enumerate(trees):
            _add_histogram(ensemble, tree.nodes, target)
    nodes = GraphNodes()
    added = nodes.add("TreeEnsemble", INPUT, domain=TREES_DOMAIN, **ensemble.attributes(targets))
    raw = nodes.add("Add", added, nodes.constant(start))
    features = estimator.n_features_in_
    if hasattr(estimator, "classes_"):
        return nodes.graph(features=features, outputs=_classes(nodes, raw, estimator, targets))
    link = type(estimator._loss.link).__name__  # noqa: SLF001  # as above
    if link not in {"IdentityLink", "LogLink"}:
        msg = f"how it predicts with the link {link} is not supported"
        raise UnsupportedModelError(msg)
    nodes.add("Exp" if link == "LogLink" else "Identity", raw, to=PREDICTION)
    return nodes.graph(features=features, outputs={PREDICTION: TensorProto.DOUBLE})


def _add_histogram(ensemble: TreeEnsemble, nodes: Any, target: int) -> None:  # noqa: ANN401  # a structured array
    """Number splits and leaves separately, which share one list in the estimator."""
    is_leaf = nodes["is_leaf"] != 0
    if is_leaf[0]:
        ensemble.add_leaf(float(nodes["value"][0]), target=target)
        return
    number = np.where(is_leaf, ~(np.cumsum(is_leaf) - 1), np.cumsum(~is_leaf) - 1)
    splits = nodes[~is_leaf]
    ensemble.add(
        features=splits["feature_idx"],
        thresholds=splits["num_threshold"],
        tracks=splits["missing_go_to_left"],
        left=number[splits["left"]],
        right=number[splits["right"]],
        leaves=nodes["value"][is_leaf],
        target=target,
    )


def _classes(nodes: GraphNodes, raw: str, estimator: Any, targets: int) -> dict[str, int]:  # noqa: ANN401  # ships no types
    if targets == 1:
        scores = nodes.both(nodes.add("Sigmoid", raw))
    else:
        scores = nodes.add("Softmax", raw, axis=1)
    labels = as_label(estimator.classes_)
    kinds = {"O": TensorProto.STRING, "i": TensorProto.INT64, "f": TensorProto.DOUBLE}
    if labels.dtype.kind not in kinds:
        msg = f"its classes are of the dtype {labels.dtype}"
        raise UnsupportedModelError(msg)
    column = nodes.add("ArgMax", scores, axis=1, keepdims=0)
    nodes.add("Gather", nodes.constant(labels), column, axis=0, to=LABEL)
    nodes.add("Identity", scores, to=PROBABILITIES)
    return {LABEL: kinds[labels.dtype.kind], PROBABILITIES: TensorProto.DOUBLE}


_ZERO: Final = float(np.float32(1e-35))
"""LightGBM treats values up to this size as zero, and puts thresholds there."""
_DEFAULT_LEFT: Final = 2
_MISSING_SHIFT: Final = 2
_MISSING_ZERO, _MISSING_NAN = 1, 2
_PLAIN: Final = (
    *("", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg"),
)
_EXPONENTIAL: Final = ("poisson", "gamma", "tweedie")


def lightgbm_graph(text: str) -> Graph:
    """Return a checked model text as a graph from `input` to label and probabilities, or a value.

    Raises:
        UnsupportedModelError: It has an unsupported objective.
    """
    header, *trees = (_fields(part) for part in text.split("\nTree="))
    targets = int(header["num_class"])
    ensemble = TreeEnsemble()
    for number, tree in enumerate(trees):
        _add(ensemble, tree, target=number % targets)
    nodes = GraphNodes()
    rows = INPUT
    if any((np.abs(cuts) <= _ZERO).any() for cuts in lightgbm_thresholds(text).values()):
        near = nodes.add("LessOrEqual", nodes.add("Abs", INPUT), nodes.number(_ZERO))
        rows = nodes.add("Where", near, nodes.number(0), INPUT)
    raw = nodes.add("TreeEnsemble", rows, domain=TREES_DOMAIN, **ensemble.attributes(targets))
    if "average_output" in header:  # a forest
        raw = nodes.add("Div", raw, nodes.number(len(trees) / targets))
    kinds = _answers(nodes, raw, header.get("objective", ""), targets)
    return nodes.graph(features=int(header["max_feature_idx"]) + 1, outputs=kinds)


def lightgbm_thresholds(text: str) -> dict[int, Array]:
    """Return the thresholds of the trees of a model text, by feature."""
    cuts: dict[int, set[float]] = {}
    for tree in map(_fields, text.split("\nTree=")[1:]):
        if tree["num_leaves"] != "1":
            splits = zip(_ints(tree["split_feature"]), _floats(tree["threshold"]), strict=True)
            for feature, threshold in splits:
                cuts.setdefault(int(feature), set()).add(float(threshold))
    return {feature: np.array(sorted(values)) for feature, values in cuts.items()}


def _add(ensemble: TreeEnsemble, tree: Mapping[str, str], *, target: int) -> None:
    values = _floats(tree["leaf_value"])
    if len(values) == 1:
        ensemble.add_leaf(values[0], target=target)
        return
    thresholds = _floats(tree["threshold"])
    # Branch of missing values at each split; a feature without missing values in training treats
    # them as zero.
    decisions = _ints(tree["decision_type"])
    kind = (decisions >> _MISSING_SHIFT) & 3
    is_left = (decisions & _DEFAULT_LEFT) != 0
    zero_is_left = thresholds >= 0
    if (is_left != zero_is_left)[kind == _MISSING_ZERO].any():
        msg = "zeros count as missing (zero_as_missing), which ONNX's trees have nothing like"
        raise UnsupportedModelError(msg)
    ensemble.add(
        features=_ints(tree["split_feature"]),
        thresholds=thresholds,
        tracks=np.where(kind == _MISSING_NAN, is_left, zero_is_left),
        left=_ints(tree["left_child"]),
        right=_ints(tree["right_child"]),
        leaves=values,
        target=target,
    )


def _answers(nodes: GraphNodes, raw: str, objective: str, targets: int) -> dict[str, int]:
    """Add nodes for the objective's prediction from the trees' sums; return the outputs."""
    name, *rest = objective.split() or [""]
    if name == "binary" and targets == 1:
        second = _sigmoid(nodes, raw, rest)
        return nodes.classes(nodes.both(second))
    if name == "multiclass":
        return nodes.classes(nodes.add("Softmax", raw, axis=1))
    if name == "multiclassova":
        return nodes.classes(_sigmoid(nodes, raw, rest))
    if name in _PLAIN or (name == "regression" and not rest):
        value = raw
    elif name == "regression" and rest == ["sqrt"]:
        value = nodes.add("Mul", raw, nodes.add("Abs", raw))
    elif name in _EXPONENTIAL:
        value = nodes.add("Exp", raw)
    elif name == "cross_entropy":
        value = nodes.add("Sigmoid", raw)
    else:
        msg = f"how its objective '{objective[:100]}' predicts is not supported"
        raise UnsupportedModelError(msg)
    nodes.add("Identity", value, to=PREDICTION)
    return {PREDICTION: TensorProto.DOUBLE}


def _sigmoid(nodes: GraphNodes, raw: str, objective: Sequence[str]) -> str:
    """Return LightGBM's sigmoid, whose steepness is part of the objective."""
    parameters = dict(word.partition(":")[::2] for word in objective)
    steepness = float(parameters.get("sigmoid", 1))
    scaled = raw if steepness == 1 else nodes.add("Mul", raw, nodes.number(steepness))
    return nodes.add("Sigmoid", scaled)


def _fields(text: str) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in text.split("\n"))


def _ints(text: str) -> Array:
    return np.array(text.split(" "), np.int64)


def _floats(text: str) -> Array:
    return np.array(text.split(" "), np.float64)
