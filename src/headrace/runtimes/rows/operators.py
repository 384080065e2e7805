"""Operator calls on abstract tensors, common to all formats.

A model's operators run in order. An unknown operator, or one whose output rows may depend on other
rows, gives mixed tensors with the reason.
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
"""Outputs of an operator; one value if there is one output."""

_OPERATOR: Final = ("node ", "a ", "operator ")
"""Prefixes of reasons that name an operator."""
_NOT_FOLLOWED: Final = (
    LookupError,
    ValueError,
    TypeError,
    ArithmeticError,
    AssertionError,
    RuntimeError,
)
"""Errors of an operator function for a graph that violates its format."""


def followed(
    description: str,
    inputs: Sequence[Value],
    count: int,
    apply: Callable[[], Results],
    *,
    captured: Sequence[Value] = (),
    may_count: bool = False,
    is_deterministic: bool = True,
) -> list[Value]:
    """Return the outputs of an operator.

    Args:
        what: The operator's name for messages.
        inputs: Its inputs; one whose rows are mixed makes all outputs mixed.
        count: Number of outputs.
        apply: Returns the outputs, or raises MixedRowsError.
        captured: Values that it reads besides its inputs.
        may_count: Whether `apply` follows elements that depend on the number of rows.
        is_deterministic: Whether the same inputs always give the same outputs.
    """
    for value in inputs:
        if value.mixed:
            return [mixed(value.mixed)] * count
    if not may_count and any(value.counts_rows for value in inputs):
        return [mixed(f"{description} computes with the number of rows")] * count
    try:
        results = apply()
    except (MixedRowsError, *_NOT_FOLLOWED) as error:
        if is_deterministic and all(value.is_uniform for value in (*inputs, *captured)):
            return [Value()] * count
        reason = str(error) if isinstance(error, MixedRowsError) else "is not followed"
        return [mixed(f"{description} {reason}")] * count
    listed = results if isinstance(results, list) else [results]
    named = [
        replace(value, mixed=f"{description} {value.mixed}")
        if value.mixed and not value.mixed.startswith(_OPERATOR)
        else value
        for value in listed
    ]
    missing = [mixed(f"{description} has an output that is not followed")] * (count - len(named))
    return [*named, *missing]


MOVES_NUMBERS: Final = frozenset(
    {"Unsqueeze", "Squeeze", "Reshape", "Expand", "Identity", "Transpose"}
)
"""Operators, by ONNX name, that move integers without changing them."""


def follow_row_numbers(
    kind: str,
    inputs: Sequence[Value | None],
    transfer: Transfer,
    apply: Callable[[list[Value | None]], Results],
) -> Value | None:
    """Return the output of an operator that may take row positions; None if it may not.

    Exporters look up one entry of each row by the row's position and an index: `x[arange(n), i]`.

    Args:
        kind: The operator's ONNX name.
        inputs: The operator's inputs.
        transfer: The model's transfer functions.
        apply: Returns the operator's output for other inputs.
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
    indices = [i for i, value in enumerate(inputs) if value is not None and value.row_numbers]
    if len(indices) != 1:
        return None
    (position,) = indices
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
    stripped = replace(value, row_numbers=None)
    if kind in {"Mul", "Add"}:
        others = [replace(item, elements=None) for item in others]
        result = transfer.elementwise([stripped, *others])
    else:
        result = applied([stripped, *plain[1:]])
    return replace(result, mixed=numbering, row_numbers=result_numbers)


