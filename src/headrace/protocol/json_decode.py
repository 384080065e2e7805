"""Decoder of V2 REST infer requests: JSON, JSON with binary tensors after it, or one raw tensor."""

import struct
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np

from headrace.core import (
    Array,
    Datatype,
    InferRequest,
    InvalidArgumentError,
    ModelSignature,
    NullPolicy,
    Packed,
    RequestedOutput,
    UnsupportedError,
)
from headrace.protocol.inputs import InputTensor, ModelInputs, ShapePlan
from headrace.protocol.json_bounds import check_parts, check_values
from headrace.protocol.json_known import KnownDocument, KnownDocuments
from headrace.protocol.json_large import large_array, parse_large
from headrace.protocol.json_messages import (
    UNREADABLE,
    InferMessage,
    InputMessage,
    JsonDecoder,
    around_data,
    typed_decoders,
    unreadable,
)
from headrace.protocol.parameters import (
    BINARY_OUTPUT,
    SHARED_MEMORY_TEXT,
    check_outputs,
    request_options,
    requested_output,
)
from headrace.protocol.values import FLOATS, PACK_CODES, Body, flatten

LARGE_BODY_BYTES: Final = 16 << 10
"""Larger JSON bodies are parsed by simdjson, whose arrays need no Python object per number."""


_REMEMBERED_HEADERS: Final = 64
_REMEMBERED_BYTES: Final = 1024
_SMALL_TENSOR: Final = 4 << 10
"""Tensors up to this size are faster to copy than to make an array of."""
_CHECKED: Final = (Datatype.BYTES, Datatype.BOOL)
"""Datatypes whose bytes are validated one by one."""


class _Known(NamedTuple):
    """Content of a validated JSON header before binary tensors."""

    tensors: tuple[tuple[str, tuple[int, ...], np.dtype, int], ...]
    """Name, shape, dtype and size in bytes of each tensor, in the order of their data."""
    size: int
    request: InferRequest
    """The request without its data."""


class _Typed(NamedTuple):
    """Decoders of requests whose data is `is_nested` or flat: of the `whole`, and of `data`."""

    whole: msgspec.json.Decoder[InferMessage]
    data: msgspec.json.Decoder[Any]
    is_nested: bool


