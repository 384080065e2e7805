"""Calls of operators on abstract tensors: what every format's operators have in common.

A model's operators are run one after the other. One that is not known, or whose output rows may
depend on other rows, gives tensors that are mixed, with the reason.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Self, TypeVar

from headrace.runtimes.rows.symbols import ONE, Size, multiply, product
from headrace.runtimes.rows.transfer import Transfer
from headrace.runtimes.rows.values import (
    Fold,
    MixedRowsError,
    Value,
    bound,
    known_axes,
    known_sizes,
    mixed,
    shape_value,
)

_T = TypeVar("_T")

Results = Value | list[Value]
"""The outputs of an operator; one value if there is one."""

_OPERATOR: Final = ("node ", "a ", "operator ")
"""How reasons begin that name an operator."""
_NOT_FOLLOWED: Final = (
    LookupError,
    ValueError,
    TypeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
)
"""What a function raises for a graph that is not as its format demands."""


def followed(
    what: str,
    inputs: Sequence[Value],
    count: int,
    apply: Callable[[], Results],
    *,
    captured: Sequence[Value] = (),
    may_count: bool = False,
    is_deterministic: bool = True,
) -> list[Value]:
    """The outputs of an operator.

    Args:
        what: The operator, for people.
        inputs: Its inputs; one whose rows are mixed mixes those of all outputs.
        count: How many outputs it has.
        apply: Returns the outputs, or raises MixedRowsError.
        captured: What it reads besides its inputs.
        may_count: Whether `apply` follows elements that depend on the number of rows.
        is_deterministic: Whether the same inputs give the same outputs, whatever it does.
    """
    for value in inputs:
        if value.mixed:
            return [mixed(value.mixed)] * count
    if not may_count and any(value.counts_rows for value in inputs):
        return [mixed(f"{what} computes with the number of rows")] * count
    try:
        results = apply()
    except (MixedRowsError, *_NOT_FOLLOWED) as error:
        if is_deterministic and all(value.is_uniform for value in (*inputs, *captured)):
            return [Value()] * count
        reason = str(error) if isinstance(error, MixedRowsError) else "is not followed"
        return [mixed(f"{what} {reason}")] * count
    listed = results if isinstance(results, list) else [results]
    named = [
        replace(value, mixed=f"{what} {value.mixed}")
        if value.mixed and not value.mixed.startswith(_OPERATOR)
        else value
        for value in listed
    ]
    missing = [mixed(f"{what} has an output that is not followed")] * (count - len(named))
    return [*named, *missing]


MOVES_NUMBERS: Final = frozenset(
    {"Unsqueeze", "Squeeze", "Reshape", "Expand", "Identity", "Transpose"}
)
"""Operators, as ONNX calls them, that keep integers as they are and put them elsewhere."""


def follow_row_numbers(
    kind: str,
    inputs: Sequence[Value | None],
    transfer: Transfer,
    apply: Callable[[list[Value | None]], Results],
) -> Value | None:
    """The output of an operator that may take the rows' positions; None if it may not.

    Exporters look up one entry of each row by the row's position and an index: `x[arange(n), i]`.

    Args:
        kind: The operator, as ONNX calls it.
        inputs: Of the operator.
        transfer: Of the model.
        apply: Returns what the operator makes of other inputs.
    """
    try:
        return _numbered(kind, inputs, transfer, apply)
    except (MixedRowsError, *_NOT_FOLLOWED):
        return None


def _numbered(  # noqa: C901, PLR0912  # one case for each operator
    kind: str,
    inputs: Sequence[Value | None],
    transfer: Transfer,
    apply: Callable[[list[Value | None]], Results],
) -> Value | None:
    places = [i for i, value in enumerate(inputs) if value is not None and value.row_numbers]
    if len(places) != 1:
        return None
    (position,) = places
    numbering = inputs[position].mixed  # type: ignore[union-attr]  # it is one of the places
    plain = [
        replace(value, mixed="") if i == position and value is not None else value
        for i, value in enumerate(inputs)
    ]
    value = plain[position]
    if (
        value is None
        or value.row_numbers is None
        or any(item is not None and item.mixed for item in plain)
    ):
        return None

    def applied(values: list[Value | None]) -> Value:
        results = apply(values)
        return results[0] if isinstance(results, list) else results

    numbers = value.row_numbers
    others = [item for i, item in enumerate(plain) if i != position and item is not None]
    result_numbers = None
    match kind, position:
        case ("Gather" | "GatherND", 1) | ("Shape" | "Size", 0) | ("EmbeddingBag", 2):
            return applied(plain)
        case "Concat", 0:
            return replace(applied(plain), mixed=numbering)
        case "Cast", 0 if not numbers.is_first:
            result_numbers = applied(plain).row_numbers
        case moved, 0 if moved in MOVES_NUMBERS and not numbers.is_first:
            result_numbers = numbers
        case "Mul", _ if numbers.width == ONE and not numbers.is_first:
            size = others[0].only
            if size is not None and size.is_positive and not size.has_batch:
                result_numbers = replace(numbers, stride=multiply(numbers.stride, size))
        case "Add", _ if not numbers.is_first and not others[0].counts_rows:
            width = bound(others[0])
            if width == ONE:
                result_numbers = numbers
            elif width is not None and numbers.width == ONE:
                result_numbers = replace(numbers, width=width)
    if result_numbers is None:
        return None
    bare = replace(value, row_numbers=None)
    if kind in {"Mul", "Add"}:
        others = [replace(item, elements=None) for item in others]
        result = transfer.elementwise([bare, *others])
    else:
        result = applied([bare, *plain[1:]])
    return replace(result, mixed=numbering, row_numbers=result_numbers)


@dataclass(slots=True)
class OperatorCall:
    """One operator of a graph with the values of its inputs; None is one that is left out."""

    transfer: Transfer
    inputs: list[Value | None]
    count: int
    """How many outputs it has. Each format adds how it names attributes."""

    def value(self, number: int = 0) -> Value:
        """An input.

        Raises:
            MixedRowsError: It is left out.
        """
        value = self.optional(number)
        if value is None:
            raise MixedRowsError("lacks an input")
        return value

    def optional(self, number: int) -> Value | None:
        """An input; None if it is left out."""
        return self.inputs[number] if number < len(self.inputs) else None

    def present(self) -> list[Value]:
        """The inputs that are not left out."""
        return [value for value in self.inputs if value is not None]

    def uniform(self, *numbers: int) -> Self:
        """The call, once it is sure that these inputs are the same for every batch.

        Raises:
            MixedRowsError: One is not.
        """
        for number in numbers:
            value = self.optional(number)
            if value is not None and not value.is_uniform:
                raise MixedRowsError("has parameters that depend on the batch")
        return self

    def sizes(self, number: int) -> list[Size | None]:
        """An input that is a list of sizes.

        Raises:
            MixedRowsError: They depend on rows, or not even their number is known.
        """
        return known_sizes(self.value(number))

    def size(self, number: int) -> Size | None:
        """An input that is one size; None if nothing is known of it."""
        sizes = self.sizes(number)
        return sizes[0] if len(sizes) == 1 else None

    def axes(self, number: int) -> list[int]:
        """An input that is a list of axes.

        Raises:
            MixedRowsError: They are computed while it runs.
        """
        return known_axes(self.value(number))

    def axis(self, number: int) -> int:
        """An input that is one axis."""
        (axis,) = self.axes(number)
        return axis


_Call = TypeVar("_Call", bound=OperatorCall)


def run_operator(
    what: str,
    kind: str,
    call: _Call,
    operator: Callable[[_Call], Results],
    *,
    captured: Sequence[Value] = (),
    may_count: bool = False,
    is_deterministic: bool = True,
) -> list[Value]:
    """The outputs of an operator of a graph.

    Args:
        what: The operator, for people.
        kind: The operator, as ONNX calls it; empty if it takes no positions of rows.
        call: Its inputs.
        operator: Returns the outputs, or raises MixedRowsError.
        captured: As `followed` takes it, and the others.
    """

    def apply(values: list[Value | None]) -> Results:
        return operator(replace(call, inputs=values))

    if kind:
        numbered = follow_row_numbers(kind, call.inputs, call.transfer, apply)
        if numbered is not None:
            return [numbered]
    present = call.present()
    results = followed(
        what,
        present,
        call.count,
        lambda: apply(call.inputs),
        captured=captured,
        may_count=may_count,
        is_deterministic=is_deterministic,
    )
    if kind in MOVES_NUMBERS and present and present[0].below is not None:
        results = [replace(results[0], below=present[0].below)]
    return results


def unknown_operator(_: object) -> Results:
    """An operator that no table has."""
    raise MixedRowsError("is an operator that is not known to keep rows apart")


def for_names(names: str, operator: _T) -> dict[str, _T]:
    """The same operator for each name in a text."""
    return dict.fromkeys(names.split(), operator)


def is_scalar(value: Value) -> bool:
    """Whether it is one element."""
    return value.shape is not None and product(value.shape) == ONE


def window_widths(sizes: Sequence[Size]) -> list[int]:
    """The sizes of a filter along the axes that it slides over, as numbers.

    Raises:
        MixedRowsError: One is not known.
    """
    if not all(size.is_constant for size in sizes):
        raise MixedRowsError("has weights of unknown shape")
    return [size.number for size in sizes]


def narrowed(value: Value) -> Value:
    """The value in a datatype that may not hold its numbers: an index may wrap or be rounded."""
    return replace(value, elements=None, below=None, row_numbers=None)


def elementwise(call: OperatorCall) -> Results:
    """Elements of equal position, combined."""
    return call.transfer.elementwise(call.present())


def folding(fold: Fold) -> Callable[[OperatorCall], Results]:
    """Elements of equal position, combined, of which sizes are followed."""
    return lambda call: call.transfer.elementwise(call.present(), fold)


def same(call: OperatorCall) -> Results:
    """The input."""
    return call.value()


def shape_of(call: OperatorCall) -> Results:
    """The sizes of the input."""
    return shape_value(call.value())


def transposed(call: OperatorCall) -> Results:
    """The axes in the order that the second input says."""
    return call.transfer.transpose(call.value(), call.axes(1) or None)


def unsqueezed(call: OperatorCall) -> Results:
    """New axes where the second input says."""
    return call.transfer.unsqueeze(call.value(), call.axes(1))


def counted(call: OperatorCall) -> Results:
    """Numbers from the first input to the second, by steps of the third."""
    return call.transfer.count(*(call.value(number) for number in range(3)))


def scattered(call: OperatorCall) -> Results:
    """The first input with the third written at the second's positions."""
    return call.transfer.scatter(call.value(0), call.value(1), call.value(2))
