"""What a peer is sent, and what it answers: V2 or its own JSON, as bytes and back."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, assert_never

import numpy as np
import orjson

from bench.payloads import (
    HEADER_LENGTH,
    Payload,
    binary_payload,
    json_payload,
    read_binary,
    read_json,
)
from bench.verify import WrongAnswerError

Array = np.ndarray[Any, Any]
Tensors = Mapping[str, Array]


class Format(StrEnum):
    """How tensors are written."""

    V2_JSON = "V2 JSON"
    V2_BINARY = "V2 binary"
    ROWS = "JSON, rows by input"
    """`{"input": [[...]]}`: whole tensors, with their batch axis."""
    ROW = "JSON, one row"
    """`{"input": [...]}`: the server makes the batch."""
    RAW = "raw bytes"
    """The bytes of the only input, for a server that knows what to expect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wire:
    """A format and the path that takes it; `{model}` in it is the model's name."""

    format: Format
    path: str = "/v2/models/{model}/infer"

    def at(self, prefix: str) -> "Wire":
        """The same behind a gateway's prefix."""
        return Wire(format=self.format, path=prefix + self.path)


V2_JSON = Wire(format=Format.V2_JSON)
V2_BINARY = Wire(format=Format.V2_BINARY)


def payload(wire: Wire, model: str, inputs: Tensors) -> Payload:
    """One request with one row."""
    match wire.format:
        case Format.V2_JSON:
            made = json_payload(model, inputs)
        case Format.V2_BINARY:
            made = binary_payload(model, inputs)
        case Format.ROWS:
            made = _own_json(dict(inputs))
        case Format.ROW:
            made = _own_json({name: array[0] for name, array in inputs.items()})
        case Format.RAW:
            (array,) = inputs.values()
            headers = {"Content-Type": "application/octet-stream"}
            made = Payload(path="", body=array.tobytes(), headers=headers)
        case unknown:
            assert_never(unknown)
    return Payload(path=wire.path.format(model=model), body=made.body, headers=made.headers)


def answer(wire: Wire, body: bytes, headers: Mapping[str, str], expected: Tensors) -> Tensors:
    """The tensors of an answer, named and shaped as `expected`.

    Own JSON may leave out the name of an only output, and the batch axis of one row.

    Raises:
        WrongAnswerError: It is no JSON, or is built in another way.
    """
    try:
        if wire.format in {Format.V2_JSON, Format.V2_BINARY}:
            head = {name.lower(): value for name, value in headers.items()}.get(
                HEADER_LENGTH.lower()
            )
            return read_binary(body, int(head)) if head else read_json(body)
        return _read_own(json.loads(body), expected)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        msg = f"cannot read an answer as {wire.format}: {error!r}: {body[:200]!r}"
        raise WrongAnswerError(msg) from error


def _own_json(tensors: Mapping[str, Array]) -> Payload:
    contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    body = orjson.dumps(contiguous, option=orjson.OPT_SERIALIZE_NUMPY)
    return Payload(path="", body=body, headers={"Content-Type": "application/json"})


def _read_own(document: Any, expected: Tensors) -> dict[str, Array]:  # noqa: ANN401  # JSON
    if isinstance(document, list):
        (name,) = expected
        document = {name: document}
    tensors = {}
    for name, values in document.items():
        array = np.array(values, np.float32)
        wanted = expected[name].ndim
        tensors[name] = array[None] if array.ndim == wanted - 1 else array
    return tensors
