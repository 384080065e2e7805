"""ONNX conversion of trees of CatBoost, XGBoost and LightGBM.

CatBoost writes ONNX itself. LightGBM's trees are converted here, in FP64; its unsupported models,
and XGBoost's trees, are converted by onnxmltools, which compares in FP32.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any, Final

from headrace.core import Datatype, UnsupportedModelError
from headrace.optimize.sources import (
    CATEGORICAL,
    ConversionSource,
    Graph,
    Way,
    import_converter,
    with_version,
)
from headrace.runtimes import load_model
from headrace.runtimes.tables.catboost import read_catboost
from headrace.runtimes.tables.lightgbm import read_lightgbm
from headrace.runtimes.tables.tabular import INPUT, import_library
from headrace.runtimes.tables.xgboost import read_xgboost

_OPSET: Final = 15
"""Newest opset that onnxmltools writes."""
_CATBOOST_NAMES: Final = {"onnx_domain": "headrace", "onnx_graph_name": "model"}
_XGBOOST_HINT: Final = (
    "Of XGBoost's models onnxmltools knows those of the booster gbtree with one target; the file "
    "is served unchanged without --convert"
)


def open_catboost(path: Path, *, allow_code: bool) -> ConversionSource:
    """Open a CatBoost file, which holds no code."""
    del allow_code
    parsed = read_catboost(path)
    if parsed.is_categorical:
        raise UnsupportedModelError(f"{path}: {CATEGORICAL}")
    booster = import_library("catboost", "catboost").CatBoost().load_model(blob=parsed.data)

    def convert() -> Graph:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            booster.save_model(str(file), format="onnx", export_parameters=_CATBOOST_NAMES)
            return import_converter("onnx").load_model(str(file))

    return ConversionSource(
        model=load_model(path, "catboost"),
        ways=(Way(computes=Datatype.FP32, convert=convert),),
        converter=with_version("catboost"),
        library=with_version("catboost"),
    )


def open_xgboost(path: Path, *, allow_code: bool) -> ConversionSource:
    """Open an XGBoost file, which holds no code."""
    del allow_code
    parsed = read_xgboost(path)
    if parsed.is_categorical:
        raise UnsupportedModelError(f"{path}: {CATEGORICAL}")
    tools = import_converter("onnxmltools")
    booster = import_library("xgboost", "xgboost").Booster(model_file=str(path))
    if parsed.rounds:  # trees after the best iteration are not used in predictions
        booster = booster[: parsed.rounds]
    if parsed.objective == "multi:softmax":
        booster.set_param({"objective": "multi:softprob"})
    convert = partial(_by_onnxmltools, tools.convert_xgboost, booster, parsed.features)
    return ConversionSource(
        model=load_model(path, "xgboost"),
        ways=(Way(computes=Datatype.FP32, convert=convert),),
        converter=with_version("onnxmltools"),
        library=with_version("xgboost", "xgboost-cpu"),
        hint=_XGBOOST_HINT,
    )


def open_lightgbm(path: Path, *, allow_code: bool) -> ConversionSource:
    """Open a LightGBM file, which holds no code."""
    from headrace.optimize.convert.tree_graph import lightgbm_graph, lightgbm_thresholds  # noqa: PLC0415  # needs onnx, which an extra brings

    del allow_code
    parsed = read_lightgbm(path)
    if parsed.is_categorical:
        raise UnsupportedModelError(f"{path}: {CATEGORICAL}")
    tools = import_converter("onnxmltools")
    booster = import_library("lightgbm", "lightgbm").Booster(model_str=parsed.text)

    def in_doubles() -> Graph:
        try:
            return lightgbm_graph(parsed.text)
        except UnsupportedModelError as error:
            raise UnsupportedModelError(f"{path}: {error}") from error

    convert = partial(
        _by_onnxmltools, tools.convert_lightgbm, booster, parsed.features, zipmap=False
    )
    return ConversionSource(
        model=load_model(path, "lightgbm"),
        ways=(
            Way(computes=Datatype.FP64, convert=in_doubles, converter=with_version("headrace")),
            Way(computes=Datatype.FP32, convert=convert),
        ),
        converter=with_version("onnxmltools"),
        library=with_version("lightgbm"),
        thresholds=lightgbm_thresholds(parsed.text),
    )


def _by_onnxmltools(convert: Any, booster: Any, features: int, **settings: bool) -> Graph:  # noqa: ANN401  # ship no types
    types = import_converter("onnxmltools.convert.common.data_types")
    inputs = [(INPUT, types.FloatTensorType([None, features]))]
    return convert(booster, name="model", initial_types=inputs, target_opset=_OPSET, **settings)
