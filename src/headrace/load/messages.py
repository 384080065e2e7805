"""A request as the bytes of HTTP/1.1, made once and sent many times."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from headrace.client.http_wire import HttpWire
from headrace.core import (
    Array,
    Datatype,
    InferRequest,
    InvalidArgumentError,
    Tensors,
    datatype_of,
)

HEAD_LENGTH: Final = "inference-header-content-length"
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,128}")
_VALUE: Final = re.compile(r"[\t -~\x80-\xff]{0,16384}")
_FRAMING: Final = frozenset({"content-length", "transfer-encoding", "connection", "expect"})


def json_message(model: str, version: str, inputs: Tensors) -> tuple[dict[str, str], bytes]:
    """The headers and the body of an infer request in JSON.

    Raises:
        InvalidArgumentError: JSON cannot carry an input.
    """
    del model, version  # they stand in the path alone
    tensors = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": str(datatype_of(array.dtype)),
            "data": _json_data(name, array),
        }
        for name, array in inputs.items()
    ]
    body = orjson.dumps({"inputs": tensors}, option=orjson.OPT_SERIALIZE_NUMPY)
    return {"content-type": "application/json"}, body


def binary_message(model: str, version: str, inputs: Tensors) -> tuple[dict[str, str], bytes]:
    """The same with tensors as bytes behind a JSON head, and an answer of that kind."""
    request = InferRequest(
        model_name=model, model_version=version, inputs=inputs, binary_data_output=True
    )
    message = HttpWire().infer(request).message
    return dict(message.headers), message.content


def http_request(path: str, authority: str, headers: Mapping[str, str], body: bytes) -> bytes:
    """The bytes of a whole request; a header `host` among `headers` wins over `authority`."""
    known = {"host": authority, "user-agent": "headrace-load", "accept": "*/*", **headers}
    known["content-length"] = str(len(body))
    lines = [f"POST {path} HTTP/1.1", *(f"{name}: {value}" for name, value in known.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


def parse_headers(texts: Sequence[str]) -> dict[str, str]:
    """Headers written as `NAME: VALUE`, by lower-case name.

    Raises:
        InvalidArgumentError: One is written otherwise, or says how the body is framed.
    """
    headers = {}
    for text in texts:
        name, separator, value = text.partition(":")
        name, value = name.strip(" \t").lower(), value.strip(" \t")
        if not separator or not _NAME.fullmatch(name) or not _VALUE.fullmatch(value):
            msg = "a header is written NAME: VALUE, without line ends"
            raise InvalidArgumentError(msg)
        if name in _FRAMING:
            msg = f"the header '{name}' is not yours to set: it follows from the body"
            raise InvalidArgumentError(msg)
        headers[name] = value
    return headers


def _json_data(name: str, array: Array) -> Any:  # noqa: ANN401  # what orjson takes
    datatype = datatype_of(array.dtype)
    if datatype is Datatype.FP16:
        msg = f"input '{name}' is FP16, which JSON does not carry; use --binary"
        raise InvalidArgumentError(msg)
    flat = array.reshape(-1)
    if datatype is not Datatype.BYTES:
        return flat
    try:
        return [element.decode() for element in flat]
    except UnicodeDecodeError:
        msg = f"input '{name}' holds bytes that are no UTF-8, which JSON cannot carry; use --binary"
        raise InvalidArgumentError(msg) from None
