"""Runtime of XGBoost's trees, by XGBoost."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from headrace.core import Datatype, error_kind
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.tabular import (
    LABEL,
    PREDICTION,
    PROBABILITIES,
    Answer,
    Answers,
    CodedColumns,
    TableInputs,
    import_library,
    open_tabular,
    refuse,
    two_classes,
)
from headrace.runtimes.xgboost_file import XgboostFile, looks_like_xgboost, read_xgboost
from headrace.runtimes.xgboost_predict import DirectPredictor

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
        predict = DirectPredictor(library, booster, rounds=found.rounds)
    except Exception as error:  # noqa: BLE001  # its message may quote the file
        raise refuse(path, f"XGBoost refuses it: {error_kind(error)}") from None
    # `XGBoosterPredictFromDense` takes no lock and is documented as safe to call from several
    # threads; it is called by ctypes, which releases the GIL. What it sets up once, the first run
    # below does.
    return open_tabular(
        path,
        Answers(predict=predict, outputs=_outputs(found.objective)),
        _table(path, found),
        concurrent=True,
    )


def _table(path: Path, found: XgboostFile) -> TableInputs:
    """One matrix; one input for each column where the file says what the categories are called."""
    if not found.categories:
        return TableInputs.of_matrix(path, found.features, Datatype.FP32, found.names)
    columns = CodedColumns(
        names=found.names or [f"f{i}" for i in range(found.features)],
        categories=found.categories,
        datatype=Datatype.FP32,
        unseen_is_missing=False,
    )
    return columns.inputs(path)


def _outputs(objective: str) -> Mapping[str, Answer]:
    if objective == _BINARY:
        return {
            LABEL: lambda found: (found > _HALF).astype(np.int64),
            PROBABILITIES: two_classes,
        }
    if objective in _CLASSES:
        return {
            LABEL: lambda found: found.argmax(axis=1).astype(np.int64),
            PROBABILITIES: lambda found: found,
        }
    return {PREDICTION: lambda found: found}