class InferDecoder:
    """Decoder of one model's infer requests; not thread-safe.

    Arrays may be views of the body and are read-only then: copy before writing.
    """

    def __init__(
        self,
        model_name: str,
        model_version: str,
        signature: ModelSignature,
        *,
        max_batch_size: int | None = None,
        nulls: NullPolicy = NullPolicy.NAN,
    ) -> None:
        self._model = model_name
        self._version = model_version
        self._signature = signature
        self._inputs = ModelInputs(
            model_name, signature, max_batch_size=max_batch_size, nulls=nulls
        )
        self._tensors = self._inputs.tensors
        self._count = len(signature.inputs)
        self._general: JsonDecoder[InferMessage] = JsonDecoder(InferMessage)
        self._known: dict[bytes, _Known] = {}
        self._typed = _typed_decoders(signature)
        self._documents = KnownDocuments()

    def decode(self, body: Body, header_length: int | None = None) -> InferRequest:
        """Return the request in `body`, validated against the model's signature.

        Args:
            body: The whole body, decompressed.
            header_length: Value of `Inference-Header-Content-Length`: bytes of JSON before the
                binary tensors; 0 means that the body is one raw tensor; None means JSON only.

        Raises:
            InvalidArgumentError: The model cannot run it; the message says why.
            UnsupportedError: It uses shared memory or a sequence.
        """
        if header_length is None:
            if isinstance(body, memoryview):
                body = bytes(body)
            if len(body) > LARGE_BODY_BYTES:
                return self._decode_large(body)
            return self._decode_small(body)
        if header_length == 0:
            return self._decode_raw(body)
        if not 0 < header_length <= len(body):
            msg = f"inference header size should be in range (0, {len(body)}), got: {header_length}"
            raise InvalidArgumentError(msg)
        header = bytes(body[:header_length])
        header_plan = self._known.get(header)
        if header_plan is not None and len(body) == header_length + header_plan.size:
            return self._decode_known(header_plan, body, header_length)
        message = self._parse(header)
        request = self._request(message, body, offset=header_length)
        self._remember(header, message, request)
        return request

    def _decode_known(self, header_plan: _Known, body: Body, offset: int) -> InferRequest:
        """Return a request with a cached header: only its tensors are new."""
        if (
            len(header_plan.tensors) == 1
            and header_plan.size <= _SMALL_TENSOR
            and isinstance(body, bytes)
        ):
            name, shape, dtype, _ = header_plan.tensors[0]
            return header_plan.request.with_inputs(Packed(name, shape, dtype, body[offset:]))
        inputs: dict[str, Array] = {}
        for name, shape, dtype, size in header_plan.tensors:
            array: Array = np.ndarray(shape, dtype, body, offset)
            inputs[name] = array if array.flags.aligned else array.copy()
            offset += size
        return header_plan.request.with_inputs(inputs)

    def _remember(self, header: bytes, message: InferMessage, request: InferRequest) -> None:
        """Cache a header that may come again: with binary numbers only, and without an id."""
        is_worth_it = not message.id and len(header) <= _REMEMBERED_BYTES
        if not is_worth_it or len(self._known) >= _REMEMBERED_HEADERS:
            return
        arrays = request.inputs
        if any(
            item.data is not None or not arrays[item.name].nbytes or item.datatype in _CHECKED
            for item in message.inputs
        ):
            return
        tensors = tuple(
            (item.name, array.shape, array.dtype, array.nbytes)
            for item, array in ((item, arrays[item.name]) for item in message.inputs)
        )
        size = sum(tensor[3] for tensor in tensors)
        self._known[header] = _Known(tensors, size, request.with_inputs({}))

    def _decode_small(self, body: bytes | bytearray) -> InferRequest:
        if isinstance(body, bytes):
            remembered = self._documents.read(body)
            if remembered is not None:
                return remembered
        for _ in self._typed:
            way = self._typed[0]
            try:
                message = way.whole.decode(body)
            except UNREADABLE:
                # Callers seldom change between flat and nested: start with the last form.
                self._typed.reverse()
                continue
            request = self._typed_request(message, is_nested=way.is_nested)
            if request is None:
                break
            if self._count == 1 and self._documents.is_worth_learning():
                self._learn(bytes(body), request, way)
            return request
        return self._request(self._parse(body), body)

    def _learn(self, body: bytes, request: InferRequest, way: "_Typed") -> None:
        """Cache the constant bytes of this document."""
        around = around_data(body)
        if around is None:
            return
        ((name, array),) = request.inputs.items()
        tensor = self._tensors[name]
        self._documents.learn(
            KnownDocument(
                *around,
                data=way.data,
                is_nested=way.is_nested,
                tensor=tensor,
                plan=tensor.plan(array.shape),
                request=request.with_inputs({}),
            )
        )

    def _typed_request(self, message: InferMessage, *, is_nested: bool) -> InferRequest | None:
        """Return the request if it has JSON data of the expected element type only; otherwise None.

        The general decoder handles all other requests, valid or not.
        """
        inputs: dict[str, Array] = {}
        rows = 0
        for item in message.inputs:
            tensor = self._tensors.get(item.name)
            if tensor is None or item.datatype != tensor.datatype or item.parameters is not None:
                return None
            plan = tensor.plans.get(item.shape) or tensor.plan(item.shape)
            data = item.data
            assert data is not None  # the typed decoder always sets it
            assert plan.pack is not None  # only models with numeric inputs get here
            if is_nested:
                data = flatten(item.name, data, plan.shape)
            rows = rows or plan.rows
            if len(data) != plan.elements or plan.rows != rows:
                return None
            try:
                inputs[item.name] = np.ndarray(plan.shape, tensor.dtype, plan.pack(*data))
            except (struct.error, OverflowError):
                return None
        if len(inputs) != self._count or len(message.inputs) != self._count:
            return None
        return self._finish(message, inputs, rows)

    def _decode_large(self, body: bytes | bytearray) -> InferRequest:
        check_parts(body)
        large = parse_large(body)
        if large is not None:
            message, arrays = large
            request = self._request_of_large(message, arrays)
            if request is not None:
                return request
        # Irregular, mixed or invalid: the general decoder is slower, and reports what is wrong.
        return self._request(self._parse(body), body)

    def _decode_raw(self, body: Body) -> InferRequest:
        if self._count != 1:
            msg = (
                f"a raw binary request needs a model with exactly one input; '{self._model}' "
                f"has {self._count}"
            )
            raise InvalidArgumentError(msg)
        (tensor,) = self._tensors.values()
        plan = tensor.plan(tensor.raw_shape(len(body)))
        return InferRequest(
            model_name=self._model,
            model_version=self._version,
            inputs={tensor.name: tensor.from_raw_body(plan, body)},
            rows=plan.rows,
            binary_data_output=True,
        )

    def _parse(self, document: Body) -> InferMessage:
        check_parts(document)
        check_values(document)
        try:
            return self._general.decode(document)
        except UNREADABLE as error:
            raise unreadable(error) from None

    def _request(
        self, message: InferMessage, body: Body, offset: int | None = None
    ) -> InferRequest:
        """Return the request of a document; binary tensors are in `body` from `at` on."""
        inputs: dict[str, Array] = {}
        rows = 0
        position = end = len(body)
        if offset is not None:
            position = offset
        for item in message.inputs:
            name = item.name
            tensor = self._tensors.get(name) or self._inputs.get(name)
            if item.datatype != tensor.datatype:
                tensor.check_datatype(item.datatype)
            plan = tensor.plans.get(item.shape) or tensor.plan(item.shape)
            size = _binary_size(item, has_binary=offset is not None)
            if size < 0:
                inputs[name] = tensor.from_values(plan, _json_data(tensor, item))
            elif size <= end - position:
                inputs[name] = tensor.from_raw(plan, body, position, size)
                position += size
            else:
                raise InvalidArgumentError(
                    f"unexpected end of binary data: input '{name}' of model '{self._model}' needs "
                    f"{size} bytes, {end - position} are left"
                )
            rows = _joint_rows(rows, plan)
        if position != end:
            raise InvalidArgumentError(
                f"unexpected additional input data for model '{self._model}': {end - position} "
                "bytes after the last tensor"
            )
        return self._fit(message, inputs, rows)

    def _request_of_large(self, message: InferMessage, arrays: list[Any]) -> InferRequest | None:
        inputs: dict[str, Array] = {}
        rows = 0
        for item, data in zip(message.inputs, arrays, strict=True):
            tensor = self._inputs.get(item.name)
            tensor.check_datatype(item.datatype)
            plan = tensor.plan(item.shape)
            _refuse_json(tensor)
            array = large_array(tensor, plan, data)
            if array is None:
                return None
            rows = _joint_rows(rows, plan)
            inputs[item.name] = array
        return self._fit(message, inputs, rows)

    def _fit(self, message: InferMessage, inputs: dict[str, Array], rows: int) -> InferRequest:
        if not len(inputs) == len(message.inputs) == self._count or rows == _DISAGREE:
            self._inputs.raise_misfit([item.name for item in message.inputs], inputs)
        return self._finish(message, inputs, rows or 1)

    def _finish(self, message: InferMessage, inputs: dict[str, Array], rows: int) -> InferRequest:
        parameters = message.parameters
        if not (parameters or message.outputs):
            return InferRequest(
                model_name=self._model,
                inputs=inputs,
                rows=rows,
                model_version=self._version,
                id=message.id or "",
            )
        if parameters == _ONLY_BINARY_OUTPUT and parameters["binary_data_output"] is True:
            options = BINARY_OUTPUT
        else:
            options = request_options(parameters or {})
        return InferRequest(
            model_name=self._model,
            inputs=inputs,
            rows=rows,
            model_version=self._version,
            id=message.id or "",
            outputs=self._outputs(message) if message.outputs else (),
            binary_data_output=options.binary_data_output,
            priority=options.priority,
            timeout_s=options.timeout_s,
            parameters=options.others,
        )

    def _outputs(self, message: InferMessage) -> tuple[RequestedOutput, ...]:
        requested = message.outputs or ()
        outputs = tuple(requested_output(o.name, o.parameters or {}) for o in requested)
        check_outputs(self._model, self._signature, outputs)
        return outputs


