"""One node of an ONNX graph, as the functions that follow operators see it."""

from collections.abc import Callable
from dataclasses import dataclass

from headrace.runtimes.rows.onnx_graph import OnnxNode
from headrace.runtimes.rows.symbols import ONE, Size, product
from headrace.runtimes.rows.transfer import Results, Transfer
from headrace.runtimes.rows.values import (
    MixedRowsError,
    Value,
    known_axes,
    known_sizes,
)


@dataclass(slots=True)
class Call:
    """One node with its inputs' values; None stands for an input that is left out."""

    node: OnnxNode
    inputs: list[Value | None]
    transfer: Transfer
    opset: int

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

    def uniform(self, *numbers: int) -> None:
        """Raise MixedRowsError unless these inputs are the same for every batch."""
        for number in numbers:
            value = self.optional(number)
            if value is not None and not value.is_uniform:
                raise MixedRowsError("has parameters that depend on the batch")

    def integer(self, name: str, default: int) -> int:
        """An attribute."""
        attribute = self.node.attributes.get(name)
        value = None if attribute is None else attribute.integer()
        return default if value is None else value

    def ints(self, name: str) -> list[int] | None:
        """An attribute; None if it is absent."""
        attribute = self.node.attributes.get(name)
        return None if attribute is None else attribute.ints()

    def count(self, name: str) -> int:
        """How many items a list of texts or integers has; 0 if it is absent."""
        attribute = self.node.attributes.get(name)
        return 0 if attribute is None else attribute.count()

    def text(self, name: str, default: str = "") -> str:
        """An attribute."""
        attribute = self.node.attributes.get(name)
        return default if attribute is None else attribute.text()

    def sizes(self, number: int) -> list[Size | None]:
        """An input that is a list of sizes.

        Raises:
            MixedRowsError: They depend on rows, or not even their number is known.
        """
        return known_sizes(self.value(number))

    def axes(self, name: str, number: int) -> list[int] | None:
        """Axes as an attribute or, in newer versions, an input; None if there are none.

        Raises:
            MixedRowsError: They are computed while it runs.
        """
        if name in self.node.attributes:
            return self.ints(name)
        value = self.optional(number)
        return None if value is None else known_axes(value)


Operator = Callable[[Call], Results]


def is_scalar(value: Value) -> bool:
    """Whether it is one element."""
    return value.shape is not None and product(value.shape) == ONE
