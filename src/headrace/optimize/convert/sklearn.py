"""ONNX conversion of scikit-learn's estimators: by skl2onnx; histogram boosting by Headrace.

Estimators compute in FP64; forests and single trees round a row to FP32 first. Both variants are
compared with the source, FP64 first.
"""

from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.core import Array, Datatype, UnsupportedModelError
from headrace.optimize.sources import ConversionSource, Graph, Way, import_converter, with_version
from headrace.runtimes import LoadOptions, Model
from headrace.runtimes.libraries import reason_of
from headrace.runtimes.tables.sklearn import open_estimator
from headrace.runtimes.tables.sklearn_file import parts_of, read_estimator
from headrace.runtimes.tables.tabular import INPUT

OPSET: Final = {"": 17, "ai.onnx.ml": 3}
_HISTOGRAMS: Final = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")
_ROUND_FIRST: Final = frozenset({"BaseDecisionTree", "BaseForest", "BaseGradientBoosting"})
"""Classes whose trees compare a row that was rounded to FP32 with thresholds in doubles."""
_HINT: Final = (
    "Of scikit-learn's histogram boosting inside other estimators skl2onnx leaves out categories, "
    "and the logarithm of the losses poisson and gamma, and converts nothing with protobuf 7.34 or "
    "newer: push the file without --convert, which serves it unchanged"
)


def open_source(path: Path, *, allow_code: bool) -> ConversionSource:
    """Open a skops file or a pickle; the caller has checked that code is allowed."""
    return source_of(path, read_estimator(path, allow_code=allow_code))


def source_of(path: Path, estimator: Any) -> ConversionSource:  # noqa: ANN401  # any estimator
    """Return the conversion source of a loaded estimator.

    Raises:
        UnsupportedModelError: It takes more than one matrix of numbers.
    """
    tools = import_converter("skl2onnx")
    model = open_estimator(path, estimator, LoadOptions(device="cpu"))
    estimator = getattr(estimator, "best_estimator_", estimator)  # a search's predictor
    (spec, *others) = model.signature.inputs
    if others or spec.datatype is Datatype.BYTES:
        msg = (
            f"{path} takes {'columns of a data frame' if others else 'text'}, and a matrix of "
            "numbers is what is converted: push the file without --convert, which serves it as it "
            "is"
        )
        raise UnsupportedModelError(msg)
    names = {type(part).__name__ for part in parts_of(estimator)}
    if "TunedThresholdClassifierCV" in names:
        raise UnsupportedModelError(
            f"{path} decides by a tuned threshold, which skl2onnx leaves out: push the file "
            "without --convert, which serves it unchanged"
        )
    finite = _with_finite_thresholds(estimator)
    ways = [
        Way(computes=kind, convert=partial(_convert, path, tools, finite, kind, model))
        for kind in (Datatype.FP64, Datatype.FP32)
    ]
    if type(estimator).__name__ in _HISTOGRAMS:
        way = Way(
            computes=Datatype.FP64,
            convert=partial(_histograms, path, estimator),
            converter=with_version("headrace"),
        )
        ways.insert(0, way)
    return ConversionSource(
        model=model,
        ways=tuple(ways),
        converter=with_version("skl2onnx"),
        library=with_version("scikit-learn"),
        hint="" if names.isdisjoint(_HISTOGRAMS) else _HINT,
        thresholds=_thresholds(estimator),
    )


def _histograms(path: Path, estimator: Any) -> Graph:  # noqa: ANN401  # an estimator
    from headrace.optimize.convert.tree_graph import histogram_graph  # noqa: PLC0415  # needs onnx, which an extra brings

    try:
        return histogram_graph(estimator)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{path}: {error}") from error


def _convert(path: Path, tools: Any, estimator: Any, kind: Datatype, model: Model) -> Graph:  # noqa: ANN401  # ship no types
    types = import_converter("skl2onnx.common.data_types")
    tensor = types.DoubleTensorType if kind is Datatype.FP64 else types.FloatTensorType
    (spec,) = model.signature.inputs
    input_types = [(INPUT, tensor([None, spec.shape[1]]))]
    options: Any = {"zipmap": False}
    try:
        with np.errstate(over="ignore"):  # skl2onnx searches for the neighbors of thresholds
            graph = _with_options(tools, estimator, input_types, {id(estimator): options})
    except Exception as error:
        # Third-party converters may be registered and raise any exception.
        description = f"{type(error).__name__}: {reason_of(error)}"
        raise UnsupportedModelError(f"{path}: skl2onnx cannot convert it: {description}") from error
    # For a classifier without probabilities it also returns the decision scores.
    del graph.graph.output[len(model.signature.outputs) :]
    if not _ROUND_FIRST.isdisjoint(base.__name__ for base in type(estimator).__mro__):
        _send_missing_values(graph, estimator)
        if kind is Datatype.FP64:
            _round_first(graph)
    return graph


