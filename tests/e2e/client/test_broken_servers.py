"""The HTTP client against servers that break off, trickle, say nothing or talk nonsense."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import anyio
import numpy as np
import pytest

from headrace.client import AsyncClient, Client, ConnectionLostError, ProtocolError, RetryPolicy
from headrace.core import DeadlineExceededError, HeadraceError, UnavailableError

pytestmark = pytest.mark.e2e

ROW = np.zeros((1, 2), np.float32)
UNAVAILABLE = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 20\r\nretry-after: 0\r\n\r\n"
    b'{"error":"starting"}'
)
ANSWER = b'{"model_name":"m","outputs":[]}'
OK = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(ANSWER), ANSWER)

Talk = Callable[[socket.socket], None]


@contextmanager
def server(talk: Talk, requests: list[bytes] | None = None) -> Iterator[str]:
    """A server that reads each request into `requests` and then does `talk`."""
    seen = [] if requests is None else requests
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    stopping = threading.Event()

    def serve() -> None:
        while not stopping.is_set():
            try:
                connection, _ = listener.accept()
            except TimeoutError:
                continue
            with connection:
                connection.settimeout(5)
                try:
                    seen.append(read_request(connection))
                    talk(connection)
                except OSError:
                    continue

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        stopping.set()
        thread.join()
        listener.close()


def read_request(connection: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        data += connection.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return data


def hang_up(_: socket.socket) -> None:
    return


def hang_up_within(connection: socket.socket) -> None:
    connection.sendall(OK[:-5])


def say_nothing(connection: socket.socket) -> None:
    connection.recv(1)


def trickle(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n")
    for _ in range(100):
        connection.sendall(b" ")
        time.sleep(0.02)


def talk_nonsense(connection: socket.socket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>")


def talk_no_http(connection: socket.socket) -> None:
    connection.sendall(b"220 mail.example.org ESMTP\r\n")


def claim_gzip(connection: socket.socket) -> None:
    connection.sendall(
        b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nabcd"
    )


CASES: list[tuple[Talk, type[HeadraceError]]] = [
    (hang_up, ConnectionLostError),
    (hang_up_within, ConnectionLostError),
    (say_nothing, DeadlineExceededError),
    (trickle, DeadlineExceededError),
    (talk_nonsense, ProtocolError),
    (talk_no_http, ConnectionLostError),
    (claim_gzip, ProtocolError),
]


@pytest.mark.parametrize(("talk", "error"), CASES)
def test_a_broken_server_is_a_typed_error_in_time(talk: Talk, error: type[HeadraceError]) -> None:
    with server(talk) as url, Client(url) as client:
        began = time.monotonic()

        with pytest.raises(error):
            client.infer("m", {"x": ROW}, timeout_s=0.4)

        assert time.monotonic() - began < 1.5


@pytest.mark.anyio
@pytest.mark.parametrize(("talk", "error"), CASES)
async def test_the_asynchronous_client_tells_the_same(
    talk: Talk, error: type[HeadraceError]
) -> None:
    with server(talk) as url:
        async with AsyncClient(url) as client:
            began = time.monotonic()

            with pytest.raises(error):
                await client.infer("m", {"x": ROW}, timeout_s=0.4)

            assert time.monotonic() - began < 1.5


def test_a_server_that_starts_is_tried_until_it_answers() -> None:
    answers = [UNAVAILABLE, UNAVAILABLE, OK]
    requests: list[bytes] = []
    with (
        server(lambda connection: connection.sendall(answers.pop(0)), requests) as url,
        Client(url, retry=RetryPolicy(base_delay_s=0.01)) as client,
    ):
        response = client.infer("m", {"x": ROW})

    assert response.model_name == "m"
    assert len(requests) == 3


def test_a_request_that_may_have_run_is_not_sent_again() -> None:
    seen = []
    with (
        server(lambda _: seen.append(1)) as url,
        Client(url) as client,
        pytest.raises(ConnectionLostError, match="lost"),
    ):
        client.infer("m", {"x": ROW})

    assert len(seen) == 1


@pytest.mark.anyio
async def test_a_cancelled_call_ends_at_once() -> None:
    with server(say_nothing) as url:
        async with AsyncClient(url) as client:
            began = time.monotonic()
            with anyio.move_on_after(0.1) as scope:
                await client.infer("m", {"x": ROW})

            assert scope.cancelled_caught
            assert time.monotonic() - began < 1


def test_headers_and_the_time_that_is_left_are_sent() -> None:
    requests: list[bytes] = []
    with (
        server(lambda connection: connection.sendall(OK), requests) as url,
        Client(url, headers={"authorization": "Bearer x"}) as client,
    ):
        client.infer("m", {"x": ROW}, timeout_s=3.0)

    head = requests[0].lower()
    assert b"authorization: bearer x\r\n" in head
    assert b"x-headrace-timeout-s: 2.9" in head


# httpcore leaves a Unix socket that it could not connect to the garbage collector.
@pytest.mark.filterwarnings("ignore:Exception ignored in. <socket")
def test_a_socket_that_is_not_there_is_named() -> None:
    with (
        Client("unix:/nowhere/m.sock", retry=RetryPolicy(max_attempts=1)) as client,
        pytest.raises(UnavailableError, match=r"unix:/nowhere/m\.sock"),
    ):
        client.infer("m", {"x": ROW})
