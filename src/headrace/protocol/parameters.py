"""Request parameters, from JSON or protobuf."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from headrace.core import (
    InvalidArgumentError,
    ModelSignature,
    Parameter,
    RequestedOutput,
    UnsupportedError,
)

_MICROSECONDS: Final = 1_000_000
_UINT64: Final = 1 << 64
_SHOWN_NAME: Final = 200
_RESERVED_PREFIX: Final = "triton_"
_EMPTY_FINAL_RESPONSE: Final = "triton_enable_empty_final_response"
_SEQUENCE: Final = frozenset({"sequence_id", "sequence_start", "sequence_end"})
_SHARED_MEMORY: Final = frozenset(
    {"shared_memory_region", "shared_memory_offset", "shared_memory_byte_size"}
)


class RequestOptions(NamedTuple):
    """Parameters that Headrace acts on, and the `others`, which models may read."""

    priority: int = 0
    timeout_s: float | None = None
    binary_data_output: bool = False
    others: dict[str, Parameter] | None = None


NO_OPTIONS: Final = RequestOptions()
BINARY_OUTPUT: Final = RequestOptions(binary_data_output=True)


def request_options(parameters: Mapping[str, Any]) -> RequestOptions:
    """Return the options in a request's parameters.

    Raises:
        InvalidArgumentError: A reserved name, or a value of a wrong type or range.
        UnsupportedError: Sequences, which need state between requests.
    """
    priority, timeout_s, binary = 0, None, False
    others: dict[str, Parameter] = {}
    for name, value in parameters.items():
        if name == "binary_data_output":
            binary = _boolean(name, value)
        elif name == "priority":
            priority = unsigned(name, value)
        elif name == "timeout":
            microseconds = unsigned(name, value)
            timeout_s = microseconds / _MICROSECONDS if microseconds else None
        elif name in _SEQUENCE:
            _refuse_sequence(name, value)
        elif name == _EMPTY_FINAL_RESPONSE:
            _boolean(name, value)
        else:
            others[name] = _other(name, value)
    return RequestOptions(priority, timeout_s, binary, others or None)


def requested_output(name: str, parameters: Mapping[str, Any]) -> RequestedOutput:
    """Return a requested output; parameters unknown to the protocol are ignored.

    Raises:
        InvalidArgumentError: A value of a wrong type or range.
        UnsupportedError: Shared memory.
    """
    refuse_shared_memory(parameters)
    classes = parameters.get("classification")
    binary = parameters.get("binary_data")
    return RequestedOutput(
        name=name,
        classification=0 if classes is None else unsigned("classification", classes),
        binary_data=None if binary is None else _boolean("binary_data", binary),
    )


def check_outputs(
    model: str, signature: ModelSignature, outputs: tuple[RequestedOutput, ...]
) -> None:
    """Raise InvalidArgumentError unless the model has these outputs, each named once."""
    names = set()
    for output in outputs:
        name = output.name
        if signature.output(name) is None:
            msg = f"unexpected inference output '{name[:_SHOWN_NAME]}' for model '{model}'"
            raise InvalidArgumentError(msg)
        if name in names:
            msg = f"output '{name}' is requested more than once from model '{model}'"
            raise InvalidArgumentError(msg)
        names.add(name)


def refuse_shared_memory(parameters: Mapping[str, Any]) -> None:
    """Raise UnsupportedError if a tensor's data is in shared memory."""
    if not _SHARED_MEMORY.isdisjoint(parameters):
        raise UnsupportedError(SHARED_MEMORY_TEXT)


SHARED_MEMORY_TEXT: Final = (
    "Client shared memory is not supported by this server: send tensors in the request"
)


def unsigned(name: str, value: object) -> int:
    """Return `value` if it is a whole number that fits an unsigned 64-bit integer."""
    if type(value) is not int or not 0 <= value < _UINT64:
        msg = f"parameter '{name}' must be an unsigned integer"
        raise InvalidArgumentError(msg)
    return value


def _boolean(name: str, value: object) -> bool:
    if type(value) is not bool:
        msg = f"parameter '{name}' must be true or false"
        raise InvalidArgumentError(msg)
    return value


def _other(name: str, value: object) -> Parameter:
    shown = name[:_SHOWN_NAME]
    if name.startswith(_RESERVED_PREFIX):
        msg = (
            f"parameter keys starting with '{_RESERVED_PREFIX}' are reserved; '{shown}' is not "
            f"allowed (only '{_EMPTY_FINAL_RESPONSE}' is)"
        )
        raise InvalidArgumentError(msg)
    if name == "headers":
        msg = "parameter 'headers' is reserved"
        raise InvalidArgumentError(msg)
    if isinstance(value, bool | int | float | str):
        return value
    msg = (
        f"invalid type for parameter '{shown}': "
        "only integer, boolean, string and double are supported"
    )
    raise InvalidArgumentError(msg)


def _refuse_sequence(name: str, value: object) -> None:
    if value:
        msg = (
            f"parameter '{name}' asks for a sequence of requests with shared state, which "
            "this server does not support; send each request by itself"
        )
        raise UnsupportedError(msg)
