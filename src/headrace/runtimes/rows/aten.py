"""Calls of PyTorch's operators on abstract tensors, including in-place effects.

Exported programs and TorchScript call the same operators (`aten`). A call returns the known facts
of its outputs; a call that writes to a tensor changes every tensor that shares its memory.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, TypeVar, Union

import numpy as np

from headrace.runtimes.rows.operators import Results, follow_row_numbers, followed
from headrace.runtimes.rows.symbols import Size, product
from headrace.runtimes.rows.transfer import Transfer
from headrace.runtimes.rows.values import (
    FOLDS,
    MAX_ELEMENTS,
    Fold,
    MixedRowsError,
    Value,
    exact_quotient,
    mixed,
    normal_axis,
)

_T = TypeVar("_T")
_WHOLE: Final = ("int", "uint", "bool")
_IGNORED: Final = """
device layout pin_memory memory_format non_blocking copy generator requires_grad implicit out_dtype
dtype
"""
"""Parameters that move no element to another row."""
_ON_SIZES: Final[Mapping[str, Fold]] = {
    "add": FOLDS["Add"],
    "sub": FOLDS["Sub"],
    "mul": FOLDS["Mul"],
    "floordiv": FOLDS["Div"],
    "truediv": exact_quotient,
    "mod": FOLDS["Mod"],
    "neg": FOLDS["Neg"],
    "sym_max": FOLDS["Max"],
    "sym_min": FOLDS["Min"],
    "sym_sum": FOLDS["Add"],
    "eq": FOLDS["Equal"],
    "gt": FOLDS["Greater"],
    "ge": FOLDS["GreaterOrEqual"],
    "lt": FOLDS["Less"],
    "le": FOLDS["LessOrEqual"],
}


@dataclass(slots=True, eq=False)
class SharedStorage:
    """Memory shared by tensors that are views of each other."""

    tensors: list["Tensor"] = field(default_factory=list)
    is_model: bool = False
    """Whether it outlives a run."""


@dataclass(slots=True, eq=False)
class Tensor:
    """A tensor of a program."""

    value: Value
    memory: SharedStorage
    dtype: str = ""
    """PyTorch's name of the datatype; empty if unknown."""


Argument = Union[Tensor, Value, Size, float, bool, str, None, "list[Argument]"]
"""Arguments and results of operators. Integers are sizes; booleans are Python's."""


@dataclass(slots=True)
class AtenCall:
    """One operator call with tensors replaced by their values."""

    name: str
    transfer: Transfer
    positional: list[Argument]
    named: dict[str, Argument]
    dtypes: Mapping[int, str]
    """Datatypes by id of a value."""
    count: int
    used: set[int | str] = field(default_factory=set)

    def get(self, number: int, name: str, default: Argument = None) -> Argument:
        """Return an argument by name or position; a position of -1 means by name only."""
        self.used |= {number, name}
        if name in self.named:
            return self.named[name]
        return self.positional[number] if 0 <= number < len(self.positional) else default

    def value(self, number: int = 0, name: str = "self") -> Value:
        """Return an argument that is a tensor, or a number as a tensor."""
        value = self.optional(number, name)
        if value is None:
            raise MixedRowsError("lacks a tensor")
        return value

    def optional(self, number: int, name: str) -> Value | None:
        """Return an argument that may be a tensor; None if it is omitted."""
        item = self.get(number, name)
        if item is None:
            return None
        if isinstance(item, list | str | Tensor):
            raise MixedRowsError(f"takes something else as '{name}' than a tensor")
        return as_value(item)

    def values(self, number: int, name: str) -> list[Value]:
        """Return an argument that is a list of tensors."""
        items = self.get(number, name)
        if not isinstance(items, list) or not all(isinstance(item, Value) for item in items):
            raise MixedRowsError("lacks a list of tensors")
        return [item for item in items if isinstance(item, Value)]

    def sizes(self, number: int, name: str) -> list[Size | None]:
        """Return an argument that is a list of integers, or one integer."""
        item = self.get(number, name)
        items = item if isinstance(item, list) else [item]
        return [self._size(item) for item in items]

    def size(self, number: int, name: str, default: int | None = None) -> Size | None:
        """Return an argument that is an integer; None if it is unknown."""
        item = self.get(number, name)
        if item is None:
            return None if default is None else Size(default)
        return self._size(item)

    @staticmethod
    def _size(item: Argument) -> Size | None:
        if isinstance(item, Value) and (item.only is not None or item.is_uniform):
            return item.only
        if not isinstance(item, Size):
            raise MixedRowsError("takes sizes that are computed while it runs")
        return item

    def integer(self, number: int, name: str, default: int | None = None) -> int:
        """Return an argument that is a known integer."""
        item = self.get(number, name)
        if item is None and default is not None:
            return default
        if isinstance(item, bool):
            return int(item)
        size = self._size(item)
        if size is None or not size.is_constant:
            raise MixedRowsError("takes axes that are computed while it runs")
        return size.number

    def integers(self, number: int, name: str) -> list[int] | None:
        """Return an argument that is a list of known integers, or one; None if it is omitted."""
        if self.get(number, name) is None:
            return None
        sizes = self.sizes(number, name)
        if not all(size is not None and size.is_constant for size in sizes):
            raise MixedRowsError("takes axes that are computed while it runs")
        return [size.number for size in sizes if size is not None]

    def flag(self, number: int, name: str, *, default: bool = False) -> bool:
        """Return an argument that is a known boolean."""
        item = self.get(number, name)
        if item is None:
            return default
        if isinstance(item, Size) and item.is_constant:
            return bool(item.number)
        if not isinstance(item, bool):
            raise MixedRowsError("takes a choice that is computed while it runs")
        return item

    def uniform(self, *numbers_and_names: tuple[int, str]) -> None:
        """Raise MixedRowsError unless these arguments are the same for every batch."""
        for number, name in numbers_and_names:
            value = self.optional(number, name)
            if value is not None and not value.is_uniform:
                raise MixedRowsError("has parameters that depend on the batch")

    def ignore_rest(self) -> None:
        """Count all arguments as read."""
        self.used |= {*range(len(self.positional)), *self.named}

    def check_used(self) -> None:
        """Raise MixedRowsError if an argument was passed that no one read."""
        for name, item in self.named.items():
            is_switch = item is None or isinstance(item, bool | str)
            if name not in self.used and name not in _IGNORED.split() and not is_switch:
                raise MixedRowsError(f"has an argument '{name}' that is not followed")
        for number, item in enumerate(self.positional):
            if number not in self.used and not (item is None or isinstance(item, bool | str)):
                raise MixedRowsError(f"has argument {number} that is not followed")


