"""Caller and deadline of a request, as the gateway's headers state them."""

import math
from typing import TYPE_CHECKING, Final

from headrace.core import InvalidArgumentError
from headrace.core.headers import PRIORITY_HEADER, SLO_HEADER, TIMEOUT_HEADER
from headrace.core.priorities import LEVELS

if TYPE_CHECKING:
    from headrace.serving.exchange import Exchange

_PRIORITY: Final = PRIORITY_HEADER.encode()
_SLO: Final = SLO_HEADER.encode()
_TIMEOUT: Final = TIMEOUT_HEADER.encode()
_ENVOY_TIMEOUT: Final = b"x-envoy-expected-rq-timeout-ms"


def rank(exchange: "Exchange") -> None:
    """Note the caller's priority and the endpoint's aim, for the queue.

    Raises:
        InvalidArgumentError: One of them is no such number.
    """
    headers = exchange.headers
    level = headers.get(_PRIORITY)
    if level is not None:
        if len(level) != 1 or not b"1" <= level <= b"%d" % LEVELS:
            msg = f"header {PRIORITY_HEADER} must be 1 to {LEVELS}"
            raise InvalidArgumentError(msg)
        exchange.floor = int(level)
    aim = headers.get(_SLO)
    if aim is not None:
        exchange.slo_s = _positive(aim, SLO_HEADER)


def timeout_s(headers: dict[bytes, bytes]) -> float:
    """How long the caller, or the gateway for it, waits; infinity if nobody says.

    Raises:
        InvalidArgumentError: A timeout is no positive number.
    """
    limit = math.inf
    own = headers.get(_TIMEOUT)
    if own is not None:
        limit = _positive(own, TIMEOUT_HEADER)
    envoys = headers.get(_ENVOY_TIMEOUT)
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
