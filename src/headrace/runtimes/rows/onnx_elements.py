"""ONNX operators that combine elements of equal position, and how they compute sizes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from headrace.runtimes.rows.onnx_call import Call, Operator, Results, is_scalar
from headrace.runtimes.rows.symbols import ZERO, Size, divide, multiply
from headrace.runtimes.rows.transfer import Transfer
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


def _folding(fold: Callable[[Transfer, bool], Callable[..., Size | None]]) -> Operator:
    def operator(call: Call) -> Results:
        values = call.present()
        whole = all(value.is_integer for value in values)
        return call.transfer.elementwise(values, fold(call.transfer, whole))

    return operator


def _add(transfer: Transfer, _: bool) -> Callable[..., Size | None]:  # noqa: FBT001  # one table's
    def fold(*items: Size | None) -> Size | None:
        total: Size | None = ZERO
        for item in items:
            total = None if total is None or item is None else transfer.symbols.add(total, item)
        return total

    return fold


def _subtract(transfer: Transfer, _: bool) -> Callable[..., Size | None]:  # noqa: FBT001
    return lambda left, right: (
        None if left is None or right is None else transfer.symbols.add(left, right, sign=-1)
    )


def _multiply(_: Transfer, __: bool) -> Callable[..., Size | None]:  # noqa: FBT001
    def fold(left: Size | None, right: Size | None) -> Size | None:
        return None if left is None or right is None else multiply(left, right)

    return fold


def _divide(transfer: Transfer, whole: bool) -> Callable[..., Size | None]:  # noqa: FBT001
    def fold(left: Size | None, right: Size | None) -> Size | None:
        if left is None or right is None or right == ZERO:
            return None
        exact = divide(left, right)
        if exact is not None or not whole or left.has_batch or right.has_batch:
            return exact
        if left.minimum is None or left.minimum < 0 or not right.is_positive:
            return None
        return transfer.symbols.floor_divide(left, right)

    return fold


def _compare(equal: bool, otherwise: bool) -> Callable[..., Callable[..., Size | None]]:  # noqa: FBT001
    """What `Equal` and its like say of two sizes that are surely equal, or surely not."""

    def make(_: Transfer, __: bool) -> Callable[..., Size | None]:  # noqa: FBT001
        def fold(left: Size | None, right: Size | None) -> Size | None:
            if left is None or right is None:
                return None
            if left == right:
                return Size(int(equal))
            if left.is_constant and right.is_constant:
                return Size(int(otherwise)) if otherwise != equal else None
            pairs = ((left, right), (right, left))
            if otherwise != equal and any(
                a.is_positive and b.is_constant and b.number <= 0 for a, b in pairs
            ):
                return Size(int(otherwise))
            return None

        return fold

    return make


def _select(_: Transfer, __: bool) -> Callable[..., Size | None]:  # noqa: FBT001
    def fold(condition: Size | None, yes: Size | None, no: Size | None) -> Size | None:
        if yes == no:
            return yes
        if condition is None or not condition.is_constant:
            if any(item is not None and item.has_batch for item in (condition, yes, no)):
                raise MixedRowsError("computes with the number of rows")
            return None
        return yes if condition.number else no

    return fold


def _extreme(choose: Callable[..., int]) -> Callable[..., Callable[..., Size | None]]:
    def make(_: Transfer, __: bool) -> Callable[..., Size | None]:  # noqa: FBT001
        def fold(*items: Size | None) -> Size | None:
            if len(set(items)) == 1:
                return items[0]
            numbers = [item.number for item in items if item is not None and item.is_constant]
            return Size(choose(numbers)) if len(numbers) == len(items) else None

        return fold

    return make


def _whole(_: Transfer, __: bool) -> Callable[..., Size | None]:  # noqa: FBT001
    """Floor, Ceil, Round and Identity of a whole number."""
    return lambda item: item


def _modulo(_: Transfer, __: bool) -> Callable[..., Size | None]:  # noqa: FBT001
    def fold(left: Size | None, right: Size | None) -> Size | None:
        numbers = [item.number for item in (left, right) if item is not None and item.is_constant]
        if len(numbers) < 2 or numbers[0] < 0 or numbers[1] <= 0:  # noqa: PLR2004  # two operands
            return None
        return Size(numbers[0] % numbers[1])

    return fold


def _negate(_: Transfer, __: bool) -> Callable[..., Size | None]:  # noqa: FBT001
    return lambda item: None if item is None else multiply(item, Size(-1))


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
    "Add": _folding(_add),
    "Sum": _folding(_add),
    "Sub": _folding(_subtract),
    "Mul": _folding(_multiply),
    "Div": _folding(_divide),
    "Neg": _folding(_negate),
    "Max": _folding(_extreme(max)),
    "Min": _folding(_extreme(min)),
    "Mod": _folding(_modulo),
    "Equal": _folding(_compare(equal=True, otherwise=False)),
    "Greater": _folding(_compare(equal=False, otherwise=False)),
    "GreaterOrEqual": _folding(_compare(equal=True, otherwise=True)),
    "Less": _folding(_compare(equal=False, otherwise=False)),
    "LessOrEqual": _folding(_compare(equal=True, otherwise=True)),
    "Where": _folding(_select),
    "Floor": _folding(_whole),
    "Ceil": _folding(_whole),
    "Round": _folding(_whole),
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
