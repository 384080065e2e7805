"""Runtime of CatBoost's trees, by CatBoost."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.core import Array, Datatype, Tensors, error_kind
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.catboost_file import CatboostFile, looks_like_catboost, read_catboost
from headrace.runtimes.tabular import (
    LABEL,
    PREDICTION,
    PROBABILITIES,
    Answers,
    Column,
    TableInputs,
    as_label,
    import_library,
    open_tabular,
    refuse,
    texts_of,
)

_CLASSES: Final = ("Logloss", "CrossEntropy", "MultiClass", "MultiClassOneVsAll", "Focal")
_MANY_LABELS: Final = ("MultiLogloss", "MultiCrossEntropy")
_PREDICTION_TYPES: Final = {
    "Poisson": "Exponent",
    "Tweedie": "Exponent",
    "RMSEWithUncertainty": "RMSEWithUncertainty",
}
"""By loss: what `CatBoostRegressor.predict` returns where it is not the sum of the leaves."""
_TWO: Final = 2
_ROUNDING: Final = 1e-9
"""Far more than the probabilities are rounded by."""


class CatboostRuntime:
    """Loads `.cbm`, as `save_model` writes it."""

    name = "catboost"
    runs_code = False
    libraries = ("catboost",)
    extra = "catboost"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like CatBoost's, by its name and first bytes."""
        return looks_like_catboost(path)

    def code_in(self, path: Path) -> str:
        """Whether the file holds what can end the process if somebody tampered with it."""
        if not read_catboost(path).is_categorical:
            return ""
        return (
            "it has categorical features, whose statistics CatBoost follows without a check: a "
            "file that was tampered with may end the process, or worse"
        )

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, for the CPU."""
        return _open(path, options)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Predictor:
    """CatBoost's own `predict`: by way of a Pool, which is what it makes of an array anyway."""

    library: Any
    model: Any
    threads: int
    categorical: tuple[int, ...]

    def pool(self, rows: Array) -> Any:  # noqa: ANN401  # ships no types
        """What rows become before CatBoost predicts."""
        some = list(self.categorical) or None
        return self.library.Pool(rows, cat_features=some, thread_count=self.threads)

    def predict(self, pool: Any, kind: str) -> Array:  # noqa: ANN401  # ships no types
        """What its `predict` returns."""
        answer: Array = self.model.predict(
            pool, prediction_type=kind, thread_count=self.threads, task_type="CPU"
        )
        return answer


@dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """A batch, and the probabilities of its rows."""

    pool: Any
    probabilities: Array


@dataclass(frozen=True, slots=True, kw_only=True)
class _Classifier:
    """A model of classes. To ask for the class takes longer than all the rest, and says little new.

    `labels`: by column of the probabilities; None where that is not known. `threshold`: the
    probability above which the second of two classes is meant; a model may have one of its own.
    """

    predictor: _Predictor
    labels: Array | None
    threshold: float

    def find(self, rows: Array) -> _Found:
        """What all answers are made of."""
        pool = self.predictor.pool(rows)
        return _Found(pool=pool, probabilities=self.predictor.predict(pool, "Probability"))

    def label(self, found: _Found) -> Array:
        """The class of each row: by its probabilities, or by CatBoost where rounding could decide.

        CatBoost compares the sums of the leaves. Probabilities rise with them, but two sums can
        become the same one.
        """
        by_class = found.probabilities
        column = None if self.labels is None else self._likeliest(by_class)
        if column is None or self.labels is None:
            asked = self.predictor.predict(found.pool, "Class")
            return as_label(asked.reshape(len(by_class)))
        labels: Array = self.labels[column]
        return labels

    def _likeliest(self, by_class: Array) -> Array | None:
        """Which column each row's class has; None where that is too close to say."""
        if by_class.shape[1] == _TWO:
            second = by_class[:, 1]
            is_clear = (np.abs(second - self.threshold) > _ROUNDING).all()
            return (second > self.threshold).astype(np.intp) if is_clear else None
        first = np.partition(by_class, -2, axis=1)
        is_clear = (first[:, -1] - first[:, -2] > _ROUNDING).all()
        return np.asarray(by_class.argmax(axis=1)) if is_clear else None


def _open(path: Path, options: LoadOptions) -> Model:
    found = read_catboost(path)
    if found.loss in _MANY_LABELS:
        raise refuse(path, f"gives several labels to a row ({found.loss}); one is served")
    if not found.loss:
        msg = "does not say which loss it was trained with, so what it predicts is not known"
        raise refuse(path, msg)
    library = import_library("catboost", "catboost")
    is_classifier = found.loss in _CLASSES
    try:
        kind = library.CatBoostClassifier if is_classifier else library.CatBoost
        model = kind().load_model(blob=found.data)
    except Exception as error:  # noqa: BLE001  # its message may quote the file
        raise refuse(path, f"CatBoost refuses it: {error_kind(error)}") from None
    categorical = tuple(model.get_cat_feature_indices())
    predictor = _Predictor(
        library=library,
        model=model,
        threads=options.intra_op_threads,
        categorical=categorical,
    )
    table = _table(path, found, model.feature_names_, categorical)
    # Applying a model changes nothing in it and releases the GIL; only making the Pool keeps it.
    return open_tabular(
        path,
        _classes(predictor, table) if is_classifier else _values(predictor, found.loss),
        table,
        concurrent=True,
    )


def _table(
    path: Path, found: CatboostFile, names: Sequence[str], categorical: Sequence[int]
) -> TableInputs:
    """One matrix; one input for each column where there are categories, which are texts."""
    if not categorical:
        return TableInputs.of_matrix(path, found.features, Datatype.FP32, names)
    columns = [
        Column(name=name, datatype=Datatype.BYTES, example=b"a")
        if number in categorical
        else Column(name=name, datatype=Datatype.FP32)
        for number, name in enumerate(names)
    ]

    def rows(inputs: Tensors) -> Array:
        table = np.empty((len(inputs[names[0]]), len(columns)), np.object_)
        for number, name in enumerate(names):
            values = inputs[name]
            table[:, number] = texts_of(name, values) if number in categorical else values.tolist()
        return table

    return TableInputs.of_columns(path, columns, rows)


def _classes(predictor: _Predictor, table: TableInputs) -> Answers[_Found]:
    probe = predictor.pool(table.rows(table.example(1)))
    asked = as_label(predictor.predict(probe, "Class").reshape(1))
    columns = predictor.predict(probe, "Probability").shape[1]
    labels = as_label(np.asarray(predictor.model.classes_))
    is_known = labels.dtype == asked.dtype and labels.shape == (columns,) and columns >= _TWO
    threshold = predictor.model.get_probability_threshold()
    classifier = _Classifier(
        predictor=predictor,
        labels=labels if is_known else None,
        threshold=0.5 if threshold is None else float(threshold),
    )
    return Answers(
        predict=classifier.find,
        outputs={LABEL: classifier.label, PROBABILITIES: lambda found: found.probabilities},
    )


def _values(predictor: _Predictor, loss: str) -> Answers[Array]:
    kind = _PREDICTION_TYPES.get(loss, "RawFormulaVal")
    return Answers(
        predict=lambda rows: predictor.predict(predictor.pool(rows), kind),
        outputs={PREDICTION: lambda found: found},
    )
