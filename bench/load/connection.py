"""One HTTP/1.1 connection without a framework: send bytes, know when the whole answer is here.

Only what servers of models send is understood: a status line, and a Content-Length or chunks.
"""

import socket
from dataclasses import dataclass, field
from typing import Final

HEAD_END: Final = b"\r\n\r\n"
LAST_CHUNK: Final = b"0\r\n\r\n"
CHUNKED: Final = -1
RECEIVE_BYTES: Final = 1 << 16


class BrokenError(Exception):
    """The server closed the connection, or answered without a length."""


def connect(address: str) -> socket.socket:
    """A connected, non-blocking socket to `host:port` or `unix:/path`."""
    if address.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address.removeprefix("unix:"))
    else:
        host, _, port = address.rpartition(":")
        sock = socket.create_connection((host, int(port)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.settimeout(0.0)
    return sock


@dataclass(slots=True)
class Connection:
    """A socket, what is still to be sent on it, and the answer so far."""

    sock: socket.socket
    started: float = 0.0
    _unsent: memoryview = field(default_factory=lambda: memoryview(b""))
    _received: bytearray = field(default_factory=bytearray)
    _size: int = 0

    def send(self, request: bytes, started: float) -> bool:
        """Send as much as the socket takes; whether that was all."""
        self.started = started
        self._unsent = memoryview(request)
        self._received.clear()
        self._size = 0
        return self.flush()

    def flush(self) -> bool:
        """Send more of the request; whether all of it is sent."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self.sock.send(self._unsent) :]
        except BlockingIOError:
            return False
        return True

    def receive(self) -> int:
        """Take what has come; the HTTP status once the answer is whole, else 0.

        Raises:
            BrokenError: The connection ended, or the answer cannot be read.
        """
        try:
            data = self.sock.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return 0
        if not data:
            msg = "the server closed the connection"
            raise BrokenError(msg)
        self._received += data
        if not self._size:
            self._size = answer_size(self._received)
        if self._size == CHUNKED:
            # One request is under way on a connection, so nothing comes after the last chunk.
            if not self._received.endswith(LAST_CHUNK):
                return 0
        elif not self._size or len(self._received) < self._size:
            return 0
        return int(self._received[9:12])


def answer_size(received: bytes | bytearray) -> int:
    """Bytes of the whole answer, head and body; 0 while the head is not complete.

    `CHUNKED` if they are not told in advance.

    Raises:
        BrokenError: It names no length.
    """
    end = received.find(HEAD_END)
    if end < 0:
        return 0
    for line in bytes(received[:end]).split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return end + len(HEAD_END) + int(value)
        if name.lower() == b"transfer-encoding" and value.strip().lower() == b"chunked":
            return CHUNKED
    msg = "an answer without Content-Length"
    raise BrokenError(msg)
