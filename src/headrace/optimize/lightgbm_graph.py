"""LightGBM's trees as one ONNX operator that compares and adds in doubles, as LightGBM does.

Converters write thresholds in FP32, so that a value which FP32 cannot tell apart from one, such as
a time in seconds or an account's number, goes down the other branch. `TreeEnsemble` of the domain
`ai.onnx.ml` 5 takes doubles, and ONNX Runtime runs it faster than the older operators.
"""

from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from onnx import TensorProto

from headrace.core import Array, UnsupportedModelError
from headrace.optimize.sources import Graph
from headrace.optimize.tree_graph import TREES_DOMAIN, GraphNodes, TreeEnsemble
from headrace.runtimes.tabular import INPUT, PREDICTION

_ZERO: Final = float(np.float32(1e-35))
"""LightGBM takes values of at most that size for zero, and puts thresholds there."""
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
    """What the trees of a model's text compare each feature with."""
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
    ensemble.add(
        features=_ints(tree["split_feature"]),
        thresholds=thresholds,
        tracks=_goes_left_where_missing(_ints(tree["decision_type"]), thresholds),
        left=_ints(tree["left_child"]),
        right=_ints(tree["right_child"]),
        leaves=values,
        target=target,
    )


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


def _answers(nodes: GraphNodes, raw: str, objective: str, targets: int) -> dict[str, int]:
    """Nodes that make of the trees' sums what the objective predicts; the outputs, with types."""
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
        msg = f"how its objective '{objective[:100]}' predicts is not known here"
        raise UnsupportedModelError(msg)
    nodes.add("Identity", value, to=PREDICTION)
    return {PREDICTION: TensorProto.DOUBLE}


def _sigmoid(nodes: GraphNodes, raw: str, objective: Sequence[str]) -> str:
    """LightGBM's, whose steepness the objective says."""
    told = dict(word.partition(":")[::2] for word in objective)
    steepness = float(told.get("sigmoid", 1))
    scaled = raw if steepness == 1 else nodes.add("Mul", raw, nodes.number(steepness))
    return nodes.add("Sigmoid", scaled)


def _fields(text: str) -> dict[str, str]:
    return dict(line.partition("=")[::2] for line in text.split("\n"))


def _ints(text: str) -> Array:
    return np.array(text.split(" "), np.int64)


def _floats(text: str) -> Array:
    return np.array(text.split(" "), np.float64)
