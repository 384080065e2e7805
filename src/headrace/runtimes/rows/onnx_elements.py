"""ONNX operators that combine elements of equal position, and how they compute sizes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from headrace.runtimes.rows.folds import (
    MakeFold,
    comparison,
    difference,
    extreme,
    negation,
    product_of,
    quotient,
    remainder,
    selection,
    sum_of,
    whole,
)
from headrace.runtimes.rows.onnx_graph import Call, Operator, is_scalar
from headrace.runtimes.rows.symbols import Size
from headrace.runtimes.rows.transfer import Results
from headrace.runtimes.rows.values import (
    MixedRowsError,
    Value,
    constants,
    with_rows,
)

_FLOATS: Final = frozenset({1, 10, 11, 16})
_BOOL: Final = 9
_EXACT: Final = frozenset({1, 6, 7, 11, 12, 13})
"""Datatypes that hold any number of rows: FLOAT, INT32, INT64, DOUBLE, UINT32, UINT64."""


def _elementwise(call: Call) -> Results:
    return call.transfer.elementwise(call.present())


def _folding(fold: MakeFold) -> Operator:
    def operator(call: Call) -> Results:
        values = call.present()
        is_integer = all(value.is_integer for value in values)
        return call.transfer.elementwise(values, fold(call.transfer, is_integer))

    return operator


def _cast(call: Call) -> Results:
    kind = call.integer("to", 0)
    value = call.value()
    if value.elements is not None and kind not in _EXACT:
        if value.counts_rows:
            raise MixedRowsError("computes with the number of rows")
        items = constants(value) if kind == _BOOL else None
        elements = None
        if items is not None:
            elements = np.empty(len(items), np.object_)
            elements[:] = [Size(int(item != 0)) for item in items]
            elements = elements.reshape(value.elements.shape)
        value = replace(value, elements=elements)
    return replace(value, is_integer=kind not in _FLOATS)


def _dropout(call: Call) -> Results:
    training = call.optional(2)
    if training is not None and constants(training) != [0]:
        raise MixedRowsError("may drop values at random")
    if call.opset < 7 and not call.integer("is_test", 0):  # noqa: PLR2004
        raise MixedRowsError("may drop values at random")
    value = call.value()
    return [value, replace(value, elements=None)]


def _by_channel(places: int) -> Operator:
    """Element by element, with parameters that are scalars or lie along `axis`."""

    def operator(call: Call) -> Results:
        value = call.value()
        call.uniform(*range(1, places + 1))
        if value.shape is None and value.rows is None:
            return Value()
        for number in range(1, len(call.inputs)):
            parameter = call.optional(number)
            if parameter is None or is_scalar(parameter):
                continue
            axes = [call.integer("axis", 1)]
            if parameter.shape is None or len(parameter.shape) != 1:
                axes = list(range(value.rank))
            call.transfer.along(value, axes, "has parameters")
        return with_rows(value.shape, value.rows, is_integer=call.node.operator == "QuantizeLinear")

    return operator


def _dynamic_quantisation(_: Call) -> Results:
    raise MixedRowsError("takes the scale of its quantisation over the whole batch")


def _quantised_elementwise(places: Sequence[int]) -> Operator:
    def operator(call: Call) -> Results:
        call.uniform(*(i for i in range(len(call.inputs)) if i not in places))
        for number, value in enumerate(call.inputs):
            if number not in places and value is not None and not is_scalar(value):
                raise MixedRowsError("has parameters by position")
        return call.transfer.elementwise([call.value(number) for number in places])

    return operator


def _quantised_concat(call: Call) -> Results:
    parts = [call.value(number) for number in range(2, len(call.inputs), 3)]
    call.uniform(*(i for i in range(len(call.inputs)) if i < 2 or i % 3 != 2))  # noqa: PLR2004
    return call.transfer.concat(parts, call.integer("axis", 1))


def _same(count: int = 1) -> Operator:
    def operator(call: Call) -> Results:
        value = call.value()
        return [value] * count

    return operator


_ELEMENTWISE: Final = [
    "Abs",
    "Acos",
    "Acosh",
    "And",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitShift",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "CastLike",
    "Celu",
    "Clip",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mean",
    "Mish",
    "Not",
    "Or",
    "PRelu",
    "Pow",
    "Reciprocal",
    "Relu",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "StringConcat",
    "RegexFullMatch",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Xor",
    "ImageScaler",
    "Affine",
    "ParametricSoftplus",
    "ScaledTanh",
]


ELEMENTS: Final[Mapping[str, Operator]] = {
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    "Add": _folding(sum_of),
    "Sum": _folding(sum_of),
    "Sub": _folding(difference),
    "Mul": _folding(product_of),
    "Div": _folding(quotient),
    "Neg": _folding(negation),
    "Max": _folding(extreme(max)),
    "Min": _folding(extreme(min)),
    "Mod": _folding(remainder),
    "Equal": _folding(comparison(equal=True, otherwise=False)),
    "Greater": _folding(comparison(equal=False, otherwise=False)),
    "GreaterOrEqual": _folding(comparison(equal=True, otherwise=True)),
    "Less": _folding(comparison(equal=False, otherwise=False)),
    "LessOrEqual": _folding(comparison(equal=True, otherwise=True)),
    "Where": _folding(selection),
    "Floor": _folding(whole),
    "Ceil": _folding(whole),
    "Round": _folding(whole),
    "Identity": _same(),
    "Cast": _cast,
    "Dropout": _dropout,
    "QuantizeLinear": _by_channel(2),
    "DequantizeLinear": _by_channel(2),
    "DynamicQuantizeLinear": _dynamic_quantisation,
}
"""Of `ai.onnx`."""


CONTRIB_ELEMENTS: Final[Mapping[str, Operator]] = {
    "Gelu": _elementwise,
    "BiasGelu": _elementwise,
    "FastGelu": _elementwise,
    "QuickGelu": _elementwise,
    "QuantizeLinear": _by_channel(2),
    "DequantizeLinear": _by_channel(2),
    "QLinearAdd": _quantised_elementwise((0, 3)),
    "QLinearMul": _quantised_elementwise((0, 3)),
    "QLinearSigmoid": _quantised_elementwise((0,)),
    "QLinearLeakyRelu": _quantised_elementwise((0,)),
    "QLinearConcat": _quantised_concat,
    "DynamicQuantizeMatMul": _dynamic_quantisation,
    "DynamicQuantizeLSTM": _dynamic_quantisation,
}
"""Of `com.microsoft`."""