@dataclass(slots=True)
class OperatorCall:
    """One operator of a graph with its inputs' values; None is an omitted input."""

    transfer: Transfer
    inputs: list[Value | None]
    count: int
    """Number of outputs. Each format adds its access to attributes."""

    def value(self, number: int = 0) -> Value:
        """Return an input.

        Raises:
            MixedRowsError: It is omitted.
        """
        value = self.optional(number)
        if value is None:
            raise MixedRowsError("lacks an input")
        return value

    def optional(self, number: int) -> Value | None:
        """Return an input; None if it is omitted."""
        return self.inputs[number] if number < len(self.inputs) else None

    def present(self) -> list[Value]:
        """Return the inputs that are not omitted."""
        return [value for value in self.inputs if value is not None]

    def uniform(self, *numbers: int) -> Self:
        """Return the call after checking that these inputs are the same for every batch.

        Raises:
            MixedRowsError: An input is not.
        """
        for number in numbers:
            value = self.optional(number)
            if value is not None and not value.is_uniform:
                raise MixedRowsError("has parameters that depend on the batch")
        return self

    def sizes(self, number: int) -> list[Size | None]:
        """Return an input that is a list of sizes.

        Raises:
            MixedRowsError: They depend on rows, or not even their number is known.
        """
        return known_sizes(self.value(number))

    def size(self, number: int) -> Size | None:
        """Return an input that is one size; None if it is unknown."""
        sizes = self.sizes(number)
        return sizes[0] if len(sizes) == 1 else None

    def axes(self, number: int) -> list[int]:
        """Return an input that is a list of axes.

        Raises:
            MixedRowsError: They are computed during the run.
        """
        return known_axes(self.value(number))

    def axis(self, number: int) -> int:
        """Return an input that is one axis."""
        (axis,) = self.axes(number)
        return axis


_Call = TypeVar("_Call", bound=OperatorCall)


def run_operator(
    description: str,
    kind: str,
    call: _Call,
    operator: Callable[[_Call], Results],
    *,
    captured: Sequence[Value] = (),
    may_count: bool = False,
    is_deterministic: bool = True,
) -> list[Value]:
    """Return the outputs of an operator of a graph.

    Args:
        what: The operator's name for messages.
        kind: The operator's ONNX name; empty if it takes no row positions.
        call: Its inputs.
        operator: Returns the outputs, or raises MixedRowsError.
        captured: See `followed`, also for the remaining arguments.
    """

    def apply(values: list[Value | None]) -> Results:
        return operator(replace(call, inputs=values))

    if kind:
        numbered = follow_row_numbers(kind, call.inputs, call.transfer, apply)
        if numbered is not None:
            return [numbered]
    present = call.present()
    results = followed(
        description,
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
    """Raise MixedRowsError for an operator that is in no table."""
    raise MixedRowsError("is an operator that is not known to keep rows apart")


def for_names(names: str, operator: _T) -> dict[str, _T]:
    """Return a table with the same operator for each name in a text."""
    return dict.fromkeys(names.split(), operator)


def is_scalar(value: Value) -> bool:
    """Whether the value is one element."""
    return value.shape is not None and product(value.shape) == ONE


def window_widths(sizes: Sequence[Size]) -> list[int]:
    """Return the sizes of a filter along its spatial axes, as numbers.

    Raises:
        MixedRowsError: A size is unknown.
    """
    if not all(size.is_constant for size in sizes):
        raise MixedRowsError("has weights of unknown shape")
    return [size.number for size in sizes]


def narrowed(value: Value) -> Value:
    """Return the value in a datatype too narrow for its numbers: an index may wrap or round."""
    return replace(value, elements=None, below=None, row_numbers=None)


def elementwise(call: OperatorCall) -> Results:
    """Return the element-wise combination of the inputs."""
    return call.transfer.elementwise(call.present())


def folding(fold: Fold) -> Callable[[OperatorCall], Results]:
    """Return an element-wise operator whose sizes are followed."""
    return lambda call: call.transfer.elementwise(call.present(), fold)


def same(call: OperatorCall) -> Results:
    """Return the input."""
    return call.value()


def shape_of(call: OperatorCall) -> Results:
    """Return the shape of the input."""
    return shape_value(call.value())


def transposed(call: OperatorCall) -> Results:
    """Return the input with its axes in the order of the second input."""
    return call.transfer.transpose(call.value(), call.axes(1) or None)


def unsqueezed(call: OperatorCall) -> Results:
    """Return the input with new axes at the positions in the second input."""
    return call.transfer.unsqueeze(call.value(), call.axes(1))


def counted(call: OperatorCall) -> Results:
    """Return numbers from the first input to the second, in steps of the third."""
    return call.transfer.count(*(call.value(number) for number in range(3)))


def scattered(call: OperatorCall) -> Results:
    """Return the first input with the third written at the second's positions."""
    return call.transfer.scatter(call.value(0), call.value(1), call.value(2))
