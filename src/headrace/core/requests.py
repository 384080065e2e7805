"""The one request type of online, streaming and batch inference, and its answer.

A replica makes one of each for every request and reads them a dozen times. They are plain classes:
those are made and read without a look-up once they are compiled, unlike dataclasses and Structs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from mypy_extensions import mypyc_attr

from headrace.core.signature import Tensors

Parameter = bool | int | float | str
Parameters = dict[str, Parameter]


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestedOutput:
    """An output the caller asked for by name."""

    name: str
    classification: int = 0
    """Answer the N best classes as `"value:index[:label]"` instead of the tensor; 0 means no."""
    binary_data: bool | None = None
    """As raw bytes rather than JSON; None leaves it to the request."""


@mypyc_attr(acyclic=True)  # where it is compiled
class Packed:
    """An input as the bytes of its elements, of which several requests' make one array at once.

    `name`, `shape` and `dtype` (a NumPy one, little-endian) are as in the signature.
    """

    __slots__ = ("data", "dtype", "name", "shape")

    def __init__(
        self, name: str, shape: tuple[int, ...], dtype: "np.dtype[Any]", data: bytes
    ) -> None:
        self.name = name
        self.shape = shape
        self.dtype = dtype
        self.data = data


@mypyc_attr(acyclic=True)  # where it is compiled
class InferRequest:
    """Inputs for one run of a model, already checked against its signature.

    `rows` is the size of axis 0, or 1 for a model without a batch axis. `outputs` is empty if all
    are wanted. `priority`: 1 is the highest, 0 the default level. `timeout_s`: how long the caller
    waits, None for ever. `packed`: the only input, where nobody has asked for its array yet.
    """

    __slots__ = (
        "_inputs",
        "binary_data_output",
        "id",
        "model_name",
        "model_version",
        "outputs",
        "packed",
        "parameters",
        "priority",
        "rows",
        "timeout_s",
    )

    def __init__(
        self,
        *,
        model_name: str,
        inputs: Tensors | Packed,
        rows: int = 1,
        model_version: str = "",
        id: str = "",  # noqa: A002  # the protocol's word
        outputs: tuple[RequestedOutput, ...] = (),
        binary_data_output: bool = False,
        priority: int = 0,
        timeout_s: float | None = None,
        parameters: dict[str, Any] | None = None,
    ) -> None:
        if isinstance(inputs, Packed):
            self._inputs: Tensors | None = None
            self.packed: Packed | None = inputs
        else:
            self._inputs, self.packed = inputs, None
        self.model_name = model_name
        self.rows = rows
        self.model_version = model_version
        self.id = id
        self.outputs = outputs
        self.binary_data_output = binary_data_output
        self.priority = priority
        self.timeout_s = timeout_s
        self.parameters = parameters

    @property
    def inputs(self) -> Tensors:
        """The arrays by name."""
        inputs = self._inputs
        if inputs is None:
            packed = self.packed
            assert packed is not None  # one of the two is there
            array = np.ndarray(packed.shape, packed.dtype, packed.data)
            inputs = self._inputs = {packed.name: array}
        return inputs

    def with_inputs(self, inputs: Tensors | Packed) -> "InferRequest":
        """The same request with other inputs of the same number of rows."""
        return InferRequest(
            model_name=self.model_name,
            inputs=inputs,
            rows=self.rows,
            model_version=self.model_version,
            id=self.id,
            outputs=self.outputs,
            binary_data_output=self.binary_data_output,
            priority=self.priority,
            timeout_s=self.timeout_s,
            parameters=self.parameters,
        )

    def __repr__(self) -> str:
        return f"InferRequest(model_name={self.model_name!r}, id={self.id!r}, inputs={self.inputs})"


@mypyc_attr(acyclic=True)  # where it is compiled
class BatchOutputs:
    """What one run answered for several requests, whose rows lie one after the other.

    `bodies`: the answer to each row as an encoder made it, for all at once; None before that, empty
    if it cannot. `binary_bodies`: the same with raw numbers.
    """

    __slots__ = ("arrays", "binary_bodies", "bodies")

    def __init__(self, arrays: Tensors) -> None:
        self.arrays = arrays
        self.bodies: list[bytes] | None = None
        self.binary_bodies: list[bytes] | None = None


@mypyc_attr(acyclic=True)  # where it is compiled
class RequestRows:
    """One request's rows of them: from `start` to before `end`."""

    __slots__ = ("batch", "end", "start")

    def __init__(self, batch: BatchOutputs, start: int, end: int) -> None:
        self.batch = batch
        self.start = start
        self.end = end

    def arrays(self) -> Tensors:
        """Views of them, by name."""
        start, end = self.start, self.end
        return {name: array[start:end] for name, array in self.batch.arrays.items()}


def arrays_of(outputs: Tensors | RequestRows) -> Tensors:
    """The arrays by name, whichever way they are told."""
    return outputs.arrays() if isinstance(outputs, RequestRows) else outputs


@mypyc_attr(acyclic=True)  # where it is compiled
class InferResponse:
    """What version `model_version` of the model `model_name` answered.

    `outputs`: arrays by name, in the order the caller asked for, else in the signature's. `id`: the
    request's. `parameters`: what the server says beside them, None for nothing. `part`: the outputs
    as a part of what the run answered for several requests, None elsewhere.
    """

    __slots__ = ("_outputs", "id", "model_name", "model_version", "parameters", "part")

    def __init__(
        self,
        *,
        model_name: str,
        outputs: Tensors | RequestRows,
        model_version: str = "",
        id: str = "",  # noqa: A002  # the protocol's word
        parameters: dict[str, Any] | None = None,
    ) -> None:
        if isinstance(outputs, RequestRows):
            self._outputs: Tensors | None = None
            self.part: RequestRows | None = outputs
        else:
            self._outputs, self.part = outputs, None
        self.model_name = model_name
        self.model_version = model_version
        self.id = id
        self.parameters = parameters

    @property
    def outputs(self) -> Tensors:
        """The arrays by name."""
        outputs = self._outputs
        if outputs is None:
            assert self.part is not None  # one of the two is there
            outputs = self._outputs = self.part.arrays()
        return outputs

    def __repr__(self) -> str:
        return (
            f"InferResponse(model_name={self.model_name!r}, model_version={self.model_version!r}, "
            f"id={self.id!r}, outputs={self.outputs}, parameters={self.parameters})"
        )
