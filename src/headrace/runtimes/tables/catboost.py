"""Runtime of CatBoost's trees, and the checks of its files.

A file is checked before CatBoost reads it: the library ends the process if a file is truncated, if
the settings in it are not JSON, or if a tree refers to a leaf that does not exist. Schema:
https://github.com/catboost/catboost/tree/master/catboost/libs/model/flatbuffers
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from headrace.core import Array, Datatype, Tensors, error_kind
from headrace.runtimes.base import LoadOptions, Model
from headrace.runtimes.file_bytes import FlatbufferTable
from headrace.runtimes.tables.tabular import (
    LABEL,
    PREDICTION,
    PROBABILITIES,
    Column,
    OutputLayout,
    TableInputs,
    as_label,
    check_features,
    corrupt,
    import_library,
    open_tabular,
    read_all,
    read_head,
    refuse,
    texts_of,
)

_MAGIC: Final = b"CBM1"
_HEAD_BYTES: Final = 8
_MAX_DIMENSION: Final = 100_000
_MAX_DEPTH: Final = 31
_BORDERS_A_BYTE: Final = 254
"""Number of borders above which a feature takes several bytes after quantization."""
_CATEGORIES: Final = (4, 6, 7)
"""Fields of categorical features, of splits by one category, and of category statistics."""
_REFUSED: Final = {
    12: "a text feature",
    13: "a feature that is made of a text or an embedding",
    18: "an embedding",
}
_JSON: Final = ("params", "class_params", "output_options", "training")


@dataclass(frozen=True, slots=True, kw_only=True)
class CatboostFile:
    """Facts about a model that are needed before it is loaded; `data` is its content."""

    features: int
    loss: str
    data: bytes
    is_categorical: bool = False
    """Whether a feature is categorical. The category statistics follow the trees; then neither of
    them is checked.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trees:
    """Lists of indices and sizes that CatBoost follows."""

    splits: Array
    sizes: Array
    starts: Array
    leaf_values: int
    steps: Array
    leaves: Array
    dimension: int


def looks_like_catboost(path: Path) -> bool:
    """Whether `path` is a file with CatBoost's first bytes."""
    return path.is_file() and read_head(path, len(_MAGIC)) == _MAGIC


def read_catboost(path: Path) -> CatboostFile:
    """Read and check a file.

    Raises:
        UnsupportedModelError: It is damaged, or not supported; the message says why.
    """
    data = read_all(path)
    if not data.startswith(_MAGIC):
        raise refuse(path, "is not a CatBoost model: it does not begin with CBM1")
    try:
        (size,) = struct.unpack_from("<I", data, len(_MAGIC))
        core = FlatbufferTable.root(data[_HEAD_BYTES : _HEAD_BYTES + size])
        if _HEAD_BYTES + size > len(data):
            raise corrupt(path, f"it should have {_HEAD_BYTES + size} bytes but has {len(data)}")
        trees = core.table(1)
        if trees is None:
            raise corrupt(path, "it has no trees")
        for field, description in _REFUSED.items():
            if trees.length(field):
                msg = (
                    f"takes {description}, which a matrix of numbers cannot carry; train on "
                    "numbers only"
                )
                raise refuse(path, msg)
        if any(trees.length(field) for field in _CATEGORIES):
            features = trees.length(_CATEGORIES[0]) + trees.length(5)
            check_features(path, features)
            return CatboostFile(features=features, loss=_loss(core), data=data, is_categorical=True)
        if core.length(3) or _HEAD_BYTES + size != len(data):
            raise corrupt(path, "data follows the model")
        features = _check_features(path, trees)
        _check_trees(path, trees)
        return CatboostFile(features=features, loss=_loss(core), data=data)
    except (KeyError, TypeError, ValueError, struct.error, RecursionError) as error:
        raise corrupt(path, error_kind(error)) from None


def _loss(core: FlatbufferTable) -> str:
    """Return the loss that the model was trained with; empty if it is not stored."""
    settings: dict[str, Any] = {}
    for pair in core.tables(2):
        key, value = pair.text(0), pair.text(1)
        settings[key] = json.loads(value) if key in _JSON else value
    return str(settings.get("params", {}).get("loss_function", {}).get("type", ""))


def _check_features(path: Path, trees: FlatbufferTable) -> int:
    """Return the number of features after checking that each is at its column's position."""
    count = trees.length(5)
    check_features(path, count)
    for number, feature in enumerate(trees.tables(5)):
        if not feature.number(1, "<i", -1) == feature.number(2, "<i", -1) == number:
            raise corrupt(path, f"feature {number} has the wrong column")
    return count


