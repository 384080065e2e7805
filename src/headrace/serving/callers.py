"""What does the gateway say of a request's caller and of its endpoint? Read from its headers.

A caller's own headers of these names are removed at the gateway. A replica without one believes
them: they give nothing that the request's own priority does not.
"""

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
        exchange.slo_s = _positive(aim)


def _positive(text: bytes) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value > 0:
        msg = "header x-headrace-slo-s must be a positive number"
        raise InvalidArgumentError(msg)
    return value
