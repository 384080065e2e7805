"""gRPC wire format of the protocol, with raw tensors in both directions."""

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from google.protobuf.message import DecodeError

from headrace.client.answers import (
    Document,
    ModelMetadata,
    ProtocolError,
    ServerMetadata,
    TensorMetadata,
)
from headrace.client.conversation import ProtocolExchange, ResultT
from headrace.client.grpc_transport import GrpcMessage
from headrace.client.tensors import from_raw, to_raw
from headrace.core import (
    DTYPES,
    Array,
    InferRequest,
    InferResponse,
    RequestedOutput,
    Tensors,
    datatype_of,
)
from headrace.protocol.grpc_codec import CONTENTS_FIELDS, encode_parameters, parameter_values
from headrace.protocol.protos import INFERENCE_SERVICE, message_class

_MODEL_HEADER: Final = "x-model"
_VERSION_HEADER: Final = "x-model-version"


class GrpcWire:
    """Messages of `inference.GRPCInferenceService`."""

    def infer(self, request: InferRequest) -> ProtocolExchange[InferResponse]:
        """Run a model."""
        message = _encode_infer(request)
        return _call("ModelInfer", message, decode_infer, request.model_name, request.model_version)

    def metadata(self, model: str, version: str) -> ProtocolExchange[ModelMetadata]:
        """Describe a model."""
        message = message_class("inference.ModelMetadataRequest")(name=model, version=version)
        return _call("ModelMetadata", message, _metadata, model, version)

    def config(self, model: str, version: str) -> ProtocolExchange[Document]:
        """Return a model's configuration."""
        message = message_class("inference.ModelConfigRequest")(name=model, version=version)
        return _call("ModelConfig", message, lambda m: to_document(m.config), model, version)

    def statistics(self, model: str, version: str) -> ProtocolExchange[Document]:
        """Return a model's counters; those of all models if `model` is empty."""
        message = message_class("inference.ModelStatisticsRequest")(name=model, version=version)
        return _call("ModelStatistics", message, to_document, model, version)

    def server_metadata(self) -> ProtocolExchange[ServerMetadata]:
        """Describe the server."""
        message = message_class("inference.ServerMetadataRequest")()
        return _call("ServerMetadata", message, _server_metadata)

    def live(self) -> ProtocolExchange[bool]:
        """Whether the server runs."""
        message = message_class("inference.ServerLiveRequest")()
        return _call("ServerLive", message, lambda m: bool(m.live))

    def ready(self, model: str, version: str) -> ProtocolExchange[bool]:
        """Whether a model, or the whole server if `model` is empty, can answer."""
        if not model:
            message = message_class("inference.ServerReadyRequest")()
            return _call("ServerReady", message, lambda m: bool(m.ready))
        message = message_class("inference.ModelReadyRequest")(name=model, version=version)
        return _call("ModelReady", message, lambda m: bool(m.ready), model, version)


def decode_infer(message: Any) -> InferResponse:  # noqa: ANN401  # protobuf's classes are made at run time
    """Return the response in a `ModelInferResponse`.

    Raises:
        ProtocolError: Its tensors do not follow the protocol.
    """
    raws = list(message.raw_output_contents)
    if raws and len(raws) != len(message.outputs):
        msg = f"the answer has {len(message.outputs)} outputs but {len(raws)} raw contents"
        raise ProtocolError(msg)
    outputs: Tensors = {}
    for i, output in enumerate(message.outputs):
        outputs[output.name] = (
            from_raw(output.name, output.datatype, tuple(output.shape), raws[i])
            if raws
            else _from_contents(output)
        )
    return InferResponse(
        model_name=message.model_name,
        model_version=message.model_version,
        id=message.id,
        outputs=outputs,
        parameters=parameter_values(message.parameters) or None,
    )


