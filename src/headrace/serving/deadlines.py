"""When must a request be answered? As its headers say; the earliest wins."""

import math
from typing import Final

from headrace.core import InvalidArgumentError

TIMEOUT_HEADER: Final = b"x-headrace-timeout-s"
_ENVOY_TIMEOUT_HEADER: Final = b"x-envoy-expected-rq-timeout-ms"


def timeout_s(headers: dict[bytes, bytes]) -> float:
    """How long the caller, or the gateway for it, waits; infinity if nobody says.

    Raises:
        InvalidArgumentError: A timeout is no positive number.
    """
    limit = math.inf
    own = headers.get(TIMEOUT_HEADER)
    if own is not None:
        limit = _positive(own, "x-headrace-timeout-s")
    envoys = headers.get(_ENVOY_TIMEOUT_HEADER)
    if envoys is not None:
        limit = min(limit, _positive(envoys, "x-envoy-expected-rq-timeout-ms") / 1000)
    return limit


def _positive(text: bytes, name: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        msg = f"header {name} must be a positive number, got {text[:50].decode('latin-1')!r}"
        raise InvalidArgumentError(msg)
    return value
