"""What does a transformer of scikit-learn take? Texts, a matrix of numbers, or a table."""

from collections.abc import Mapping
from typing import Any, Final, Protocol

import numpy as np

from headrace.core import VARIABLE, Datatype, InvalidArgumentError, Tensors, TensorSpec
from headrace.pipeline.texts import texts_of
from headrace.runtimes.tabular import INPUT

TEXT: Final = "text"
_WORDS: Final = b"a word "


class Taken(Protocol):
    """How a request's tensors become what `transform` takes."""

    specs: tuple[TensorSpec, ...]
    described: str

    def rows(self, inputs: Tensors) -> Any:  # noqa: ANN401  # what the library takes
        """One batch.

        Raises:
            InvalidArgumentError: A text is none.
        """

    def example(self, rows: int, variable: int) -> Tensors:
        """Tensors of so many rows."""


class Texts:
    """`text` BYTES [N] to a list of strings. Implements `Taken`."""

    described = "texts"

    def __init__(self) -> None:
        text = TensorSpec(name=TEXT, datatype=Datatype.BYTES, shape=(VARIABLE,))
        self.specs: tuple[TensorSpec, ...] = (text,)

    def rows(self, inputs: Tensors) -> list[str]:
        """The texts."""
        return texts_of(inputs[TEXT])

    def example(self, rows: int, variable: int) -> Tensors:
        """Texts of about so many words."""
        made = np.empty(rows, np.object_)
        made[:] = [_WORDS * max(variable // 2, 1)] * rows
        return {TEXT: made}


class Matrix:
    """`input` FP64 [N, columns] as it is. Implements `Taken`."""

    def __init__(self, columns: int) -> None:
        shape = (VARIABLE, columns)
        matrix = TensorSpec(name=INPUT, datatype=Datatype.FP64, shape=shape)
        self.specs: tuple[TensorSpec, ...] = (matrix,)
        self.described = f"a matrix of {columns} numbers a row"

    def rows(self, inputs: Tensors) -> Any:  # noqa: ANN401  # an array
        """The matrix."""
        return inputs[INPUT]

    def example(self, rows: int, variable: int) -> Tensors:
        """Zeros."""
        del variable
        return {INPUT: np.zeros((rows, *self.specs[0].shape[1:]))}


class Table:
    """One tensor [N] for each column to a data frame. Implements `Taken`."""

    def __init__(self, columns: Mapping[str, str], library: Any) -> None:  # noqa: ANN401  # a module
        self.specs = tuple(
            TensorSpec(name=name, datatype=Datatype(datatype), shape=(VARIABLE,))
            for name, datatype in columns.items()
        )
        self.described = f"a table of the columns {', '.join(columns)}"
        self._library = library

    def rows(self, inputs: Tensors) -> Any:  # noqa: ANN401  # a data frame
        """The table; texts stand in columns of objects."""
        return self._library.DataFrame({one.name: _column(one, inputs) for one in self.specs})

    def example(self, rows: int, variable: int) -> Tensors:
        """Zeros and short texts."""
        del variable
        made: Tensors = {}
        for one in self.specs:
            filling = b"a" if one.datatype is Datatype.BYTES else 0
            made[one.name] = np.full(rows, filling, one.datatype.dtype)
        return made


def _column(spec: TensorSpec, inputs: Tensors) -> Any:  # noqa: ANN401  # an array
    array = inputs[spec.name]
    if spec.datatype is not Datatype.BYTES:
        return array
    texts = np.empty(len(array), np.object_)
    try:
        texts[:] = texts_of(array)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"'{spec.name}': {error}") from None
    return texts
