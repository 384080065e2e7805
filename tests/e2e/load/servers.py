"""Small servers on loopback that answer as they should not: raw sockets, a thread a connection."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

METADATA = (
    b'{"name":"m","inputs":[{"name":"x","datatype":"FP32","shape":[1,4]}],'
    b'"outputs":[{"name":"y","datatype":"FP32","shape":[1]}]}'
)
BODY = b'{"model_name":"m","outputs":[{"name":"y","datatype":"FP32","shape":[1],"data":[0.5]}]}'


def answer(body: bytes = BODY, status: str = "200 OK", more: str = "") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\n{more}\r\n"
    return head.encode() + body


@dataclass(slots=True)
class Caller:
    """One connection: requests in, whatever bytes out."""

    sock: socket.socket
    _rest: bytes = field(default=b"")

    def next_request(self) -> str:
        """Read one whole request; its path, or nothing if the caller left."""
        data = self._rest
        while b"\r\n\r\n" not in data:
            more = self.sock.recv(65536)
            if not more:
                return ""
            data += more
        head, _, body = data.partition(b"\r\n\r\n")
        lengths = (
            int(line.split(b":")[1])
            for line in head.lower().split(b"\r\n")
            if line.startswith(b"content-length")
        )
        length = next(lengths, 0)
        while len(body) < length:
            body += self.sock.recv(65536)
        self._rest = body[length:]
        return head.split(b" ")[1].decode()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)


@dataclass(slots=True)
class Server:
    """Where it listens, and how many connections it took."""

    listener: socket.socket
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.listener.getsockname()[1]}"

    def die(self) -> None:
        """Listen no more."""
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


@contextmanager
def serving(
    handle: Callable[[Caller], None], *, tls: ssl.SSLContext | None = None
) -> Iterator[Server]:
    """A server that gives each connection to `handle`, and closes it afterwards."""
    server = Server(socket.create_server(("127.0.0.1", 0), backlog=256))
    callers: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def one(sock: socket.socket) -> None:
        with sock, suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with sock if tls is None else tls.wrap_socket(sock, server_side=True) as carried:
                handle(Caller(carried))

    def accept() -> None:
        with suppress(OSError):
            while True:
                sock, _ = server.listener.accept()
                server.connections += 1
                callers.append(sock)
                thread = threading.Thread(target=one, args=(sock,))
                threads.append(thread)
                thread.start()

    acceptor = threading.Thread(target=accept)
    acceptor.start()
    try:
        yield server
    finally:
        server.die()
        acceptor.join(5)
        for sock in callers:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in threads:
            thread.join(5)


def well(caller: Caller) -> None:
    """As it should be."""
    while caller.next_request():
        caller.send(answer())


class Stalling:
    """Answers at once, but in the first `stall_s` of every second not before they are over."""

    def __init__(self, stall_s: float) -> None:
        self._stall_s = stall_s
        self._since = time.monotonic()

    def __call__(self, caller: Caller) -> None:
        while caller.next_request():
            into_s = (time.monotonic() - self._since) % 1.0
            if into_s < self._stall_s:
                time.sleep(self._stall_s - into_s)
            caller.send(answer())


class V2:
    """Tells what its model takes, and answers the first so many infer requests, then none."""

    def __init__(self, answers: int) -> None:
        self._left = answers

    def __call__(self, caller: Caller) -> None:
        while path := caller.next_request():
            if path.endswith("/config"):
                caller.send(answer(b"{}", "404 Not Found"))
            elif not path.endswith("/infer"):
                caller.send(answer(METADATA))
            elif self._left > 0:
                self._left -= 1
                caller.send(answer())