def _with_options(tools: Any, estimator: Any, input_types: Any, options: Any) -> Graph:  # noqa: ANN401  # ship no types
    """Convert with `options`, or without if the estimator does not support them."""
    convert = partial(
        tools.convert_sklearn,
        estimator,
        name="model",
        initial_types=input_types,
        target_opset=OPSET,
    )
    try:
        return convert(options=options)
    except NameError:  # raised if an estimator does not support the option
        return convert()


def _round_first(graph: Graph) -> None:
    """Round the input to FP32, as the estimator does before its trees compare FP64."""
    onnx = import_converter("onnx")
    (name,) = (value.name for value in graph.graph.input)
    for node in graph.graph.node:
        node.input[:] = [f"{name}_rounded" if tensor == name else tensor for tensor in node.input]
    for source, target, kind in (
        (f"{name}_narrow", f"{name}_rounded", onnx.TensorProto.DOUBLE),
        (name, f"{name}_narrow", onnx.TensorProto.FLOAT),
    ):
        graph.graph.node.insert(0, onnx.helper.make_node("Cast", [source], [target], to=kind))


def _send_missing_values(graph: Graph, estimator: Any) -> None:  # noqa: ANN401  # an estimator
    """Send missing values down the branches of scikit-learn's trees, which skl2onnx omits."""
    if "BaseGradientBoosting" in (base.__name__ for base in type(estimator).__mro__):
        return  # it supports no missing values
    trees = [member.tree_ for member in getattr(estimator, "estimators_", [estimator])]
    for node in graph.graph.node:
        if not node.op_type.startswith("TreeEnsemble"):
            continue
        attributes = {attribute.name: attribute for attribute in node.attribute}
        tracks = attributes["nodes_missing_value_tracks_true"].ints
        pairs = zip(attributes["nodes_treeids"].ints, attributes["nodes_nodeids"].ints, strict=True)
        goes_left = [int(trees[tree].missing_go_to_left[number]) for tree, number in pairs]
        del tracks[:]
        tracks.extend(goes_left)


def _with_finite_thresholds(estimator: Any) -> Any:  # noqa: ANN401  # any estimator
    """Return an estimator with the same answers, whose trees compare with finite numbers.

    A split that separates missing values from all others compares with infinity, which makes
    skl2onnx loop forever. scikit-learn rejects rows with numbers beyond FP32.
    """
    if not any(np.isposinf(tree.threshold).any() for tree in _trees(estimator)):
        return estimator
    estimator = deepcopy(estimator)
    for tree in _trees(estimator):
        tree.threshold[np.isposinf(tree.threshold)] = np.finfo(np.float32).max
    return estimator


def _trees(estimator: object) -> list[Any]:
    return [part for part in parts_of(estimator) if type(part).__name__ == "Tree"]


def _thresholds(estimator: Any) -> Mapping[int, Array]:  # noqa: ANN401  # any estimator
    """Return the trees' thresholds by feature; empty if other estimators transform the features."""
    if not type(estimator).__module__.startswith(("sklearn.ensemble.", "sklearn.tree.")):
        return {}
    cuts: dict[int, list[Array]] = {}
    for part in parts_of(estimator):
        match type(part).__name__:
            case "Tree":
                tree: Any = part
                pairs = tree.feature, tree.threshold
            case "TreePredictor":
                nodes = vars(part)["nodes"]
                inner = nodes[nodes["is_leaf"] == 0]
                pairs = inner["feature_idx"], inner["num_threshold"]
            case "Pipeline" | "ColumnTransformer":
                return {}
            case _:
                continue
        features, values = (np.asarray(column) for column in pairs)
        finite = (features >= 0) & np.isfinite(values)
        for feature in np.unique(features[finite]).tolist():
            cuts.setdefault(feature, []).append(values[finite & (features == feature)])
    return {feature: np.unique(np.concatenate(parts)) for feature, parts in cuts.items()}
