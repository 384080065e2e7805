"""LightGBM's trees as ONNX: in doubles, by Headrace itself.

What that does not know is left to onnxmltools, and compares in FP32 then.
"""

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
from headrace.runtimes.lightgbm_file import read_lightgbm
from headrace.runtimes.tabular import INPUT, import_library

OPSET: Final = 15
"""The newest that onnxmltools writes."""


def open_source(path: Path, *, allow_code: bool) -> Source:
    """A file of LightGBM's; nothing in it runs."""
    from headrace.optimize.tree_graph import lightgbm_thresholds  # noqa: PLC0415  # needs onnx, which an extra brings

    del allow_code
    found = read_lightgbm(path)
    if found.is_categorical:
        raise UnsupportedModelError(f"{path}: {CATEGORICAL}")
    tools = import_converter("onnxmltools")
    model = load_model(path, "lightgbm")
    booster = import_library("lightgbm", "lightgbm").Booster(model_str=found.text)
    convert = partial(_convert, tools, booster, found.features)
    return Source(
        model=model,
        ways=(
            Way(
                computes=Datatype.FP64,
                convert=partial(_in_doubles, path, found.text),
                converter=with_version("headrace"),
            ),
            Way(computes=Datatype.FP32, convert=convert),
        ),
        converter=with_version("onnxmltools"),
        library=with_version("lightgbm"),
        thresholds=lightgbm_thresholds(found.text),
    )


def _in_doubles(path: Path, text: str) -> Graph:
    from headrace.optimize.tree_graph import lightgbm_graph  # noqa: PLC0415  # needs onnx, which an extra brings

    try:
        return lightgbm_graph(text)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(f"{path}: {error}") from error


def _convert(tools: Any, booster: Any, features: int) -> Graph:  # noqa: ANN401  # ship no types
    types = import_converter("onnxmltools.convert.common.data_types")
    given = [(INPUT, types.FloatTensorType([None, features]))]
    return tools.convert_lightgbm(
        booster, name="model", initial_types=given, target_opset=OPSET, zipmap=False
    )
