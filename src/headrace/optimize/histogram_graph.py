"""scikit-learn's histogram gradient boosting as an ONNX graph that computes in doubles.

skl2onnx writes its thresholds, which are values of the training data, in FP32: a row that holds
such a value goes down the other branch.
"""

from typing import Any

import numpy as np
from onnx import TensorProto

from headrace.core import UnsupportedModelError
from headrace.optimize.sources import Graph
from headrace.optimize.tree_graph import TREES_DOMAIN, GraphNodes, TreeEnsemble
from headrace.runtimes.tabular import INPUT, LABEL, PREDICTION, PROBABILITIES, as_label


def histogram_graph(estimator: Any) -> Graph:  # noqa: ANN401  # ships no types
    """`HistGradientBoostingClassifier` or `HistGradientBoostingRegressor` as a graph.

    Raises:
        UnsupportedModelError: It has categorical features, or predicts in a way that is not known
            here.
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
            _add(ensemble, tree.nodes, target)
    nodes = GraphNodes()
    added = nodes.add("TreeEnsemble", INPUT, domain=TREES_DOMAIN, **ensemble.attributes(targets))
    raw = nodes.add("Add", added, nodes.constant(start))
    features = estimator.n_features_in_
    if hasattr(estimator, "classes_"):
        return nodes.graph(features=features, outputs=_classes(nodes, raw, estimator, targets))
    link = type(estimator._loss.link).__name__  # noqa: SLF001  # as above
    if link not in {"IdentityLink", "LogLink"}:
        msg = f"how it predicts with the link {link} is not known here"
        raise UnsupportedModelError(msg)
    nodes.add("Exp" if link == "LogLink" else "Identity", raw, to=PREDICTION)
    return nodes.graph(features=features, outputs={PREDICTION: TensorProto.DOUBLE})


def _add(ensemble: TreeEnsemble, nodes: Any, target: int) -> None:  # noqa: ANN401  # a structured array
    """Number splits and leaves apart, which one list holds."""
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
