"""Encoder of V2 REST infer responses: JSON, or a JSON header with binary tensors after it."""

from typing import Final, NamedTuple

import numpy as np
import orjson

from headrace.core import (
    Array,
    BatchOutputs,
    Datatype,
    InferRequest,
    InferResponse,
    InvalidArgumentError,
    ModelSignature,
    Tensors,
    datatype_of,
)
from headrace.protocol.outputs import answered_outputs, raw_bytes
from headrace.protocol.values import NOT_A_NUMBER, element_bytes, join_elements, spell_infinities

Buffer = bytes | memoryview
_NUMPY: Final = orjson.OPT_SERIALIZE_NUMPY
_REMEMBERED_SHAPES: Final = 1024
_JOINED_BYTES: Final = 64 << 10
"""Binary bodies up to this size are joined, which is faster than a second write."""


class _Head(NamedTuple):
    """Bytes before the data of an output of one shape."""

    dtype: np.dtype
    text: bytes


class InferEncoder:
    """Encoder of one model version's infer responses; not thread-safe.

    JSON has no NaN and no infinity: NaN becomes `null`, an infinity `"Infinity"` or `"-Infinity"`.
    """

    def __init__(self, model_name: str, model_version: str, signature: ModelSignature) -> None:
        self._signature = signature
        self._start = _start(model_name, model_version)
        self._heads: dict[tuple[str, tuple[int, ...]], _Head] = {}
        self._binary_heads: dict[tuple[str, tuple[int, ...]], _Head] = {}

    def encode(
        self, response: InferResponse, request: InferRequest
    ) -> tuple[bytes | list[Buffer], int | None]:
        """Return the body, in one or several pieces, and its JSON header's length if it is binary.

        Raises:
            InvalidArgumentError: JSON cannot represent an output (FP16; BYTES that are not UTF-8).
            RuntimeFailedError: The model did not return a requested output.
        """
        if request.outputs or response.parameters:
            return self._encode_any(response, request)
        part = response.part
        if part is not None and part.end - part.start == 1 and not request.id:
            binary = request.binary_data_output
            bodies = self._binary_bodies(part.batch) if binary else self._bodies(part.batch)
            if bodies:
                return bodies[part.start], len(bodies[-1]) if binary else None
        outputs = response.outputs
        if len(outputs) != 1:
            return self._encode_any(response, request)
        ((name, array),) = outputs.items()
        start = self._start + _id(request.id) if request.id else self._start
        if not request.binary_data_output:
            return b"".join((start, _OUTPUTS, self._json_data(name, array), _CLOSE)), None
        head = self._binary_heads.get((name, array.shape))
        if head is None or head.dtype is not array.dtype or array.nbytes > _JOINED_BYTES:
            return self._encode_any(response, request)
        header = b"".join((start, _OUTPUTS, head.text, _END))
        return header + array.tobytes(), len(header)

    def _encode_any(
        self, response: InferResponse, request: InferRequest
    ) -> tuple[bytes | list[Buffer], int | None]:
        parts: list[bytes] = []
        tensors: list[Buffer] = []
        for name, array, binary in answered_outputs(response, request, self._signature):
            if not binary:
                parts.append(self._json_data(name, array) + b"}")
                continue
            raw = join_elements(array.flat) if array.dtype.kind in "OSU" else raw_bytes(array)
            parts.append(self._binary_output(name, array, len(raw)))
            tensors.append(raw)
        pieces = [self._start]
        if request.id:
            pieces.append(_id(request.id))
        if response.parameters:
            pieces.append(b',"parameters":' + orjson.dumps(response.parameters))
        pieces += (_OUTPUTS, b",".join(parts), b"]}")
        header = b"".join(pieces)
        if not tensors:
            return header, None
        buffers: list[Buffer] = [header, *tensors]
        if sum(map(len, buffers)) <= _JOINED_BYTES:
            return b"".join(buffers), len(header)
        return buffers, len(header)

    def _bodies(self, batch: BatchOutputs) -> list[bytes]:
        """Return the responses to all rows of a batch; their numbers are encoded together.

        Empty where that is no gain: for text, and for responses with several outputs.
        """
        bodies = batch.bodies
        if bodies is None:
            bodies = batch.bodies = self._new_bodies(batch.arrays)
        return bodies

    def _new_bodies(self, arrays: Tensors) -> list[bytes]:
        if len(arrays) != 1:
            return []
        ((name, array),) = arrays.items()
        head = self._heads.get((name, (1, *array.shape[1:])))
        is_known = head is not None and head.dtype is array.dtype and head.dtype.kind != "O"
        if head is None or not is_known or not array.size:
            return []
        rows = np.ascontiguousarray(array).reshape(len(array), -1)
        text = orjson.dumps(rows, None, _NUMPY)
        if NOT_A_NUMBER in text:
            text = spell_infinities(text, rows)
        texts = text[2:-2].split(b"],[")
        before = b"".join((self._start, _OUTPUTS, head.text, b"["))
        return [b"%b%b%b" % (before, text, _ROW_CLOSE) for text in texts]

    def _binary_bodies(self, batch: BatchOutputs) -> list[bytes]:
        """Return the same with raw numbers, followed by their common header."""
        bodies = batch.binary_bodies
        if bodies is None:
            bodies = batch.binary_bodies = self._new_binary_bodies(batch.arrays)
        return bodies

    def _new_binary_bodies(self, arrays: Tensors) -> list[bytes]:
        if len(arrays) != 1:
            return []
        ((name, array),) = arrays.items()
        head = self._binary_heads.get((name, (1, *array.shape[1:])))
        is_known = head is not None and head.dtype is array.dtype
        if head is None or not is_known or not 0 < array.nbytes <= _JOINED_BYTES:
            return []
        header = b"".join((self._start, _OUTPUTS, head.text, _END))
        raw = array.tobytes()
        size = len(raw) // len(array)
        return [
            *(header + raw[offset : offset + size] for offset in range(0, len(raw), size)),
            header,
        ]

    def _json_data(self, name: str, array: Array) -> bytes:
        """Return an output from its name to the end of its data, without the closing brace."""
        key = (name, array.shape)
        head = self._heads.get(key)
        if head is None or head.dtype is not array.dtype:
            head = self._new_head(name, array)
            if len(self._heads) >= _REMEMBERED_SHAPES:
                self._heads.clear()
            self._heads[key] = head
            array = array.astype(head.dtype, copy=False)
        if head.dtype.kind == "O":
            return head.text + orjson.dumps(_texts(name, array))
        text = orjson.dumps(array.ravel(), None, _NUMPY)
        if NOT_A_NUMBER in text:
            text = spell_infinities(text, array)
        return head.text + text

    def _binary_output(self, name: str, array: Array, size: int) -> bytes:
        """Return an output whose data follows the JSON."""
        datatype = datatype_of(array.dtype)
        head = _tensor_head(name, datatype, array.shape)
        text = b'%b,"parameters":{"binary_data_size":%d}}' % (head, size)
        if datatype != Datatype.BYTES:
            if len(self._binary_heads) >= _REMEMBERED_SHAPES:
                self._binary_heads.clear()
            self._binary_heads[name, array.shape] = _Head(datatype.dtype, text)
        return text

    def _new_head(self, name: str, array: Array) -> _Head:
        datatype = datatype_of(array.dtype)
        if datatype == Datatype.FP16:
            msg = (
                "sending FP16 data via JSON is not supported. Please use the binary data format "
                f"for output '{name}'"
            )
            raise InvalidArgumentError(msg)
        return _Head(datatype.dtype, _tensor_head(name, datatype, array.shape) + b',"data":')


_OUTPUTS: Final = b',"outputs":['
_END: Final = b"]}"
_CLOSE: Final = b"}]}"
_ROW_CLOSE: Final = b"]}]}"


def _start(model_name: str, model_version: str) -> bytes:
    fields = {"model_name": model_name, "model_version": model_version}
    return orjson.dumps(fields)[:-1]


def _id(request_id: str) -> bytes:
    return b',"id":' + orjson.dumps(request_id)


def _tensor_head(name: str, datatype: Datatype, shape: tuple[int, ...]) -> bytes:
    fields = {"name": name, "datatype": datatype.value, "shape": shape}
    return orjson.dumps(fields)[:-1]


def _texts(name: str, array: Array) -> list[str]:
    try:
        return [element_bytes(element).decode() for element in array.flat]
    except UnicodeDecodeError:
        msg = (
            f"output '{name}' has an element that is not valid UTF-8, which JSON cannot carry. "
            "Please use the binary data format for it"
        )
        raise InvalidArgumentError(msg) from None
