"""Run XGBoost's trees with XGBoost."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.core import Array, Datatype
from headrace.runtimes.base import LoadOptions, Model
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
from headrace.runtimes.xgboost_file import looks_like_xgboost, read_xgboost

_BINARY: Final = "binary:logistic"
_CLASSES: Final = ("multi:softprob", "multi:softmax")
_HALF: Final = 0.5


class XgboostRuntime:
    """Loads `.json` and `.ubj`, as `save_model` writes them."""

    name = "xgboost"
    runs_code = False
    libraries = ("xgboost",)
    extra = "xgboost"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like XGBoost's, by its name and first bytes."""
        return looks_like_xgboost(path)

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, for the CPU."""
        return _open(path, options)


def _open(path: Path, options: LoadOptions) -> Model:
    found = read_xgboost(path)
    library = import_library("xgboost", "xgboost")
    try:
        booster = library.Booster(model_file=str(path))
        booster.set_param({"nthread": options.intra_op_threads, "device": "cpu"})
        if found.objective == "multi:softmax":
            # It only says which class; its sibling, from the same trees, also how sure it is.
            booster.set_param({"objective": "multi:softprob"})
    except Exception as error:
        raise refuse(path, f"XGBoost refuses it: {reason_of(error)}") from error
    predict = partial(_predict, booster, found.rounds)
    # `inplace_predict` takes no lock and is documented as safe to call from several threads; it
    # is called by ctypes, which releases the GIL. What it sets up once, the first run below does.
    return open_tabular(
        path,
        _answers(found.objective, predict),
        features=found.features,
        datatype=Datatype.FP32,
        concurrent=True,
        names=booster.feature_names,
    )


def _predict(booster: Any, rounds: int, rows: Array) -> Array:  # noqa: ANN401  # ships no types
    """As its `predict` answers, bit for bit, without a DMatrix for each batch."""
    answer: Array = booster.inplace_predict(
        rows, iteration_range=(0, rounds), missing=np.nan, validate_features=False
    )
    return answer


def _answers(objective: str, predict: Answer) -> Mapping[str, Answer]:
    if objective == _BINARY:
        return {
            LABEL: lambda rows: (predict(rows) > _HALF).astype(np.int64),
            PROBABILITIES: lambda rows: two_classes(predict(rows)),
        }
    if objective in _CLASSES:
        return {
            LABEL: lambda rows: predict(rows).argmax(axis=1).astype(np.int64),
            PROBABILITIES: predict,
        }
    return {PREDICTION: predict}
