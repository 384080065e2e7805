"""Calls of PyTorch's operators on abstract tensors, with what in-place operators change.

Exported programs and TorchScript call the same operators (`aten`). A call returns what is known of
its outputs; one that writes to a tensor changes every tensor that shares its memory.
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
    """What tensors that are views of each other share."""

    tensors: list["Tensor"] = field(default_factory=list)
    is_model: bool = False
    """It outlives a run."""


@dataclass(slots=True, eq=False)
class Tensor:
    """A tensor of a program."""

    value: Value
    memory: SharedStorage
    dtype: str = ""
    """As PyTorch names it; empty if it is not known."""


Argument = Union[Tensor, Value, Size, float, bool, str, None, "list[Argument]"]
"""What an operator takes and gives. Integers are sizes; booleans are Python's."""


@dataclass(slots=True)
class AtenCall:
    """One call: tensors are replaced by their values."""

    name: str
    transfer: Transfer
    positional: list[Argument]
    named: dict[str, Argument]
    dtypes: Mapping[int, str]
    """By id of a value."""
    count: int
    used: set[int | str] = field(default_factory=set)

    def get(self, number: int, name: str, default: Argument = None) -> Argument:
        """An argument by its name or its position; a position of -1 is none."""
        self.used |= {number, name}
        if name in self.named:
            return self.named[name]
        return self.positional[number] if 0 <= number < len(self.positional) else default

    def value(self, number: int = 0, name: str = "self") -> Value:
        """An argument that is a tensor, or a number as one."""
        value = self.optional(number, name)
        if value is None:
            raise MixedRowsError("lacks a tensor")
        return value

    def optional(self, number: int, name: str) -> Value | None:
        """An argument that may be a tensor; None if it is left out."""
        item = self.get(number, name)
        if item is None:
            return None
        if isinstance(item, list | str | Tensor):
            raise MixedRowsError(f"takes something else as '{name}' than a tensor")
        return as_value(item)

    def values(self, number: int, name: str) -> list[Value]:
        """An argument that is a list of tensors."""
        items = self.get(number, name)
        if not isinstance(items, list) or not all(isinstance(item, Value) for item in items):
            raise MixedRowsError("lacks a list of tensors")
        return [item for item in items if isinstance(item, Value)]

    def sizes(self, number: int, name: str) -> list[Size | None]:
        """An argument that is a list of integers, or one of them."""
        item = self.get(number, name)
        items = item if isinstance(item, list) else [item]
        return [self._size(item) for item in items]

    def size(self, number: int, name: str, default: int | None = None) -> Size | None:
        """An argument that is an integer; None if nothing is known of it."""
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
        """An argument that is a known integer."""
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
        """An argument that is a list of known integers, or one; None if it is left out."""
        if self.get(number, name) is None:
            return None
        sizes = self.sizes(number, name)
        if not all(size is not None and size.is_constant for size in sizes):
            raise MixedRowsError("takes axes that are computed while it runs")
        return [size.number for size in sizes if size is not None]

    def flag(self, number: int, name: str, *, default: bool = False) -> bool:
        """An argument that is a known boolean."""
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
        """Count all arguments as looked at."""
        self.used |= {*range(len(self.positional)), *self.named}

    def check_used(self) -> None:
        """Raise MixedRowsError if an argument was given that no one looked at."""
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
    """Operators that follow elements that depend on the number of rows."""
    random: frozenset[str]
    """Operators that may have different outputs for the same inputs."""
    onnx: Mapping[str, str]
    """ONNX names of the operators that accept positions of rows."""


