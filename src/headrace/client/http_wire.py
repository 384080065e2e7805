"""REST wire format of the protocol: binary tensors in requests, binary or JSON in responses."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec
import numpy as np
import orjson

from headrace.client.answers import Document, ModelMetadata, ProtocolError, ServerMetadata
from headrace.client.conversation import ProtocolExchange
from headrace.client.http_transport import HttpMessage, HttpReply
from headrace.client.tensors import from_raw, to_raw
from headrace.core import (
    DTYPES,
    Array,
    Datatype,
    InferRequest,
    InferResponse,
    RequestedOutput,
    Tensors,
    datatype_of,
)
from headrace.core.error_kind import UNDECODABLE
from headrace.protocol import error_from_http
from headrace.protocol.values import object_array

_HEADER_LENGTH: Final = "inference-header-content-length"
_OK: Final = 200
_NOT_READY: Final = frozenset({400, 404, 503})

T = TypeVar("T")


class _Output(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    datatype: str
    shape: tuple[int, ...]
    data: list[Any] | None = None
    parameters: dict[str, Any] = {}


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    outputs: tuple[_Output, ...]
    model_name: str = ""
    model_version: str | None = None
    id: str | None = None
    parameters: dict[str, Any] | None = None


class HttpWire:
    """Messages of the V2 REST protocol."""

    def infer(self, request: InferRequest) -> ProtocolExchange[InferResponse]:
        """Run a model."""
        head, tensors = _encode_infer(request)
        message = HttpMessage(
            method="POST",
            path=f"{_model_path(request.model_name, request.model_version)}/infer",
            headers={
                "content-type": "application/octet-stream",
                _HEADER_LENGTH: str(len(head)),
            },
            content=b"".join((head, *tensors)),
        )
        return ProtocolExchange(message=message, read=decode_infer)

    def metadata(self, model: str, version: str) -> ProtocolExchange[ModelMetadata]:
        """Describe a model."""
        return _get(_model_path(model, version), _as(ModelMetadata))

    def config(self, model: str, version: str) -> ProtocolExchange[Document]:
        """Return a model's configuration."""
        return _get(f"{_model_path(model, version)}/config", _as(dict[str, Any]))

    def statistics(self, model: str, version: str) -> ProtocolExchange[Document]:
        """Return a model's counters; those of all models if `model` is empty."""
        path = f"{_model_path(model, version)}/stats" if model else "/v2/models/stats"
        return _get(path, _as(dict[str, Any]))

    def server_metadata(self) -> ProtocolExchange[ServerMetadata]:
        """Describe the server."""
        return _get("/v2", _as(ServerMetadata))

    def live(self) -> ProtocolExchange[bool]:
        """Whether the server runs."""
        return ProtocolExchange(
            message=HttpMessage(method="GET", path="/v2/health/live"), read=_is_ready
        )

    def ready(self, model: str, version: str) -> ProtocolExchange[bool]:
        """Whether a model, or the whole server if `model` is empty, can answer."""
        path = f"{_model_path(model, version)}/ready" if model else "/v2/health/ready"
        return ProtocolExchange(message=HttpMessage(method="GET", path=path), read=_is_ready)


def decode_infer(reply: HttpReply) -> InferResponse:
    """Return the response in `reply`; its tensors are views of the reply's body.

    Raises:
        HeadraceError: The server reported an error.
        ProtocolError: The response does not follow the protocol.
    """
    _check_status(reply)
    body = memoryview(reply.body)
    offset = _head_length(reply)
    answer = _as(_Answer)(reply.body[:offset])
    outputs: Tensors = {}
    for output in answer.outputs:
        size = output.parameters.get("binary_data_size")
        if size is None:
            outputs[output.name] = _from_json(output)
            continue
        if not isinstance(size, int) or not 0 <= size <= len(body) - offset:
            msg = f"output '{output.name}' claims {size} bytes; {len(body) - offset} are left"
            raise ProtocolError(msg)
        raw, offset = body[offset : offset + size], offset + size
        outputs[output.name] = from_raw(output.name, output.datatype, output.shape, raw)
    if offset != len(body):
        msg = f"the answer has {len(body) - offset} bytes more than its outputs declare"
        raise ProtocolError(msg)
    return InferResponse(
        model_name=answer.model_name,
        model_version=answer.model_version or "",
        id=answer.id or "",
        outputs=outputs,
        parameters=answer.parameters,
    )


