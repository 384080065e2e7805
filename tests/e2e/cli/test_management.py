"""The management client against servers that are missing, silent or broken."""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from headrace.cli.base.management import Management
from headrace.cli.up.start import command
from headrace.core import DeadlineExceededError, FailedPreconditionError, UnavailableError
from tests.ports import free_port

pytestmark = pytest.mark.e2e

Talk = Callable[[socket.socket], None]


@contextmanager
def server(answer: bytes | None) -> Iterator[Management]:
    """Sends `answer` to one request and closes; None says nothing until the caller leaves."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(5)
            connection.recv(65536)
            if answer is not None:
                connection.sendall(answer)
                return
            connection.recv(1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Management(f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        thread.join()
        listener.close()


def response(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status.encode(), len(body), body)


def test_an_object_is_returned_and_a_list_is_wrapped() -> None:
    with server(response(b'{"a": 1}')) as api:
        assert api.get("/x", follow=1, empty=None) == {"a": 1}
    with server(response(b"[1]")) as api:
        assert api.post("/x", {"b": 2}) == {"items": [1]}
    with server(response(b"")) as api:
        assert api.post("/x") == {}


def test_lines_come_one_by_one() -> None:
    with server(response(b"one\r\ntwo\nthr\xff")) as api:
        assert list(api.lines("/x")) == ["one", "two", "thr\ufffd"]


def test_an_error_has_its_class() -> None:
    body = b'{"code": "FAILED_PRECONDITION", "detail": "in use"}'
    with (
        server(response(body, "409 Conflict")) as api,
        pytest.raises(FailedPreconditionError, match="in use"),
    ):
        api.get("/x")


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", response(b"<html>"), response(b"{")])
def test_what_is_no_management_api_does_not_answer(answer: bytes) -> None:
    with server(answer) as api, pytest.raises(UnavailableError, match="does not answer"):
        api.get("/x")


def test_a_stream_that_breaks_off_is_told() -> None:
    broken = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\none\n"
    with server(broken) as api, pytest.raises(UnavailableError, match="does not answer"):
        list(api.lines("/x"))


def test_silence_is_not_waited_for() -> None:
    with server(None) as api, pytest.raises(DeadlineExceededError, match=r"within 0\.2 s"):
        api.post("/x", timeout_s=0.2)


def test_nobody_there_says_how_to_start_it() -> None:
    with pytest.raises(UnavailableError, match="`headrace up` restarts it"):
        Management(f"http://127.0.0.1:{free_port()}").get("/x")


def test_the_first_call_of_a_language_model_is_a_chat() -> None:
    with server(response(b'{"inputs": [], "outputs": []}')) as api:
        call = command(api.url, "m")

    assert call.startswith(f'curl -s {api.url}/v1/chat/completions -d \'{{"model": "m",')


def test_without_a_description_the_first_call_is_the_short_one() -> None:
    url = f"http://127.0.0.1:{free_port()}"

    assert command(url, "m", " --home h") == "headrace infer m --home h"
