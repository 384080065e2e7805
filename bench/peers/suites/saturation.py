"""How many requests/s, with 32 connections busy and with one?"""

from collections.abc import Sequence
from typing import Final

from bench.peers.pair import MANY, SATURATED, SATURATION, Pair, closed_arm
from bench.peers.rows import Row

SUITE: Final = SATURATION
JSON: Final = SATURATED
ONE: Final = "JSON, 1 connection"
BINARY: Final = f"binary, {MANY} connections"


def busy(pair: Pair) -> Sequence[Row]:
    """Every connection busy."""
    return _compare(pair, JSON, MANY, rounds=pair.plan.few)


def whole(pair: Pair) -> Sequence[Row]:
    """Also one connection, and binary tensors where the peer takes them."""
    rows = list(_compare(pair, JSON, MANY, rounds=pair.plan.rounds))
    rows += _compare(pair, ONE, 1, rounds=pair.plan.few)
    if pair.theirs.binary is not None:
        rows += _compare(pair, BINARY, MANY, rounds=pair.plan.few, binary=True)
    return rows


def _compare(
    pair: Pair, load: str, connections: int, *, rounds: int, binary: bool = False
) -> Sequence[Row]:
    arms = [
        closed_arm(pair, server, pair.closed_load(server, connections=connections, binary=binary))
        for server in pair.servers
    ]
    return pair.compare(SUITE, load, arms, rounds=rounds)
