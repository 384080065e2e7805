"""Codec of gRPC infer messages: `inference.ModelInferRequest`, `ModelInferResponse`."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from headrace.core import (
    Array,
    Datatype,
    InferRequest,
    InferResponse,
    InvalidArgumentError,
    ModelNotFoundError,
    ModelSignature,
    RequestedOutput,
    datatype_of,
)
from headrace.protocol.grpc_wire import (
    check_fields,
    delimited_prefix,
    frame,
    frame_prefix,
    grpc_message,
    parse_grpc_message,
    parse_grpc_timeout,
    unframe,
)
from headrace.protocol.inputs import InputTensor, ModelInputs, ShapePlan
from headrace.protocol.outputs import answered_outputs, raw_bytes
from headrace.protocol.parameters import (
    NO_OPTIONS,
    check_outputs,
    refuse_shared_memory,
    request_options,
    requested_output,
)
from headrace.protocol.protos import message_class
from headrace.protocol.values import join_elements

__all__ = [
    "CONTENTS_FIELDS",
    "GrpcInferCodec",
    "encode_parameters",
    "frame",
    "frame_prefix",
    "grpc_message",
    "parameter_values",
    "parse_grpc_message",
    "parse_grpc_timeout",
    "unframe",
]

_Request: Final = message_class("inference.ModelInferRequest")
_Response: Final = message_class("inference.ModelInferResponse")
_REMEMBERED_SHAPES: Final = 1024
_SHOWN: Final = 200
_INT64_LIMIT: Final = 1 << 63

CONTENTS_FIELDS: Final[Mapping[str, str]] = {
    Datatype.BOOL: "bool_contents",
    Datatype.INT8: "int_contents",
    Datatype.INT16: "int_contents",
    Datatype.INT32: "int_contents",
    Datatype.INT64: "int64_contents",
    Datatype.UINT8: "uint_contents",
    Datatype.UINT16: "uint_contents",
    Datatype.UINT32: "uint_contents",
    Datatype.UINT64: "uint64_contents",
    Datatype.FP32: "fp32_contents",
    Datatype.FP64: "fp64_contents",
    Datatype.BYTES: "bytes_contents",
}
"""Field of `InferTensorContents` for each datatype; FP16 has none."""


class _Head(NamedTuple):
    """Serialised description of an output of one shape, and the prefix of its raw bytes."""

    dtype: np.dtype
    text: bytes
    raw_prefix: bytes


class GrpcInferCodec:
    """Codec of one model version's infer messages; not thread-safe.

    Arrays may be read-only: copy before writing.
    """

    def __init__(
        self,
        model_name: str,
        model_version: str,
        signature: ModelSignature,
        *,
        max_batch_size: int | None = None,
    ) -> None:
        self._model = model_name
        self._version = model_version
        self._signature = signature
        self._inputs = ModelInputs(model_name, signature, max_batch_size=max_batch_size)
        self._tensors = self._inputs.tensors
        self._count = len(signature.inputs)
        self._start: bytes = _Response(
            model_name=model_name, model_version=model_version
        ).SerializeToString()
        self._heads: dict[tuple[str, tuple[int, ...]], _Head] = {}

    def decode(self, message: bytes | bytearray | memoryview) -> InferRequest:
        """Return the request in a serialised `ModelInferRequest`, validated against the signature.

        Raises:
            ModelNotFoundError: It names another model or version.
            InvalidArgumentError: The model cannot run it; the message says why.
            UnsupportedError: It uses shared memory or a sequence.
        """
        check_fields(message)
        try:
            request = _Request.FromString(message)
        except DecodeError as error:
            msg = f"failed to parse the request message: {str(error)[:_SHOWN]}"
            raise InvalidArgumentError(msg) from None
        self._check_model(request.model_name, request.model_version)
        inputs, rows = self._decode_inputs(request)
        parameters = request.parameters
        options = request_options(parameter_values(parameters)) if parameters else NO_OPTIONS
        outputs = request.outputs
        return InferRequest(
            model_name=self._model,
            inputs=inputs,
            rows=rows,
            model_version=self._version,
            id=request.id,
            outputs=self._decode_outputs(outputs) if outputs else (),
            binary_data_output=True,
            priority=options.priority,
            timeout_s=options.timeout_s,
            parameters=options.others,
        )

    def encode(self, response: InferResponse, request: InferRequest) -> bytes:
        """Return the serialised `ModelInferResponse`, with raw contents.

        Raises:
            InvalidArgumentError: Classes were requested of an output without numbers.
            RuntimeFailedError: The model did not return a requested output.
        """
        parts = [self._start]
        if request.id:
            parts.append(_Response(id=request.id).SerializeToString())
        if response.parameters:
            parts.append(_parameters_message(response.parameters))
        if not request.outputs and len(response.outputs) == 1:
            ((name, array),) = response.outputs.items()
            head = self._heads.get((name, array.shape))
            if head is not None and head.dtype is array.dtype:
                parts += (head.text, head.raw_prefix, array.tobytes())
                return b"".join(parts)
        raws: list[bytes | memoryview] = []
        for name, array, _ in answered_outputs(response, request, self._signature):
            raw = join_elements(array.flat) if array.dtype.kind in "OSU" else raw_bytes(array)
            head = self._head(name, array, len(raw))
            parts.append(head.text)
            raws += (head.raw_prefix, raw)
        return b"".join([*parts, *raws])

    def _check_model(self, name: str, version: str) -> None:
        if name != self._model or (version and version != self._version):
            raise ModelNotFoundError(name[:_SHOWN], version[:_SHOWN])

    def _decode_inputs(self, request: Any) -> tuple[dict[str, Array], int]:  # noqa: ANN401  # protobuf's classes are made at run time
        inputs: dict[str, Array] = {}
        rows = 0
        raws = request.raw_input_contents
        is_raw = len(raws) > 0
        messages = request.inputs
        if is_raw and len(raws) != len(messages):
            msg = (
                f"expected {len(messages)} raw_input_contents for as many inputs of model "
                f"'{self._model}', got {len(raws)}"
            )
            raise InvalidArgumentError(msg)
        fits = len(messages) == self._count
        for index, item in enumerate(messages):
            name = item.name
            tensor = self._tensors.get(name) or self._inputs.get(name)
            if item.datatype != tensor.datatype:
                tensor.check_datatype(item.datatype)
            shape = tuple(item.shape)
            plan = tensor.plans.get(shape) or tensor.plan(shape)
            if item.parameters:
                refuse_shared_memory(item.parameters)
            if is_raw:
                if item.HasField("contents") and item.contents.ByteSize():
                    raise InvalidArgumentError(
                        "contents field must not be specified when using raw_input_contents for "
                        f"'{name}' for model '{self._model}'"
                    )
                raw = raws[index]
                inputs[name] = tensor.from_raw(plan, raw, 0, len(raw))
            else:
                inputs[name] = self._from_contents(tensor, plan, item.contents)
            rows = rows or plan.rows
            fits = fits and rows == plan.rows
        if not fits or len(inputs) != self._count:
            self._inputs.raise_misfit([item.name for item in messages], inputs)
        return inputs, rows or 1

    def _from_contents(self, tensor: InputTensor, plan: ShapePlan, contents: Any) -> Array:  # noqa: ANN401  # as above
        name = tensor.name
        field = CONTENTS_FIELDS.get(tensor.spec.datatype)
        if field is None:
            msg = f"input '{name}' has datatype FP16, which has to be sent in raw_input_contents"
            raise InvalidArgumentError(msg)
        for content, _ in contents.ListFields():
            if content.name != field:
                msg = (
                    f"unexpected explicit tensor data for input '{name}' for model "
                    f"'{self._model}': {content.name} is set, but datatype {tensor.datatype} "
                    f"needs {field}"
                )
                raise InvalidArgumentError(msg)
        values = getattr(contents, field)
        tensor.check_count(plan, len(values))
        return tensor.from_typed(plan, list(values))

    def _decode_outputs(self, outputs: Any) -> tuple[RequestedOutput, ...]:  # noqa: ANN401  # as above
        requested = tuple(requested_output(o.name, parameter_values(o.parameters)) for o in outputs)
        check_outputs(self._model, self._signature, requested)
        return requested

    def _head(self, name: str, array: Array, size: int) -> _Head:
        datatype = datatype_of(array.dtype)
        output = {"name": name, "datatype": datatype.value, "shape": array.shape}
        text: bytes = _Response(outputs=[output]).SerializeToString()
        head = _Head(datatype.dtype, text, delimited_prefix(_RAW_FIELD, size))
        if datatype != Datatype.BYTES:
            if len(self._heads) >= _REMEMBERED_SHAPES:
                self._heads.clear()
            self._heads[name, array.shape] = head
        return head


_RAW_FIELD: Final = 6
"""Number of `raw_output_contents`."""


def parameter_values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return plain values of a map of `InferParameter`; a parameter without a value is refused."""
    values = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            msg = f"parameter '{name[:_SHOWN]}' has no value"
            raise InvalidArgumentError(msg)
        values[name] = getattr(parameter, kind)
    return values


def encode_parameters(target: Any, parameters: Mapping[str, Any]) -> None:  # noqa: ANN401  # as above
    """Write plain values to a map of `InferParameter`.

    Raises:
        InvalidArgumentError: The protocol cannot represent a value's type or size.
    """
    for name, value in parameters.items():
        entry = target[name]
        if isinstance(value, bool):
            entry.bool_param = value
        elif isinstance(value, int) and -_INT64_LIMIT <= value < 2 * _INT64_LIMIT:
            if value < _INT64_LIMIT:
                entry.int64_param = value
            else:
                entry.uint64_param = value
        elif isinstance(value, float):
            entry.double_param = value
        elif isinstance(value, str):
            entry.string_param = value
        else:
            msg = f"parameter '{name}' must be a boolean, 64-bit integer, number or string"
            raise InvalidArgumentError(msg)


def _parameters_message(parameters: Mapping[str, Any]) -> bytes:
    message = _Response()
    encode_parameters(message.parameters, parameters)
    serialised: bytes = message.SerializeToString()
    return serialised