def _encode_infer(request: InferRequest) -> tuple[bytes, list[bytes | memoryview]]:
    inputs, tensors = [], []
    for name, array in request.inputs.items():
        datatype = datatype_of(array.dtype)
        raw = to_raw(array)
        size = raw.nbytes if isinstance(raw, memoryview) else len(raw)
        tensors.append(raw)
        inputs.append(
            {
                "name": name,
                "shape": array.shape,
                "datatype": datatype,
                "parameters": {"binary_data_size": size},
            }
        )
    parameters: dict[str, Any] = {"binary_data_output": request.binary_data_output}
    if request.priority:
        parameters["priority"] = request.priority
    document: dict[str, Any] = {
        "inputs": inputs,
        "parameters": ((request.parameters or {}) | parameters),
    }
    if request.id:
        document["id"] = request.id
    if request.outputs:
        document["outputs"] = [_requested(output) for output in request.outputs]
    return orjson.dumps(document), tensors


def _requested(output: RequestedOutput) -> dict[str, Any]:
    parameters: dict[str, Any] = {}
    if output.classification:
        parameters["classification"] = output.classification
    if output.binary_data is not None:
        parameters["binary_data"] = output.binary_data
    return {"name": output.name} | ({"parameters": parameters} if parameters else {})


def _from_json(output: _Output) -> Array:
    """Return a tensor in JSON, nested or flat."""
    try:
        if output.datatype != Datatype.BYTES:
            array: Array = np.array(output.data, dtype=DTYPES[output.datatype])
            return array.reshape(output.shape)
        flat = np.array(output.data, dtype=np.object_).reshape(-1)
        elements = [element.encode() if isinstance(element, str) else element for element in flat]
        return object_array(elements, output.shape)
    except (ValueError, TypeError, KeyError, OverflowError) as error:
        msg = f"output '{output.name}' of the answer cannot be read: {error}"
        raise ProtocolError(msg) from error


def _head_length(reply: HttpReply) -> int:
    length = reply.headers.get(_HEADER_LENGTH)
    if length is None:
        return len(reply.body)
    if not length.isascii() or not length.isdigit() or int(length) > len(reply.body):
        msg = f"the answer's header {_HEADER_LENGTH} is {length[:40]!r}"
        raise ProtocolError(msg)
    return int(length)


def _get(path: str, read: Callable[[bytes], T]) -> ProtocolExchange[T]:
    def read_reply(reply: HttpReply) -> T:
        _check_status(reply)
        return read(reply.body)

    return ProtocolExchange(message=HttpMessage(method="GET", path=path), read=read_reply)


def _as(kind: type[T]) -> Callable[[bytes], T]:
    def read(body: bytes) -> T:
        try:
            return msgspec.json.decode(body, type=kind, strict=False)
        except UNDECODABLE as error:
            msg = f"the server does not speak the Open Inference Protocol: {error}"
            raise ProtocolError(msg) from error

    return read


def _check_status(reply: HttpReply) -> None:
    if reply.status != _OK:
        # The page of a proxy has nothing useful for a log.
        body = b"" if reply.body.lstrip().startswith(b"<") else reply.body
        headers = {name.lower(): value for name, value in reply.headers.items()}
        raise error_from_http(reply.status, body, headers)


def _is_ready(reply: HttpReply) -> bool:
    if reply.status in _NOT_READY:
        return False
    _check_status(reply)
    return True


def _model_path(model: str, version: str) -> str:
    return f"/v2/models/{model}/versions/{version}" if version else f"/v2/models/{model}"
