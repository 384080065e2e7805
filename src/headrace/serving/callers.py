"""Caller and deadline of a request, as the gateway's headers state them."""

import math
from typing import TYPE_CHECKING, Final

from headrace.core import InvalidArgumentError
from headrace.core.priorities import LEVELS

if TYPE_CHECKING:
    from headrace.serving.exchange import Exchange

PRIORITY_HEADER: Final = b"x-headrace-priority"
"""The highest level that the caller may have: 1 to 9."""
SLO_HEADER: Final = b"x-headrace-slo-s"
"""How soon the endpoint promises to answer, in seconds."""
WANT_HEADER: Final = b"x-headrace-want"
"""`rows`: the gateway wants to know how many rows were answered."""
ROWS_HEADER: Final = b"x-headrace-rows"
"""How many."""


def rank(exchange: "Exchange") -> None:
    """Note the caller's priority and the endpoint's aim, for the queue.

    Raises:
        InvalidArgumentError: One of them is no such number.
    """
    headers = exchange.headers
    level = headers.get(PRIORITY_HEADER)
    if level is not None:
        if len(level) != 1 or not b"1" <= level <= b"%d" % LEVELS:
            msg = f"header x-headrace-priority must be 1 to {LEVELS}"
            raise InvalidArgumentError(msg)
        exchange.floor = int(level)
    aim = headers.get(SLO_HEADER)
    if aim is not None:
        exchange.slo_s = _positive(aim, "x-headrace-slo-s")


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
