"""The one request type of online, streaming and batch inference, and its answer.

These are `msgspec.Struct`s rather than dataclasses: creating one costs a tenth of a frozen
dataclass, and the replica creates two for every request.
"""

from typing import Any

import msgspec

from headrace.core.signature import Tensors

Parameter = bool | int | float | str
Parameters = dict[str, Parameter]


class RequestedOutput(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """An output the caller asked for by name.

    `classification`: answer the N best classes as `"value:index[:label]"` instead of the tensor; 0
    means no. `binary_data`: as raw bytes rather than JSON; None leaves it to the request.
    """

    name: str
    classification: int = 0
    binary_data: bool | None = None


class InferRequest(msgspec.Struct, kw_only=True, gc=False):
    """Inputs for one run of a model, already checked against its signature.

    `rows` is the size of axis 0, or 1 for a model without a batch axis. `outputs` is empty if all
    are wanted. `priority`: 1 is the highest, 0 the default level. `timeout_s`: how long the caller
    waits, None for ever.
    """

    model_name: str
    inputs: Tensors
    rows: int = 1
    model_version: str = ""
    id: str = ""
    outputs: tuple[RequestedOutput, ...] = ()
    binary_data_output: bool = False
    priority: int = 0
    timeout_s: float | None = None
    parameters: dict[str, Any] | None = None


class InferResponse(msgspec.Struct, kw_only=True, gc=False):
    """What the model answered.

    `outputs` stand in the order the caller asked for, else in the signature's.
    """

    model_name: str
    outputs: Tensors
    model_version: str = ""
    id: str = ""
    parameters: dict[str, Any] | None = None