class AtenInterpreter:
    """Calls operators on the tensors of one program.

    `failed`: why nothing that the program gives is proven; empty if that is not so.
    """

    def __init__(self, table: OperatorTable) -> None:
        self.transfer = Transfer()
        self.failed = ""
        self._table = table

    @staticmethod
    def tensor(value: Value, *, memory: SharedStorage | None = None, dtype: str = "") -> Tensor:
        """A tensor with this value, on memory of its own unless some is named."""
        tensor = Tensor(value, SharedStorage() if memory is None else memory, dtype)
        tensor.memory.tensors.append(tensor)
        return tensor

    def call(
        self,
        name: str,
        positional: Sequence[Argument],
        named: Mapping[str, Argument],
        *,
        what: str,
        count: int,
        changes_first: bool = False,
    ) -> list[Tensor]:
        """The outputs of an operator.

        Args:
            name: Without namespace, overload, and the `_` that ends the name of one that writes.
            named: By name; may repeat what is positional.
            what: The operator, for people.
            count: How many outputs are taken; 0 for a list of as many as there are.
            changes_first: Whether it writes its result to its first tensor.
        """
        arguments: list[Argument] = [*positional, *named.values()]
        tensors = list(dict.fromkeys(parts_of_kind(Tensor, arguments)))
        operator = self._table.operators.get(name)
        if operator is None or "out" in named:
            reason = f"{what} is an operator that is not known to keep rows apart"
            for tensor in tensors:  # it may write to any of them
                self._spoil(tensor.memory, reason)
            return [self.tensor(mixed(reason)) for _ in range(max(count, 1))]
        results = self._followed(operator, name, positional, named, tensors, what, max(count, 1))
        results = results[:count] if count else results
        if changes_first:
            if not tensors:
                return [self.tensor(mixed(f"{what} writes to what is not followed"))]
            self._write(tensors[0], results[0], what)
            return [tensors[0]]
        if name.endswith("_norm") and results[0].mixed:
            for tensor in tensors:  # in training it writes to the statistics that it takes
                self._spoil(tensor.memory, results[0].mixed)
        memory = tensors[0].memory if name in self._table.views and tensors else None
        return [self.tensor(value, memory=memory) for value in results]

    def size_of(self, item: Argument, axis: Argument, what: str) -> Argument:
        """The size of an axis, or without one the number of elements."""
        if not isinstance(item, Tensor) or item.value.shape is None:
            reason = item.value.mixed if isinstance(item, Tensor) else ""
            return self.tensor(mixed(reason or f"{what} takes a tensor of unknown shape"))
        shape = item.value.shape
        if isinstance(axis, Size):
            return shape[normal_axis(axis.number, len(shape))]
        return product(shape)

    def item(self, item: Argument, what: str) -> Argument:
        """The only element of a tensor."""
        if not isinstance(item, Tensor):
            return item
        value = item.value
        if value.only is not None:
            return value.only
        if value.is_uniform:
            return self.transfer.symbols.unknown()
        reason = value.mixed or f"{what} takes a number out of all rows"
        return self.tensor(mixed(reason))

    def on_sizes(self, target: str, values: Sequence[Argument], what: str) -> Sequence[Argument]:
        """Arithmetic on sizes; what is not followed is a size of which nothing is known."""
        flat = [part for item in values for part in (item if isinstance(item, list) else [item])]
        for item in flat:
            if isinstance(item, Tensor):
                reason = item.value.mixed or f"{what} takes a tensor"
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
        what: str,
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
                return [numbered, *[mixed(f"{what} is not followed")] * (count - 1)]
        return followed(
            what,
            inputs,
            count,
            lambda: applied([tensor.value for tensor in tensors]),
            may_count=name in self._table.sized,
            is_deterministic=name not in self._table.random,
        )

    def _write(self, target: Tensor, result: Value, what: str) -> None:
        """Change a tensor, and whatever shares its memory.

        Entries of a row stay entries of that row in every view, so that views of tensors with rows
        need no more than the result to have the same rows.
        """
        old = target.value
        reason = result.mixed
        if target.memory.is_model:
            self.failed = self.failed or f"{what} changes the model itself"
        elif result.shape != old.shape or result.rows != old.rows or result.counts_rows:
            reason = reason or f"{what} writes to a tensor what it has no axis for"
        for tensor in target.memory.tensors:
            value = tensor.value
            has_other = (value.rows is None) != (old.rows is None) or value.counts_rows
            spoilt = reason or (f"{what} writes to what other tensors share" if has_other else "")
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
    """A number as a tensor without dimensions."""
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
    """Whether numbers of a type, as PyTorch names it, have no fraction."""
    return dtype.startswith(_WHOLE)


def parts_of_kind(kind: type[_T], items: Sequence[object]) -> list[_T]:
    """What is of a kind among items, and in lists and tuples among them."""
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
