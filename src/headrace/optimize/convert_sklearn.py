"""scikit-learn's estimators as ONNX, by skl2onnx.

Estimators compute in doubles, trees among them compare in FP32: which of both the graph should do
is found out by comparing, the doubles first.
"""

from functools import partial
from pathlib import Path
from typing import Any, Final

from headrace.core import Datatype, UnsupportedModelError
from headrace.optimize.sources import Graph, Source, Way, import_converter, with_version
from headrace.runtimes import LoadOptions, Model
from headrace.runtimes.reasons import reason_of
from headrace.runtimes.sklearn import open_estimator
from headrace.runtimes.sklearn_file import read_estimator
from headrace.runtimes.tabular import INPUT

OPSET: Final = 17
_HALF_KNOWN: Final = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")
_HINT: Final = (
    "Of scikit-learn's histogram boosting skl2onnx leaves out categories, and the logarithm of the "
    "losses poisson and gamma, and converts nothing with protobuf 7.34 or newer: train with "
    "LightGBM or XGBoost, whose files are served as they are, or serve a Python model"
)


def open_source(path: Path, *, allow_code: bool) -> Source:
    """A skops file, or a pickle; what was not allowed to run code is refused before."""
    return source_of(path, read_estimator(path, allow_code=allow_code))


def source_of(path: Path, estimator: Any) -> Source:  # noqa: ANN401  # any estimator
    """What converts an estimator that is loaded already."""
    tools = import_converter("skl2onnx")
    model = open_estimator(path, estimator, LoadOptions(device="cpu"))
    (spec, *others) = model.signature.inputs
    if others or spec.datatype is Datatype.BYTES:
        msg = (
            f"{path} takes {'columns of a data frame' if others else 'text'}, and a matrix of "
            "numbers is what is converted: push the file without --convert, which serves it as it "
            "is"
        )
        raise UnsupportedModelError(msg)
    kinds = (Datatype.FP64, Datatype.FP32)
    names = {type(part).__name__ for part in _parts(estimator)}
    return Source(
        model=model,
        ways=tuple(
            Way(computes=kind, convert=partial(_convert, path, tools, estimator, kind, model))
            for kind in kinds
        ),
        converter=with_version("skl2onnx"),
        library=with_version("scikit-learn"),
        hint="" if names.isdisjoint(_HALF_KNOWN) else _HINT,
    )


def _convert(path: Path, tools: Any, estimator: Any, kind: Datatype, model: Model) -> Graph:  # noqa: ANN401  # ship no types
    types = import_converter("skl2onnx.common.data_types")
    tensor = types.DoubleTensorType if kind is Datatype.FP64 else types.FloatTensorType
    (spec,) = model.signature.inputs
    given = [(INPUT, tensor([None, spec.shape[1]]))]
    options: Any = {"zipmap": False}
    try:
        graph = _with_options(tools, estimator, given, {id(estimator): options})
    except Exception as error:
        # Converters are registered by anybody, and fail as they like.
        what = f"{type(error).__name__}: {reason_of(error)}"
        raise UnsupportedModelError(f"{path}: skl2onnx cannot convert it: {what}") from error
    # Of a classifier without probabilities it also gives the scores that decide.
    del graph.graph.output[len(model.signature.outputs) :]
    return graph


def _with_options(tools: Any, estimator: Any, given: Any, options: Any) -> Graph:  # noqa: ANN401  # ship no types
    """Converted with `options` or, if it has none of them, without."""
    convert = partial(
        tools.convert_sklearn, estimator, name="model", initial_types=given, target_opset=OPSET
    )
    try:
        return convert(options=options)
    except NameError:  # so it says that an estimator knows no such option
        return convert()


def _parts(estimator: Any) -> list[Any]:  # noqa: ANN401  # any estimator
    params = estimator.get_params() if hasattr(estimator, "get_params") else {}
    return [estimator, *params.values()]
