"""Request and response type of online, streaming and batch inference.

A replica creates one of each per request and reads them many times. They are plain classes, because
mypyc compiles these to direct attribute access, unlike dataclasses and Structs.
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
    """Output that the caller requested by name."""

    name: str
    classification: int = 0
    """Return the N best classes as `"value:index[:label]"` instead of the tensor; 0 means no."""
    binary_data: bool | None = None
    """Whether to send raw bytes instead of JSON; None leaves that to the request."""


@mypyc_attr(acyclic=True)  # where mypyc compiles it
class Packed:
    """Input as the bytes of its elements, so that several requests' inputs make one array at once.

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


@mypyc_attr(acyclic=True)  # where mypyc compiles it
class InferRequest:
    """Inputs for one run of a model, already validated against its signature.

    `rows` is the size of axis 0, or 1 for a model without a batch axis. `outputs` is empty for all
    outputs. `priority`: 1 is the highest, 0 the default level. `timeout_s`: how long the caller
    waits; None means forever. `packed`: the only input, until its array is requested.
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
        """Return the arrays by name."""
        inputs = self._inputs
        if inputs is None:
            packed = self.packed
            assert packed is not None  # one of the two is set
            array = np.ndarray(packed.shape, packed.dtype, packed.data)
            inputs = self._inputs = {packed.name: array}
        return inputs

    def with_inputs(self, inputs: Tensors | Packed) -> "InferRequest":
        """Return the same request with other inputs of the same number of rows."""
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


@mypyc_attr(acyclic=True)  # where mypyc compiles it
class BatchOutputs:
    """Outputs of one run for several requests, whose rows are adjacent.

    `bodies`: the encoded response to each row, made for all rows at once; None before that, empty
    if the encoder cannot. `binary_bodies`: the same with raw numbers.
    """

    __slots__ = ("arrays", "binary_bodies", "bodies")

    def __init__(self, arrays: Tensors) -> None:
        self.arrays = arrays
        self.bodies: list[bytes] | None = None
        self.binary_bodies: list[bytes] | None = None


@mypyc_attr(acyclic=True)  # where mypyc compiles it
class RequestRows:
    """Rows of one request in `BatchOutputs`: from `start` to before `end`."""

    __slots__ = ("batch", "end", "start")

    def __init__(self, batch: BatchOutputs, start: int, end: int) -> None:
        self.batch = batch
        self.start = start
        self.end = end

    def arrays(self) -> Tensors:
        """Return views of the rows, by name."""
        start, end = self.start, self.end
        return {name: array[start:end] for name, array in self.batch.arrays.items()}


def arrays_of(outputs: Tensors | RequestRows) -> Tensors:
    """Return the arrays by name, for both forms of outputs."""
    return outputs.arrays() if isinstance(outputs, RequestRows) else outputs


@mypyc_attr(acyclic=True)  # where mypyc compiles it
class InferResponse:
    """Response of version `model_version` of the model `model_name`.

    `outputs`: arrays by name, in the requested order, otherwise the signature's. `id`: the
    request's id. `parameters`: further response parameters, None without any. `part`: the outputs
    as rows of a run for several requests, otherwise None.
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
        """Return the arrays by name."""
        outputs = self._outputs
        if outputs is None:
            assert self.part is not None  # one of the two is set
            outputs = self._outputs = self.part.arrays()
        return outputs

    def __repr__(self) -> str:
        return (
            f"InferResponse(model_name={self.model_name!r}, model_version={self.model_version!r}, "
            f"id={self.id!r}, outputs={self.outputs}, parameters={self.parameters})"
        )
