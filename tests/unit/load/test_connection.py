"""A connection fed by hand: no socket, bytes as they may come."""

import asyncio
from dataclasses import dataclass, field
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.load.connection import IDLE, LoadConnection

BODY = b'{"outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":[0.5]}]}'
GOOD = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(BODY), BODY)


@dataclass
class Pool:
    ended: list[tuple[int, str]] = field(default_factory=list)
    lost: int = 0

    def request_done(self, connection: LoadConnection, number: int, kind: str, now: float) -> None:
        assert connection.number == IDLE
        assert now > 0
        self.ended.append((number, kind))

    def closed(self, connection: LoadConnection) -> None:
        assert not connection.is_open
        self.lost += 1


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.is_over = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def abort(self) -> None:
        self.is_over = True

    def close(self) -> None:
        self.is_over = True


def connected() -> tuple[LoadConnection, Pool, Transport]:
    pool, transport = Pool(), Transport()
    connection = LoadConnection(pool)
    connection.connection_made(transport)
    return connection, pool, transport


def test_a_request_goes_out_and_its_answer_frees_the_connection() -> None:
    connection, pool, transport = connected()

    connection.send(3, b"question")
    connection.data_received(GOOD)
    connection.send(4, b"another")
    connection.data_received(GOOD)

    assert transport.written == b"questionanother"
    assert pool.ended == [(3, ""), (4, "")]
    assert connection.is_open
    assert not transport.is_over


@given(st.lists(st.integers(1, len(GOOD) - 1), max_size=6))
def test_an_answer_is_the_same_however_it_is_cut(cuts: list[int]) -> None:
    connection, pool, _ = connected()
    connection.send(0, b"")

    edges = [0, *sorted(set(cuts)), len(GOOD)]
    for begin, end in pairwise(edges):
        connection.data_received(GOOD[begin:end])

    assert pool.ended == [(0, "")]


@given(st.binary(max_size=300), st.booleans())
def test_no_bytes_raise_and_every_request_ends_once(data: bytes, is_answer: bool) -> None:  # noqa: FBT001  # Hypothesis
    connection, pool, _ = connected()
    connection.send(0, b"")

    connection.data_received(b"HTTP/1.1 200 OK\r\n" + data if is_answer else data)
    if connection.is_open:
        connection.eof_received()
    connection.connection_lost(None)

    assert [number for number, _ in pool.ended] == [0]
    assert pool.lost == 1


@pytest.mark.parametrize(
    ("error", "kind"), [(None, "closed"), (ConnectionResetError(), "reset"), (OSError(), "closed")]
)
def test_a_connection_lost_before_the_answer_says_how(error: Exception | None, kind: str) -> None:
    connection, pool, _ = connected()
    connection.send(7, b"")

    connection.connection_lost(error)

    assert pool.ended == [(7, kind)]


def test_an_idle_connection_that_is_lost_fails_nothing() -> None:
    connection, pool, _ = connected()

    connection.eof_received()
    connection.connection_lost(None)

    assert (pool.ended, pool.lost) == ([], 1)


def test_an_answer_that_was_given_up_is_nobodys() -> None:
    connection, pool, transport = connected()
    connection.send(1, b"")

    connection.close()
    connection.data_received(GOOD)
    connection.connection_lost(None)

    assert pool.ended == []
    assert transport.is_over


def test_an_answer_beyond_the_limit_is_not_kept() -> None:
    pool, transport = Pool(), Transport()
    connection = LoadConnection(pool, max_answer_bytes=10)
    connection.connection_made(transport)
    connection.send(0, b"")

    connection.data_received(GOOD)

    assert pool.ended == [(0, "too_large")]
    assert transport.is_over