Operator = Callable[[AtenCall], Results]


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTable:
    """Known properties of operators, by name."""

    operators: Mapping[str, Operator]
    views: frozenset[str]
    """Operators that may return memory of the first tensor."""
    sized: frozenset[str]
    """Operators that may take elements that depend on the number of rows."""
    random: frozenset[str]
    """Operators whose outputs may differ for the same inputs."""
    onnx: Mapping[str, str]
    """ONNX names of the operators that accept positions of rows."""


class AtenInterpreter:
    """Interpreter of operator calls on the tensors of one program.

    `failed`: why no output of the program is proven; empty if nothing failed.
    """

    def __init__(self, table: OperatorTable) -> None:
        self.transfer = Transfer()
        self.failed = ""
        self._table = table

    @staticmethod
    def tensor(value: Value, *, memory: SharedStorage | None = None, dtype: str = "") -> Tensor:
        """Return a tensor with this value, on new memory unless some is passed."""
        tensor = Tensor(value, SharedStorage() if memory is None else memory, dtype)
        tensor.memory.tensors.append(tensor)
        return tensor

    def call(
        self,
        name: str,
        positional: Sequence[Argument],
        named: Mapping[str, Argument],
        *,
        description: str,
        count: int,
        changes_first: bool = False,
    ) -> list[Tensor]:
        """Return the outputs of an operator.

        Args:
            name: Without namespace, overload, and the `_` suffix of operators that write in place.
            named: Arguments by name; may repeat positional ones.
            what: The operator's name for messages.
            count: Number of outputs used; 0 for a list of all outputs.
            changes_first: Whether it writes its result to its first tensor.
        """
        arguments: list[Argument] = [*positional, *named.values()]
        tensors = list(dict.fromkeys(parts_of_kind(Tensor, arguments)))
        operator = self._table.operators.get(name)
        if operator is None or "out" in named:
            reason = f"{description} is an operator that is not known to keep rows apart"
            for tensor in tensors:  # it may write to any of them
                self._spoil(tensor.memory, reason)
            return [self.tensor(mixed(reason)) for _ in range(max(count, 1))]
        results = self._followed(
            operator, name, positional, named, tensors, description, max(count, 1)
        )
        results = results[:count] if count else results
        if changes_first:
            if not tensors:
                return [self.tensor(mixed(f"{description} writes to what is not followed"))]
            self._write(tensors[0], results[0], description)
            return [tensors[0]]
        if name.endswith("_norm") and results[0].mixed:
            for tensor in tensors:  # in training it writes to its running statistics
                self._spoil(tensor.memory, results[0].mixed)
        memory = tensors[0].memory if name in self._table.views and tensors else None
        return [self.tensor(value, memory=memory) for value in results]

    def size_of(self, item: Argument, axis: Argument, description: str) -> Argument:
        """Return the size of an axis, or without one the number of elements."""
        if not isinstance(item, Tensor) or item.value.shape is None:
            reason = item.value.mixed if isinstance(item, Tensor) else ""
            return self.tensor(mixed(reason or f"{description} takes a tensor of unknown shape"))
        shape = item.value.shape
        if isinstance(axis, Size):
            return shape[normal_axis(axis.number, len(shape))]
        return product(shape)

    def item(self, item: Argument, description: str) -> Argument:
        """Return the only element of a tensor."""
        if not isinstance(item, Tensor):
            return item
        value = item.value
        if value.only is not None:
            return value.only
        if value.is_uniform:
            return self.transfer.symbols.unknown()
        reason = value.mixed or f"{description} takes a number out of all rows"
        return self.tensor(mixed(reason))

    def on_sizes(
        self, target: str, values: Sequence[Argument], description: str
    ) -> Sequence[Argument]:
        """Return the result of arithmetic on sizes; unknown for an unsupported function."""
        flat = [part for item in values for part in (item if isinstance(item, list) else [item])]
        for item in flat:
            if isinstance(item, Tensor):
                reason = item.value.mixed or f"{description} takes a tensor"
                return [self.tensor(mixed(reason))]
        numbers = [item for item in flat if isinstance(item, Size)]
        has_batch = any(size.has_batch for size in numbers)
        name = target.rpartition(".")[2].strip("_")
        fold = _ON_SIZES.get(name)
        if fold is not None and len(numbers) == len(flat):
            size = fold(self.transfer.symbols, *numbers)
            if size is not None:
                return [size]
        return [self.transfer.symbols.unknown(has_batch=has_batch)]

    def _followed(  # noqa: PLR0917  # of a call
        self,
        operator: Operator,
        name: str,
        positional: Sequence[Argument],
        named: Mapping[str, Argument],
        tensors: Sequence[Tensor],
        description: str,
        count: int,
    ) -> list[Value]:
        sizes = parts_of_kind(Size, [*positional, *named.values()])
        numbers = [item for item in sizes if item.has_batch]
        inputs = [*(tensor.value for tensor in tensors), *map(as_value, numbers)]

        def applied(values: Sequence[Value | None]) -> Results:
            by_tensor = dict(zip(map(id, tensors), values, strict=False))
            call = AtenCall(
                name,
                self.transfer,
                [_with_values(item, by_tensor) for item in positional],
                {key: _with_values(item, by_tensor) for key, item in named.items()},
                {id(tensor.value): tensor.dtype for tensor in tensors},
                count,
            )
            results = operator(call)
            call.check_used()
            return results

        onnx = self._table.onnx.get(name)
        if onnx is not None and not numbers:
            values: list[Value | None] = [tensor.value for tensor in tensors]
            numbered = follow_row_numbers(onnx, values, self.transfer, applied)
            if numbered is not None:
                return [numbered, *[mixed(f"{description} is not followed")] * (count - 1)]
        return followed(
            description,
            inputs,
            count,
            lambda: applied([tensor.value for tensor in tensors]),
            may_count=name in self._table.sized,
            is_deterministic=name not in self._table.random,
        )

    def _write(self, target: Tensor, result: Value, description: str) -> None:
        """Write a result to a tensor and to all tensors that share its memory.

        Entries of a row stay entries of that row in every view, so views of tensors with rows only
        need the result to have the same rows.
        """
        old = target.value
        reason = result.mixed
        if target.memory.is_model:
            self.failed = self.failed or f"{description} changes the model itself"
        elif result.shape != old.shape or result.rows != old.rows or result.counts_rows:
            reason = reason or f"{description} writes to a tensor what it has no axis for"
        for tensor in target.memory.tensors:
            value = tensor.value
            has_other = (value.rows is None) != (old.rows is None) or value.counts_rows
            spoilt = reason or (
                f"{description} writes to what other tensors share" if has_other else ""
            )
            if spoilt and not value.mixed:
                tensor.value = mixed(spoilt)
            elif not value.mixed:
                tensor.value = replace(value, elements=None, below=None, row_numbers=None)

    def _spoil(self, memory: SharedStorage, reason: str) -> None:
        if memory.is_model:
            self.failed = self.failed or reason
        for tensor in memory.tensors:
            tensor.value = mixed(tensor.value.mixed or reason)


