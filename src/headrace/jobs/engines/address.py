"""Does anybody answer where a cluster is said to be? Asked first, and in seconds.

The libraries of clusters try for minutes, and what they say in the end seldom names the reason.
"""

import socket
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Final
from urllib.parse import urlsplit

from headrace.core import InvalidArgumentError

ANSWER_S: Final = 10.0

Place = tuple[str, int]
"""A host and a port."""
Connect = Callable[[Place, float], AbstractContextManager[object]]


def places_of(address: str, *, schemes: Sequence[str]) -> list[Place]:
    """Where an address says that somebody listens; none for a word, as `auto` or `yarn`.

    Args:
        address: `HOST:PORT`, several of these with commas, or with one of the schemes before it;
            other schemes are for their libraries to know.

    Raises:
        InvalidArgumentError: A place has no port.
    """
    scheme, marked, rest = address.rpartition("://")
    if (marked and scheme not in schemes) or not (marked or ":" in address):
        return []
    return [_place(one, address) for one in rest.partition("/")[0].split(",")]


def why_silent(places: Sequence[Place], connect: Connect = socket.create_connection) -> str:
    """Why no place takes a connection, each with its reason; empty if one does, or for none."""
    whys = []
    for host, port in places:
        try:
            with connect((host, port), ANSWER_S):
                return ""
        except OSError as error:
            late = f"no answer within {ANSWER_S:g} s"
            why = late if isinstance(error, TimeoutError) else error.strerror or str(error)
            whys.append(f"{host}:{port}: {why}")
    return "; ".join(whys)


def _place(text: str, address: str) -> Place:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host, port = None, None
    if not host or not port:
        msg = f"--address {address} names no HOST:PORT, with a port from 1 to 65535"
        raise InvalidArgumentError(msg)
    return host, port
