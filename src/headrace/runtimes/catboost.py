"""Run CatBoost's trees with CatBoost."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from headrace.core import Array, Datatype
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.catboost_file import looks_like_catboost, read_catboost
from headrace.runtimes.tabular import (
    LABEL,
    PREDICTION,
    PROBABILITIES,
    Answer,
    as_label,
    import_library,
    open_tabular,
    reason_of,
    refuse,
)

_CLASSES: Final = ("Logloss", "CrossEntropy", "MultiClass", "MultiClassOneVsAll", "Focal")
_MANY_LABELS: Final = ("MultiLogloss", "MultiCrossEntropy")
_PREDICTION_TYPES: Final = {
    "Poisson": "Exponent",
    "Tweedie": "Exponent",
    "RMSEWithUncertainty": "RMSEWithUncertainty",
}
"""By loss: what `CatBoostRegressor.predict` returns where it is not the sum of the leaves."""


class CatboostRuntime:
    """Loads `.cbm`, as `save_model` writes it."""

    name = "catboost"
    runs_code = False
    libraries = ("catboost",)
    extra = "catboost"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like CatBoost's, by its name and first bytes."""
        return looks_like_catboost(path)

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, for the CPU."""
        return _open(path, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Predictor:
    """CatBoost's own `predict`: by way of a Pool, which is what it makes of an array anyway."""

    library: Any
    model: Any
    threads: int

    def __call__(self, kind: str, rows: Array) -> Array:
        pool = self.library.Pool(rows, thread_count=self.threads)
        answer: Array = self.model.predict(
            pool, prediction_type=kind, thread_count=self.threads, task_type="CPU"
        )
        return answer

    def label(self, rows: Array) -> Array:
        """Not the likeliest class by the probabilities: a model may have a threshold of its own."""
        return as_label(self("Class", rows).reshape(len(rows)))


def _open(path: Path, options: LoadOptions) -> Model:
    found = read_catboost(path)
    if found.loss in _MANY_LABELS:
        raise refuse(path, f"gives several labels to a row ({found.loss}); one is served")
    if not found.loss:
        msg = "does not say which loss it was trained with, so what it predicts is not known"
        raise refuse(path, msg)
    library = import_library("catboost", "catboost")
    try:
        model = library.CatBoost().load_model(blob=found.data)
    except Exception as error:
        raise refuse(path, f"CatBoost refuses it: {reason_of(error)}") from error
    predict = _Predictor(library=library, model=model, threads=options.intra_op_threads)
    # Applying a model changes nothing in it and releases the GIL; only making the Pool keeps it.
    return open_tabular(
        path,
        _answers(found.loss, predict),
        features=found.features,
        datatype=Datatype.FP32,
        concurrent=True,
        names=model.feature_names_,
    )


def _answers(loss: str, predict: _Predictor) -> Mapping[str, Answer]:
    if loss in _CLASSES:
        return {LABEL: predict.label, PROBABILITIES: partial(predict, "Probability")}
    return {PREDICTION: partial(predict, _PREDICTION_TYPES.get(loss, "RawFormulaVal"))}