def as_value(item: Value | Size | float) -> Value:
    """Return a number as a tensor without dimensions."""
    if isinstance(item, Value):
        return item
    if isinstance(item, bool):
        item = Size(int(item))
    if isinstance(item, Size):
        elements = np.empty((), np.object_)
        elements[()] = item
        return Value(shape=(), elements=elements, is_integer=True)
    is_whole = float(item).is_integer() and abs(item) < MAX_ELEMENTS
    elements = np.empty((), np.object_)
    elements[()] = Size(int(item)) if is_whole else None
    return Value(shape=(), elements=elements)


def is_whole(dtype: str) -> bool:
    """Whether a datatype, by PyTorch's name, holds integers only."""
    return dtype.startswith(_WHOLE)


def parts_of_kind(kind: type[_T], items: Sequence[object]) -> list[_T]:
    """Return the items of a type, including those in nested lists and tuples."""
    flat: list[_T] = []
    for item in items:
        if isinstance(item, kind):
            flat.append(item)
        elif isinstance(item, list | tuple):
            flat.extend(parts_of_kind(kind, item))
    return flat


def _with_values(item: Argument, values: Mapping[int, Value | None]) -> Argument:
    if isinstance(item, Tensor):
        return values.get(id(item), item.value)
    if isinstance(item, list):
        return [_with_values(part, values) for part in item]
    return item
