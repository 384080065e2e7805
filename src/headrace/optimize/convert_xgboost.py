"""XGBoost's trees as ONNX, by onnxmltools."""

from functools import partial
from pathlib import Path
from typing import Any, Final

from headrace.core import Datatype, UnsupportedModelError
from headrace.optimize.sources import (
    CATEGORICAL,
    Graph,
    Source,
    Way,
    import_converter,
    with_version,
)
from headrace.runtimes import load_model
from headrace.runtimes.tabular import INPUT, import_library
from headrace.runtimes.xgboost_file import read_xgboost

OPSET: Final = 15
"""The newest that onnxmltools writes."""
_HINT: Final = (
    "Of XGBoost's models onnxmltools knows those of the booster gbtree with one target; the file "
    "is served as it is, without --convert"
)


def open_source(path: Path, *, allow_code: bool) -> Source:
    """A file of XGBoost's; nothing in it runs."""
    del allow_code
    found = read_xgboost(path)
    if found.is_categorical:
        raise UnsupportedModelError(f"{path}: {CATEGORICAL}")
    tools = import_converter("onnxmltools")
    model = load_model(path, "xgboost")
    booster = import_library("xgboost", "xgboost").Booster(model_file=str(path))
    if found.rounds:  # those after the best one are not used when it predicts
        booster = booster[: found.rounds]
    if found.objective == "multi:softmax":
        booster.set_param({"objective": "multi:softprob"})
    convert = partial(_convert, tools, booster, found.features)
    return Source(
        model=model,
        ways=(Way(computes=Datatype.FP32, convert=convert),),
        converter=with_version("onnxmltools"),
        library=with_version("xgboost", "xgboost-cpu"),
        hint=_HINT,
    )


def _convert(tools: Any, booster: Any, features: int) -> Graph:  # noqa: ANN401  # ship no types
    types = import_converter("onnxmltools.convert.common.data_types")
    given = [(INPUT, types.FloatTensorType([None, features]))]
    return tools.convert_xgboost(booster, name="model", initial_types=given, target_opset=OPSET)
