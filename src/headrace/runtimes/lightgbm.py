"""Run LightGBM's trees with LightGBM."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.core import Array, Datatype
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.lightgbm_file import looks_like_lightgbm, read_lightgbm
from headrace.runtimes.tabular import (
    LABEL,
    PREDICTION,
    PROBABILITIES,
    Answer,
    import_library,
    open_tabular,
    reason_of,
    refuse,
    two_classes,
)

_BINARY: Final = "binary"
_CLASSES: Final = ("multiclass", "multiclassova")


class LightgbmRuntime:
    """Loads `.txt` and `.lgb`, as `save_model` writes them."""

    name = "lightgbm"
    runs_code = False
    libraries = ("lightgbm",)
    extra = "lightgbm"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like LightGBM's, by its name and first line."""
        return looks_like_lightgbm(path)

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, for the CPU."""
        return _open(path, options)


def _open(path: Path, options: LoadOptions) -> Model:
    found = read_lightgbm(path)
    library = import_library("lightgbm", "lightgbm")
    try:
        booster = library.Booster(model_str=found.text)
    except Exception as error:
        raise refuse(path, f"LightGBM refuses it: {reason_of(error)}") from error
    predict = partial(_predict, booster, options.intra_op_threads)
    # Predictions share a read lock inside the library, and ctypes releases the GIL. It compares in
    # doubles: a value rounded to FP32 could go down the other branch.
    return open_tabular(
        path,
        _answers(found.objective, predict),
        features=found.features,
        datatype=Datatype.FP64,
        concurrent=True,
        names=booster.feature_name(),
    )


def _predict(booster: Any, threads: int, rows: Array) -> Array:  # noqa: ANN401  # ships no types
    answer: Array = booster.predict(rows, num_threads=threads)
    return answer


def _answers(objective: str, predict: Answer) -> Mapping[str, Answer]:
    if objective == _BINARY:
        return {
            LABEL: lambda rows: two_classes(predict(rows)).argmax(axis=1).astype(np.int64),
            PROBABILITIES: lambda rows: two_classes(predict(rows)),
        }
    if objective in _CLASSES:
        return {
            LABEL: lambda rows: predict(rows).argmax(axis=1).astype(np.int64),
            PROBABILITIES: predict,
        }
    return {PREDICTION: predict}
