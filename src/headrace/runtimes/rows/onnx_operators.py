"""ONNX operators along axes and for tables, and the table of all known operators.

Sources: the operator references of ONNX (`ai.onnx`, `ai.onnx.ml`) and of ONNX Runtime's contrib
operators (`com.microsoft`).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from headrace.runtimes.rows.onnx_graph import Call, Operator
from headrace.runtimes.rows.onnx_products import CONTRIB_PRODUCTS, PRODUCTS
from headrace.runtimes.rows.onnx_shapes import CONTRIB_ELEMENTS, ELEMENTS
from headrace.runtimes.rows.operators import Results, elementwise, for_names
from headrace.runtimes.rows.symbols import ONE, Size, multiply, product
from headrace.runtimes.rows.values import (
    FOLDS,
    MixedRowsError,
    Value,
    constants,
    mixed,
    normal_axis,
    with_rows,
)


def _softmax(call: Call) -> Results:
    value = call.value()
    if call.opset >= 13:  # noqa: PLR2004  # before, all axes from `axis` on are one
        return call.transfer.along(value, [call.integer("axis", -1)], "normalises")
    if value.shape is None and value.rows is None:
        return Value()
    axis = normal_axis(call.integer("axis", 1), value.rank) if value.rank else 0
    return call.transfer.along(value, range(axis, value.rank), "normalises")


def _layer_norm(call: Call) -> Results:
    value = call.value()
    if value.shape is None and value.rows is None:
        return Value()
    call.uniform(*range(1, len(call.inputs)))
    axis = normal_axis(call.integer("axis", -1), value.rank)
    axes = range(axis, value.rank)
    result = call.transfer.along(value, axes, "normalises")
    for number in range(1, len(call.inputs)):
        if call.optional(number) is not None:
            result = call.transfer.elementwise([result, call.value(number)])
    statistics = call.transfer.reduce(value, list(axes), keep=True)
    return [result, statistics, statistics, value]


def _skip_layer_norm(call: Call) -> Results:
    parts = [call.value(0), call.value(1)]
    bias = 4 if "Simplified" not in call.node.operator else 3
    parts += [call.value(bias)] if call.optional(bias) is not None else []
    total = call.transfer.elementwise(parts)
    call.uniform(*range(2, len(call.inputs)))
    result = call.transfer.along(total, [-1], "normalises")
    return [result, mixed("is not followed"), mixed("is not followed"), total]


def _batch_norm(call: Call) -> Results:
    trains = call.integer("training_mode", 0) != 0
    if call.opset < 14:  # noqa: PLR2004  # before, more outputs meant training
        trains = sum(bool(name) for name in call.node.outputs) > 1
    if call.opset < 7:  # noqa: PLR2004
        trains = not call.integer("is_test", 0)
    if trains:
        raise MixedRowsError("takes mean and variance over the batch")
    return _per_entry(call)


def _per_entry(call: Call) -> Results:
    """Return the result of an operator on independent entries of axis 0, of the same shape."""
    call.uniform(*range(1, len(call.inputs)))
    value = call.value()
    if value.shape is None and value.rows is None:
        return Value()
    if value.rows is not None and value.rows.axis != 0:
        raise MixedRowsError("runs along the batch axis")
    return with_rows(value.shape, value.rows)


def _mean_variance(call: Call) -> Results:
    axes = call.ints("axes")
    return call.transfer.along(call.value(), [0, 2, 3] if axes is None else axes, "normalises")


def _reduce(call: Call) -> Results:
    value = call.value()
    axes = call.named_axes()
    if not axes:
        if call.integer("noop_with_empty_axes", 0):
            return value
        axes = None
    fold = {"ReduceProd": FOLDS["Mul"], "ReduceSum": FOLDS["Add"]}.get(call.node.operator)
    keep = bool(call.integer("keepdims", 1))
    return call.transfer.reduce(value, axes, keep=keep, fold=fold)


def _arg_extreme(call: Call) -> Results:
    value, axis = call.value(), call.integer("axis", 0)
    keep = bool(call.integer("keepdims", 1))
    reduced = call.transfer.reduce(value, [axis], keep=keep, is_integer=True)
    return replace(reduced, below=value.shape[axis] if value.shape else None)


def _top_k(call: Call) -> Results:
    is_attribute = call.opset < 10  # noqa: PLR2004  # before, `k` was no input
    count = Size(call.integer("k", 1)) if is_attribute else call.size(1)
    return call.transfer.ranked(call.value(), call.integer("axis", -1), count)


def _cumulative(call: Call) -> Results:
    axes = constants(call.optional(1))
    if axes is None or len(axes) != 1:
        raise MixedRowsError("takes axes that are computed while it runs")
    return call.transfer.along(call.value(), axes)


def _pad(call: Call) -> Results:
    value = call.value()
    name = "pads" if "pads" in call.node.attributes else "paddings"
    pads = call.listed(name, 1)
    if name not in call.node.attributes:
        call.uniform(2)
    if value.shape is None and value.rows is None:
        return Value()
    axes = list(range(value.rank)) if call.optional(3) is None else call.axes(3)
    if len(pads) != 2 * len(axes):
        raise MixedRowsError("takes axes that are computed while it runs")
    both = zip(pads[: len(axes)], pads[len(axes) :], strict=True)
    return call.transfer.padded(value, dict(zip(axes, both, strict=True)))


def _resize(call: Call) -> Results:  # noqa: C901  # sequential
    value = call.value()
    if value.shape is None and value.rows is None:
        return Value()
    if value.counts_rows:
        raise MixedRowsError("computes with the number of rows")
    rank = value.rank
    listed = call.ints("axes")
    axes = list(range(rank)) if listed is None else [normal_axis(axis, rank) for axis in listed]
    if call.text("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise MixedRowsError("crops each axis")
    is_stretched = call.text("keep_aspect_ratio_policy", "stretch") == "stretch"
    if value.rows is not None and value.rows.axis in axes and not is_stretched:
        raise MixedRowsError("scales the batch axis as others")
    by_scale = True
    if call.node.operator == "Upsample" or call.opset < 11:  # noqa: PLR2004
        attribute = call.node.attributes.get("scales")
        numbers: list[Size | None] = (
            [Size(int(n)) if n == int(n) else None for n in attribute.decimals()]
            if attribute is not None
            else call.sizes(1)
        )
    elif call.optional(3) is not None:
        by_scale = False
        numbers = call.sizes(3)
    else:
        numbers = call.sizes(2)
    call.uniform(1)
    if len(numbers) != len(axes):
        raise MixedRowsError("takes shapes that do not fit")
    sizes: dict[int, Size] = {}
    symbols = call.transfer.symbols
    for axis, number in zip(axes, numbers, strict=True):
        size = (value.shape or ())[axis]
        if number == (ONE if by_scale else size):
            continue
        if number is None:
            sizes[axis] = symbols.unknown()
        else:
            sizes[axis] = multiply(size, number) if by_scale else number
    return call.transfer.resized(value, sizes, "resizes")


def _row_scores(call: Call) -> Results:
    """Return one value or vector per row, for models of tables."""
    value = call.value()
    if value.rows is None:
        return [Value(), Value()]
    if value.rank != 2:  # noqa: PLR2004
        raise MixedRowsError("takes a table, and gets no matrix")
    if not call.node.operator.endswith("Classifier"):
        targets = "targets" if call.node.operator == "LinearRegressor" else "n_targets"
        return call.transfer.by_row([value], [Size(call.integer(targets, 1))])
    classes = max(
        call.counted(name)
        for name in ("classlabels_int64s", "classlabels_ints", "classlabels_strings")
    )
    # Support vector machines may give a score for each pair of classes.
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


_AXES: Final[Mapping[str, Operator]] = {
    **for_names(
        """
ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd ReduceSum
ReduceSumSquare
""",
        _reduce,
    ),
    **for_names("Softmax LogSoftmax Hardmax", _softmax),
    **for_names("LayerNormalization RMSNormalization SimplifiedLayerNormalization", _layer_norm),
    "BatchNormalization": _batch_norm,
    **for_names("InstanceNormalization GroupNormalization LRN", _per_entry),
    "MeanVarianceNormalization": _mean_variance,
    "LpNormalization": lambda call: call.transfer.along(
        call.value(), [call.integer("axis", -1)], "normalises"
    ),
    **for_names("ArgMax ArgMin", _arg_extreme),
    "TopK": _top_k,
    **for_names("CumSum CumProd", _cumulative),
    "Trilu": lambda call: call.uniform(1).transfer.along(
        call.value(), [-2, -1], "depends on the position"
    ),
    "OneHot": lambda call: call.uniform(1, 2).transfer.one_hot(
        call.value(), call.integer("axis", -1), call.size(1)
    ),
    "Pad": _pad,
    **for_names("Resize Upsample", _resize),
    "TfIdfVectorizer": _ngrams,
}
_TREES_AND_LINES: Final = """
TreeEnsembleClassifier TreeEnsembleRegressor TreeEnsemble LinearClassifier LinearRegressor
SVMClassifier SVMRegressor
"""
OPERATORS: Final[Mapping[str, Mapping[str, Operator]]] = {
    "": {**ELEMENTS, **_AXES, **PRODUCTS},
    "ai.onnx.ml": {
        **for_names(_TREES_AND_LINES, _row_scores),
        **for_names("Scaler Imputer Normalizer", _last_axis),
        "OneHotEncoder": _category_vector,
        "FeatureVectorizer": _feature_vector,
        "ArrayFeatureExtractor": _extract_features,
        **for_names("Binarizer LabelEncoder CategoryMapper", elementwise),
    },
    "com.microsoft": {
        **CONTRIB_ELEMENTS,
        **for_names("SkipLayerNormalization SkipSimplifiedLayerNormalization", _skip_layer_norm),
        **CONTRIB_PRODUCTS,
    },
}
_RANDOM: Final = """
Bernoulli Multinomial RandomNormal RandomNormalLike RandomUniform RandomUniformLike
"""
RANDOM: Final = frozenset(_RANDOM.split())
_SIZED: Final = """
Add Sum Sub Mul Div Mod Neg Max Min Equal Greater GreaterOrEqual Less LessOrEqual Where Floor Ceil
Round Identity Cast Reshape Unsqueeze Squeeze Transpose Expand Tile ConstantOfShape Concat Split
Slice Gather Range ReduceProd ReduceSum Resize Upsample Pad Flatten Shape Size
"""
SIZED: Final = frozenset(_SIZED.split())
"""Operators that may take elements that depend on the number of rows, because they follow them."""
