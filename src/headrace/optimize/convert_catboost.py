"""CatBoost's trees as ONNX, by CatBoost itself."""

import tempfile
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
from headrace.runtimes.catboost_file import read_catboost
from headrace.runtimes.tabular import import_library

_NAMES: Final = {"onnx_domain": "headrace", "onnx_graph_name": "model"}


def open_source(path: Path, *, allow_code: bool) -> Source:
    """A file of CatBoost's; nothing in it runs."""
    del allow_code
    found = read_catboost(path)
    if found.is_categorical:
        raise UnsupportedModelError(f"{path}: {CATEGORICAL}")
    model = load_model(path, "catboost")
    booster = import_library("catboost", "catboost").CatBoost().load_model(blob=found.data)
    return Source(
        model=model,
        ways=(Way(computes=Datatype.FP32, convert=partial(_convert, booster)),),
        converter=with_version("catboost"),
        library=with_version("catboost"),
    )


def _convert(booster: Any) -> Graph:  # noqa: ANN401  # ships no types
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        booster.save_model(str(file), format="onnx", export_parameters=_NAMES)
        return import_converter("onnx").load_model(str(file))
