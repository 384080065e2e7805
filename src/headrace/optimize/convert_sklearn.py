"""scikit-learn's estimators as ONNX, by skl2onnx.

Estimators compute in doubles, trees among them compare in FP32: which of both the graph should do
is found out by comparing, the doubles first.
"""

from functools import partial
from pathlib import Path
from typing import Any, Final

from headrace.core import Datatype, FailedPreconditionError, UnsupportedModelError
from headrace.optimize.sources import Graph, Source, Way, import_converter, with_version
from headrace.runtimes import LoadOptions
from headrace.runtimes.sklearn import open_estimator, read_estimator, untrusted_types
from headrace.runtimes.tabular import INPUT, import_library, reason_of

OPSET: Final = 17
_MOST_TYPES: Final = 5
_NOT_ALWAYS: Final = ("HistGradientBoostingClassifier", "HistGradientBoostingRegressor")


def open_source(path: Path, *, allow_code: bool) -> Source:
    """A skops file; types that skops does not trust are loaded where code may run."""
    unknown = untrusted_types(path)
    if unknown and not allow_code:
        msg = (
            f"{path} holds types that skops does not trust ({', '.join(unknown[:_MOST_TYPES])}): "
            "loading them may run code of somebody's, or crash. If you trust the author, add "
            "--allow-code: it is loaded once, confined, and what is stored holds no code"
        )
        raise FailedPreconditionError(msg)
    return source_of(path, read_estimator(path, trusted=unknown))


def source_of(path: Path, estimator: Any) -> Source:  # noqa: ANN401  # any estimator
    """What converts an estimator that is loaded already."""
    tools = import_converter("skl2onnx")
    model = open_estimator(path, estimator, LoadOptions(device="cpu"))
    (spec,) = model.signature.inputs
    features = spec.shape[1]
    return Source(
        model=model,
        ways=tuple(
            Way(computes=kind, convert=partial(_convert, path, tools, estimator, kind, features))
            for kind in (Datatype.FP64, Datatype.FP32)
        ),
        converter=with_version("skl2onnx"),
        library=with_version("scikit-learn"),
    )


def _convert(path: Path, tools: Any, estimator: Any, kind: Datatype, features: int) -> Graph:  # noqa: ANN401  # ship no types
    types = import_converter("skl2onnx.common.data_types")
    base = import_library("sklearn.base", "sklearn")
    tensor = types.DoubleTensorType if kind is Datatype.FP64 else types.FloatTensorType
    options = {id(estimator): {"zipmap": False}} if base.is_classifier(estimator) else None
    try:
        return tools.convert_sklearn(
            estimator,
            name="model",
            initial_types=[(INPUT, tensor([None, features]))],
            target_opset=OPSET,
            options=options,
        )
    except Exception as error:
        # Converters are registered by anybody, and fail as they like.
        raise UnsupportedModelError(f"{path}: {_why(estimator, error)}") from error


def _why(estimator: Any, error: Exception) -> str:  # noqa: ANN401  # any estimator
    said = f"skl2onnx cannot convert it: {type(error).__name__}: {reason_of(error)}"
    names = {type(part).__name__ for part in _parts(estimator)}
    if not names.isdisjoint(_NOT_ALWAYS):
        return (
            f"{said}; of scikit-learn's histogram boosting it knows some models only. Train with "
            "LightGBM or XGBoost, whose files are served as they are, or serve a Python model"
        )
    return said


def _parts(estimator: Any) -> list[Any]:  # noqa: ANN401  # any estimator
    params = estimator.get_params() if hasattr(estimator, "get_params") else {}
    return [estimator, *params.values()]