def _check_trees(path: Path, table: FlatbufferTable) -> None:
    trees = _Trees(
        splits=table.array(1, "<i4"),
        sizes=table.array(2, "<i4").astype(np.int64),
        starts=table.array(3, "<i4"),
        leaf_values=len(table.array(8, "<f8")),
        steps=table.array(10, "<u4").view("<u2").reshape(-1, 2).astype(np.int64),
        leaves=table.array(11, "<u4").astype(np.int64),
        dimension=int(table.number(0, "<i", 0)),
    )
    if not 1 <= trees.dimension <= _MAX_DIMENSION:
        raise corrupt(path, f"it has {trees.dimension} outputs per row")
    if table.length(9) not in {0, trees.leaf_values // trees.dimension}:
        raise corrupt(path, "some leaves have no weight")
    if table.length(16) not in {0, trees.dimension}:
        raise corrupt(path, "its bias has the wrong dimension")
    _check_splits(path, table, trees)
    if len(trees.steps) or len(trees.leaves):
        _check_uneven(path, trees)
    else:
        _check_even(path, trees)


def _check_splits(path: Path, table: FlatbufferTable, trees: _Trees) -> None:
    borders = np.array([feature.length(3) for feature in table.tables(5)], np.int64)
    splits = trees.splits
    if splits.size and not (splits.min() >= 0 and splits.max() < borders.sum()):
        raise corrupt(path, "a tree splits at an unknown border")
    packed = table.array(17, "<u4") & 0xFFFF
    maximum = int((-(-borders // _BORDERS_A_BYTE)).sum())
    if packed.size and (len(packed) != len(splits) or packed.max() >= maximum):
        raise corrupt(path, "a tree uses an unknown feature")
    ends = np.cumsum(trees.sizes)
    if trees.sizes.min(initial=0) < 0 or int(ends[-1] if ends.size else 0) != len(splits):
        raise corrupt(path, "its trees have the wrong number of splits")
    if not np.array_equal(trees.starts, ends - trees.sizes):
        raise corrupt(path, "a tree begins at the wrong position")


def _check_even(path: Path, trees: _Trees) -> None:
    """Check trees whose levels split alike: a tree of n levels has 2^n leaves."""
    if trees.sizes.max(initial=0) > _MAX_DEPTH:
        raise corrupt(path, f"a tree has more than {_MAX_DEPTH} levels")
    leaves = int((1 << trees.sizes).sum())
    if leaves * trees.dimension != trees.leaf_values:
        raise corrupt(path, f"it has {trees.leaf_values} leaf values for {leaves} leaves")


def _check_uneven(path: Path, trees: _Trees) -> None:
    """Check trees whose nodes hold the distance to their children; 0 means a leaf."""
    if not len(trees.steps) == len(trees.leaves) == len(trees.splits):
        raise corrupt(path, "some splits have no node")
    end = np.repeat(trees.starts.astype(np.int64) + trees.sizes, trees.sizes)
    if (np.arange(len(end))[:, None] + trees.steps >= end[:, None]).any():
        raise corrupt(path, "a node has its child in another tree")
    ending = (trees.steps == 0).any(axis=1)
    if trees.leaves[ending].max(initial=0) + trees.dimension > trees.leaf_values:
        raise corrupt(path, "a node has an unknown leaf")


_CLASSES: Final = ("Logloss", "CrossEntropy", "MultiClass", "MultiClassOneVsAll", "Focal")
_MANY_LABELS: Final = ("MultiLogloss", "MultiCrossEntropy")
_PREDICTION_TYPES: Final = {
    "Poisson": "Exponent",
    "Tweedie": "Exponent",
    "RMSEWithUncertainty": "RMSEWithUncertainty",
}
"""Output of `CatBoostRegressor.predict` by loss, where it is not the sum of the leaves."""
_TWO: Final = 2
_ROUNDING: Final = 1e-9
"""Far more than the rounding error of the probabilities."""


class CatboostRuntime:
    """Loader of `.cbm`, as `save_model` writes it."""

    name = "catboost"
    runs_code = False
    libraries = ("catboost",)
    extra = "catboost"

    def recognises(self, path: Path) -> bool:
        """Whether `path` looks like CatBoost's format, by its name and first bytes."""
        return looks_like_catboost(path)

    def code_in(self, path: Path) -> str:
        """Return which parts of the file can crash the process if manipulated; empty for none."""
        if not read_catboost(path).is_categorical:
            return ""
        return (
            "it has categorical features, whose statistics CatBoost reads without checks: a"
            " manipulated file may crash the process, or worse"
        )

    def load(self, path: Path, options: LoadOptions) -> Model:
        """Load the model, for the CPU."""
        file = read_catboost(path)
        if file.loss in _MANY_LABELS:
            raise refuse(path, f"returns several labels per row ({file.loss}); one is supported")
        if not file.loss:
            msg = "does not name its training loss, so the meaning of its predictions is unknown"
            raise refuse(path, msg)
        library = import_library("catboost", "catboost")
        is_classifier = file.loss in _CLASSES
        try:
            kind = library.CatBoostClassifier if is_classifier else library.CatBoost
            model = kind().load_model(blob=file.data)
        except Exception as error:  # noqa: BLE001  # its message may quote the file
            raise refuse(path, f"CatBoost refuses it: {error_kind(error)}") from None
        categorical = tuple(model.get_cat_feature_indices())
        predictor = _Predictor(
            library=library,
            model=model,
            threads=options.intra_op_threads,
            categorical=categorical,
        )
        table = _table(path, file, model.feature_names_, categorical)
        # Applying a model does not change it and releases the GIL; only creating the Pool holds the
        # GIL.
        return open_tabular(
            path,
            _classes(predictor, table) if is_classifier else _values(predictor, file.loss),
            table,
            concurrent=True,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Predictor:
    """CatBoost's own `predict`, with the explicit Pool that it would create from an array."""

    library: Any
    model: Any
    threads: int
    categorical: tuple[int, ...]

    def pool(self, rows: Array) -> Any:  # noqa: ANN401  # ships no types
        """Return the Pool of rows."""
        some = list(self.categorical) or None
        return self.library.Pool(rows, cat_features=some, thread_count=self.threads)

    def predict(self, pool: Any, kind: str) -> Array:  # noqa: ANN401  # ships no types
        """Return the result of CatBoost's `predict`."""
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
    """A classification model.

    Asking CatBoost for the class takes longer than all other outputs and adds little.
    """

    predictor: _Predictor
    labels: Array | None
    """Class labels by column of the probabilities; None if unknown."""
    threshold: float
    """The probability above which the second of two classes is predicted; a model may set it."""

    def find(self, rows: Array) -> _Found:
        """Return the data from which all outputs are computed."""
        pool = self.predictor.pool(rows)
        return _Found(pool=pool, probabilities=self.predictor.predict(pool, "Probability"))

    def label(self, prediction: _Found) -> Array:
        """Return the class of each row: by probabilities, or by CatBoost if rounding could decide.

        CatBoost compares the sums of the leaves. Probabilities increase with them, but two sums can
        give the same probability.
        """
        by_class = prediction.probabilities
        column = None if self.labels is None else self._likeliest(by_class)
        if column is None or self.labels is None:
            classes = self.predictor.predict(prediction.pool, "Class")
            return as_label(classes.reshape(len(by_class)))
        labels: Array = self.labels[column]
        return labels

    def _likeliest(self, by_class: Array) -> Array | None:
        """Return the column of each row's class; None if two are too close to decide."""
        if by_class.shape[1] == _TWO:
            second = by_class[:, 1]
            is_clear = (np.abs(second - self.threshold) > _ROUNDING).all()
            return (second > self.threshold).astype(np.intp) if is_clear else None
        first = np.partition(by_class, -2, axis=1)
        is_clear = (first[:, -1] - first[:, -2] > _ROUNDING).all()
        return np.asarray(by_class.argmax(axis=1)) if is_clear else None


def _table(
    path: Path, file: CatboostFile, names: Sequence[str], categorical: Sequence[int]
) -> TableInputs:
    """Return one matrix, or one input for each column if there are categories (strings)."""
    if not categorical:
        return TableInputs.of_matrix(path, file.features, Datatype.FP32, names)
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


def _classes(predictor: _Predictor, table: TableInputs) -> OutputLayout[_Found]:
    probe = predictor.pool(table.rows(table.example(1)))
    label = as_label(predictor.predict(probe, "Class").reshape(1))
    columns = predictor.predict(probe, "Probability").shape[1]
    labels = as_label(np.asarray(predictor.model.classes_))
    is_known = labels.dtype == label.dtype and labels.shape == (columns,) and columns >= _TWO
    threshold = predictor.model.get_probability_threshold()
    classifier = _Classifier(
        predictor=predictor,
        labels=labels if is_known else None,
        threshold=0.5 if threshold is None else float(threshold),
    )
    return OutputLayout(
        predict=classifier.find,
        outputs={
            LABEL: classifier.label,
            PROBABILITIES: lambda prediction: prediction.probabilities,
        },
    )


def _values(predictor: _Predictor, loss: str) -> OutputLayout[Array]:
    kind = _PREDICTION_TYPES.get(loss, "RawFormulaVal")
    return OutputLayout(
        predict=lambda rows: predictor.predict(predictor.pool(rows), kind),
        outputs={PREDICTION: lambda values: values},
    )
