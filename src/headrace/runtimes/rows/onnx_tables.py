"""Operators of `ai.onnx.ml`, for models of tables."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from headrace.runtimes.rows.onnx_call import Call, Operator
from headrace.runtimes.rows.symbols import Size, product
from headrace.runtimes.rows.transfer import Results
from headrace.runtimes.rows.values import (
    MixedRowsError,
    Value,
)


def _row_scores(call: Call) -> Results:
    """Models of tables: a matrix in, one value or vector for each row out."""
    value = call.value()
    if value.rows is None:
        return [Value(), Value()]
    if value.rank != 2:  # noqa: PLR2004
        raise MixedRowsError("takes a table, and gets no matrix")
    if not call.node.operator.endswith("Classifier"):
        targets = "targets" if call.node.operator == "LinearRegressor" else "n_targets"
        return call.transfer.by_row([value], [Size(call.integer(targets, 1))])
    classes = max(
        call.count(name)
        for name in ("classlabels_int64s", "classlabels_ints", "classlabels_strings")
    )
    # Machines of support vectors may give a score for each pair of classes.
    is_known = classes and not call.node.operator.startswith("SVM")
    scores = call.transfer.by_row([value], [Size(classes) if is_known else None])
    return [call.transfer.by_row([value], []), scores]


def _last_axis(call: Call) -> Results:
    value = call.value()
    if value.rows is not None and value.rows.axis != 0:
        raise MixedRowsError("runs along the batch axis")
    if value.rows is not None and value.rank == 1 and call.node.operator == "Normalizer":
        raise MixedRowsError("normalises along the batch axis")
    if value.rows is not None and value.rank == 1 and call.node.operator in {"Scaler", "Imputer"}:
        raise MixedRowsError("has parameters along the batch axis")
    return Value(shape=value.shape, rows=value.rows)


def _category_vector(call: Call) -> Results:
    value = call.value()
    if value.rows is None:
        return Value()
    wide = call.transfer.unsqueeze(replace(value, elements=None), [-1])
    return call.transfer.resized(wide, {-1: call.transfer.symbols.unknown(minimum=1)})


def _feature_vector(call: Call) -> Results:
    if any(value.rows is None or value.rank != 2 for value in call.present()):  # noqa: PLR2004
        raise MixedRowsError("joins rows to what has no batch axis")
    return call.transfer.concat(call.present(), 1)


def _extract_features(call: Call) -> Results:
    value, indices = call.value(0), call.value(1)
    if value.rows is None and indices.rows is None:
        return Value()
    flat = indices
    if indices.shape is not None and len(indices.shape) != 1:
        flat = call.transfer.reshape(indices, [product(indices.shape)])
    if value.shape is not None and len(value.shape) == 1:
        if value.rows is not None:
            raise MixedRowsError("takes some rows of the batch")
        value = call.transfer.unsqueeze(value, [0])
    return call.transfer.gather(replace(value, elements=None), replace(flat, elements=None), -1)


def _ngrams(call: Call) -> Results:
    value = call.value()
    if value.rows is not None and (value.rank != 2 or value.rows.axis != 0):  # noqa: PLR2004
        raise MixedRowsError("counts through all rows")
    return call.transfer.by_row([value], [None])


TABLES: Final[Mapping[str, Operator]] = {
    "TreeEnsembleClassifier": _row_scores,
    "TreeEnsembleRegressor": _row_scores,
    "TreeEnsemble": _row_scores,
    "LinearClassifier": _row_scores,
    "LinearRegressor": _row_scores,
    "SVMClassifier": _row_scores,
    "SVMRegressor": _row_scores,
    "Scaler": _last_axis,
    "Imputer": _last_axis,
    "Normalizer": _last_axis,
    "OneHotEncoder": _category_vector,
    "FeatureVectorizer": _feature_vector,
    "ArrayFeatureExtractor": _extract_features,
}
"""Of `ai.onnx.ml`."""

NGRAMS: Final[Mapping[str, Operator]] = {"TfIdfVectorizer": _ngrams}
"""Of `ai.onnx`."""
