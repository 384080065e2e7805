"""Is what a server answered an answer? A fast page of some proxy is no fast success."""

from typing import Any, Final

import msgspec

_WHOLE_UP_TO_BYTES: Final = 64 << 10
"""A larger JSON is looked at only at its ends: to read it would hold up what is due."""
_HEAD_BYTES: Final = 4 << 10
_LENGTH_DIGITS: Final = 12


class _Output(msgspec.Struct, frozen=True):
    name: str
    datatype: str
    shape: list[int]
    parameters: dict[str, Any] | None = None


class _Answer(msgspec.Struct, frozen=True):
    outputs: list[_Output]


_DECODER: Final = msgspec.json.Decoder(_Answer)


def is_infer_response(body: bytes, head_length: bytes) -> bool:
    """Whether `body` is an infer response of the V2 protocol, as far as can be told quickly.

    Args:
        head_length: The header `Inference-Header-Content-Length`, if tensors follow the JSON.
    """
    if not head_length:
        return _is_json_answer(body)
    if not head_length.isdigit() or len(head_length) > _LENGTH_DIGITS:
        return False
    at = int(head_length)
    if at > len(body):
        return False
    try:
        answer = _DECODER.decode(body[:at])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    sizes = [(output.parameters or {}).get("binary_data_size", 0) for output in answer.outputs]
    return all(isinstance(size, int) for size in sizes) and at + sum(sizes) == len(body)


def _is_json_answer(body: bytes) -> bool:
    if len(body) > _WHOLE_UP_TO_BYTES:
        ends = body[:_HEAD_BYTES].lstrip()[:1], body[-_HEAD_BYTES:].rstrip()[-1:]
        return ends == (b"{", b"}") and b'"outputs"' in body
    try:
        _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