def to_document(message: Any) -> Document:  # noqa: ANN401  # as above
    """Return a message as JSON has it, but with integers as numbers and every field present."""
    document: Document = {}
    for field in message.DESCRIPTOR.fields:
        if field.containing_oneof is not None and not message.HasField(field.name):
            continue
        document[field.name] = _plain(field, getattr(message, field.name))
    return document


def _plain(field: Any, value: Any) -> Any:  # noqa: ANN401  # as above
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        item = kind.fields_by_name["value"]
        return {str(key): _plain_message(item, value[key]) for key in value}
    if isinstance(value, str | bytes) or not hasattr(value, "__len__"):
        return _plain_message(field, value)
    return [_plain_message(field, item) for item in value]


def _plain_message(field: Any, value: Any) -> Any:  # noqa: ANN401  # as above
    if field.message_type is not None:
        return to_document(value)
    if field.enum_type is not None:
        named = field.enum_type.values_by_number.get(value)
        return value if named is None else named.name
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _call(
    rpc: str,
    message: Any,  # noqa: ANN401  # as above
    read: Callable[[Any], ResultT],
    model: str = "",
    version: str = "",
) -> ProtocolExchange[ResultT]:
    # A gateway reads the model's name only from the beginning of the body; the headers name it for
    # a body of any size.
    named = (((_MODEL_HEADER, model),) if model else ()) + (
        ((_VERSION_HEADER, version),) if version else ()
    )
    response = message_class(f"inference.{rpc}Response")

    def read_reply(body: bytes) -> ResultT:
        try:
            return read(response.FromString(body))
        except DecodeError as error:
            msg = f"the server's answer to {rpc} cannot be read: {error}"
            raise ProtocolError(msg) from error

    return ProtocolExchange(
        message=GrpcMessage(
            method=f"/{INFERENCE_SERVICE}/{rpc}", body=message.SerializeToString(), metadata=named
        ),
        read=read_reply,
    )


def _encode_infer(request: InferRequest) -> Any:  # noqa: ANN401  # as above
    message = message_class("inference.ModelInferRequest")(
        model_name=request.model_name, model_version=request.model_version, id=request.id
    )
    parameters = dict(request.parameters or {})
    if request.priority:
        parameters["priority"] = request.priority
    encode_parameters(message.parameters, parameters)
    for name, array in request.inputs.items():
        message.inputs.add(name=name, datatype=datatype_of(array.dtype), shape=array.shape)
        message.raw_input_contents.append(bytes(to_raw(array)))
    for output in request.outputs:
        _add_output(message, output)
    return message


def _add_output(message: Any, output: RequestedOutput) -> None:  # noqa: ANN401  # as above
    added = message.outputs.add(name=output.name)
    if output.classification:
        encode_parameters(added.parameters, {"classification": output.classification})


def _from_contents(output: Any) -> Array:  # noqa: ANN401  # as above
    """Return an output in typed fields, which some servers send."""
    field = CONTENTS_FIELDS.get(output.datatype)
    if field is None:
        msg = f"output '{output.name}' of the answer has no data"
        raise ProtocolError(msg)
    values = getattr(output.contents, field)
    try:
        array = np.array(list(values), dtype=DTYPES[output.datatype])
        return array.reshape(tuple(output.shape))
    except (ValueError, OverflowError) as error:
        msg = f"output '{output.name}' of the answer cannot be read: {error}"
        raise ProtocolError(msg) from error


def _metadata(message: Any) -> ModelMetadata:  # noqa: ANN401  # as above
    return ModelMetadata(
        name=message.name,
        versions=tuple(message.versions),
        platform=message.platform,
        inputs=tuple(map(_tensor, message.inputs)),
        outputs=tuple(map(_tensor, message.outputs)),
    )


def _tensor(message: Any) -> TensorMetadata:  # noqa: ANN401  # as above
    return TensorMetadata(name=message.name, datatype=message.datatype, shape=tuple(message.shape))


def _server_metadata(message: Any) -> ServerMetadata:  # noqa: ANN401  # as above
    return ServerMetadata(
        name=message.name, version=message.version, extensions=tuple(message.extensions)
    )
