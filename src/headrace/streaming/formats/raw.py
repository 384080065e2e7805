"""Raw tensor format: records and answers are the little-endian bytes of their only tensor.

For BYTES the whole value is the only element, without a length prefix.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from headrace.core import Array, Datatype, HeadraceError, InvalidArgumentError
from headrace.core.spec.stream_parts import StreamFormatSpec
from headrace.protocol.outputs import plain_array
from headrace.streaming.formats import Column, FieldLayout, Fields, FieldSpec, without_value
from headrace.streaming.records import Record


class RawTensors:
    """The format `raw`.

    Raises:
        InvalidArgumentError: The model has several inputs or outputs, or an input whose shape does
            not follow from the number of bytes.
    """

    def __init__(self, layout: FieldLayout) -> None:
        if layout.passed or layout.answered:
            msg = "raw tensors have no fields to pass on, or to take as a key"
            raise InvalidArgumentError(msg)
        if layout.outputs:
            self._output = _only(layout.outputs, "output: choose one in output.outputs")
        if not layout.inputs:
            return
        self._input = _only(layout.inputs, "input")
        shape = self._input.shape
        if sum(size == -1 for size in shape) > 1 and self._input.datatype is not Datatype.BYTES:
            msg = (
                f"raw tensors leave the shape {list(shape)} of input '{self._input.name}' open: "
                "more than one dimension is variable; choose another format"
            )
            raise InvalidArgumentError(msg)
        self._fixed = int(np.prod([size for size in shape if size != -1], dtype=np.int64))

    def decode(self, records: Sequence[Record]) -> Fields:
        """Decode as `ValueReader.decode`; records of one size are copied at once."""
        errors: dict[int, HeadraceError] = {}
        values: list[bytes] = []
        for index, record in enumerate(records):
            value = record.value
            if value is None:
                errors[index] = without_value()
            elif (error := self._misfit(value)) is not None:
                errors[index] = error
            else:
                values.append(value)
        column = values if self._input.datatype is Datatype.BYTES else self._arrays(values)
        return Fields(columns={self._input.name: column}, errors=errors, typed=True)

    def encode(self, columns: Mapping[str, Column], rows: int) -> list[bytes]:
        """Return the values of answers; see `ValueWriter.encode`."""
        array = columns[self._output.name]
        assert isinstance(array, np.ndarray)
        if array.dtype.kind in "OSU":
            return [_element(self._output.name, row) for row in array.reshape(rows, -1)]
        plain = plain_array(array)
        size = plain.nbytes // max(rows, 1)
        joined = plain.tobytes()
        return [joined[row * size : (row + 1) * size] for row in range(rows)]

    def _misfit(self, value: bytes) -> HeadraceError | None:
        spec, size = self._input, len(value)
        if spec.datatype is Datatype.BYTES:
            return None
        if spec.datatype is Datatype.BOOL and size and max(value) > 1:
            msg = f"input '{spec.name}' has a BOOL element whose byte is neither 0 nor 1"
            return InvalidArgumentError(msg)
        unit = self._fixed * spec.datatype.dtype.itemsize
        if size == unit or (-1 in spec.shape and size and unit and size % unit == 0):
            return None
        expected = f"a multiple of {unit}" if -1 in spec.shape else str(unit)
        return InvalidArgumentError(
            f"input '{spec.name}' is {spec.datatype.value} of shape {list(spec.shape)}: "
            f"expected {expected} bytes, got {size}"
        )

    def _arrays(self, values: Sequence[bytes]) -> Column:
        spec = self._input
        sizes = set(map(len, values))
        if len(sizes) <= 1:
            shape = self._shape(next(iter(sizes), 0))
            joined = np.frombuffer(b"".join(values), spec.datatype.dtype)
            return joined.reshape(len(values), *shape)
        return [
            np.frombuffer(value, spec.datatype.dtype).reshape(self._shape(len(value)))
            for value in values
        ]

    def _shape(self, size: int) -> tuple[int, ...]:
        unit = self._fixed * self._input.datatype.dtype.itemsize
        return tuple(size // unit if dim == -1 else dim for dim in self._input.shape)


def _only(specs: Sequence[FieldSpec], description: str) -> FieldSpec:
    if len(specs) != 1:
        names = ", ".join(spec.name for spec in specs)
        msg = f"raw tensors are for models with one {description}; this one has: {names}"
        raise InvalidArgumentError(msg)
    return specs[0]


def _element(name: str, row: Array) -> bytes:
    if row.size != 1:
        msg = f"a raw value holds one BYTES element, but a row of output '{name}' has {row.size}"
        raise InvalidArgumentError(msg)
    element: Any = row[0]
    return element if isinstance(element, bytes) else str(element).encode()


def make_reader(_: StreamFormatSpec, layout: FieldLayout) -> RawTensors:
    """Return the format `raw`; one class reads and writes it."""
    return RawTensors(layout)


make_writer = make_reader