_ONLY_BINARY_OUTPUT: Final = {"binary_data_output": True}
_DISAGREE: Final = -1


def _joint_rows(rows: int, plan: ShapePlan) -> int:
    """Return the rows of the request so far (0 before the first input) with one more input."""
    return plan.rows if rows in (0, plan.rows) else _DISAGREE


def _typed_decoders(signature: ModelSignature) -> list[_Typed]:
    """Return decoders for flat and nested data, if all inputs hold numbers of one JSON type."""
    datatypes = {spec.datatype for spec in signature.inputs}
    if Datatype.FP16 in datatypes or not datatypes <= PACK_CODES.keys():
        return []
    kinds = {float if datatype in FLOATS else int for datatype in datatypes}
    ranks = {len(spec.shape) for spec in signature.inputs}
    if len(kinds) != 1:
        return []
    (element,) = kinds
    decoders = [_typed(element, 1)]
    if len(ranks) == 1 and max(ranks) > 1:
        decoders.append(_typed(element, max(ranks)))
    return decoders


def _typed(element: type, rank: int) -> _Typed:
    whole, data = typed_decoders(element, rank)
    return _Typed(whole, data, rank > 1)


def _binary_size(item: InputMessage, *, has_binary: bool) -> int:
    """Return the bytes of an input after the JSON; -1 if its data is in the JSON."""
    parameters = item.parameters
    if parameters is not None:
        if parameters.shared_memory_region is not None:
            raise UnsupportedError(SHARED_MEMORY_TEXT)
        size = parameters.binary_data_size
        if size is not None:
            if not has_binary or size < 0 or item.data is not None:
                raise _wrong_binary_size(item, size, has_binary=has_binary)
            return size
    if item.data is None:
        msg = (
            f"input '{item.name}' has no data: give 'data', or specify valid "
            "'Inference-Header-Content-Length' in request header and 'binary_data_size' when "
            "passing inputs in binary data format"
        )
        raise InvalidArgumentError(msg)
    return -1


def _wrong_binary_size(item: InputMessage, size: int, *, has_binary: bool) -> InvalidArgumentError:
    if not has_binary:
        return InvalidArgumentError(
            "must specify valid 'Inference-Header-Content-Length' in request header and "
            f"'binary_data_size' when passing inputs in binary data format (input '{item.name}')"
        )
    if size < 0:
        return InvalidArgumentError(
            f"'binary_data_size' of input '{item.name}' must not be negative"
        )
    return InvalidArgumentError(
        f"input '{item.name}' has both 'data' and 'binary_data_size': send one of them"
    )


def _json_data(tensor: InputTensor, item: InputMessage) -> list[Any]:
    _refuse_json(tensor)
    assert item.data is not None  # _binary_size has checked it
    return item.data


def _refuse_json(tensor: InputTensor) -> None:
    if tensor.spec.datatype == Datatype.FP16:
        msg = (
            "receiving FP16 data via JSON is not supported. Please use the binary data format "
            f"for input '{tensor.name}'"
        )
        raise InvalidArgumentError(msg)
