"""A TCP proxy that spoils what a server answers: cuts, slows, changes it, or answers itself."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

BUSY: Final = (
    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
    b"Content-Length: 113\r\n\r\n"
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Reduce your rate</Message></Error>    "
)


class SpoilingProxy:
    """Passes connections on to `target`; what is set here holds for those that come later.

    `cut_after_bytes`: of an answer, then the connection breaks. `busy`: how many connections are
    answered with 503. `drop_nth`: which connection is passed on without its answer coming back.
    `flip`: text that is changed in answers, into what. `pause_up_s`: before each piece of a
    request. `away_after_bytes`, `away_after_answers`: of requests or answers in all; then there is
    nobody (`is_away`).
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._server.getsockname()[1])
        self.cut_after_bytes: int | None = None
        self.cuts = 0
        self.busy = 0
        self.drop_nth = 0
        self.dropped = 0
        self.flip: tuple[bytes, bytes] | None = None
        self.pause_up_s = 0.0
        self.away_after_bytes: int | None = None
        self.away_after_answers: int | None = None
        self.is_away = False
        self.asked_bytes = 0
        self.answered_bytes = 0
        self._connections = 0
        self._lock = threading.Lock()

    def serve(self) -> None:
        while True:
            try:
                caller, _ = self._server.accept()
            except OSError:
                return
            threading.Thread(target=self._handle, args=(caller,), daemon=True).start()

    def close(self) -> None:
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()

    def _handle(self, caller: socket.socket) -> None:
        with self._lock:
            self._connections += 1
            number = self._connections
            is_busy = self.busy > 0
            self.busy -= is_busy
        with caller, suppress(OSError):
            if self.is_away:
                return
            if is_busy:
                caller.recv(65536)
                caller.sendall(BUSY)
                return
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                there = threading.Thread(target=self._pass_on, args=(caller, server), daemon=True)
                there.start()
                self._answer(server, caller, is_dropped=number == self.drop_nth)

    def _pass_on(self, caller: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while data := caller.recv(65536):
                self.asked_bytes += len(data)
                if self.away_after_bytes is not None and self.asked_bytes > self.away_after_bytes:
                    self.is_away = True
                if self.is_away:
                    caller.shutdown(socket.SHUT_RDWR)
                    server.shutdown(socket.SHUT_RDWR)
                    return
                if self.pause_up_s:
                    time.sleep(self.pause_up_s)
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def _answer(self, server: socket.socket, caller: socket.socket, *, is_dropped: bool) -> None:
        passed = 0
        while data := server.recv(65536):
            if self.flip is not None:
                data = data.replace(*self.flip)
            limit = self.away_after_answers
            if limit is not None and self.answered_bytes > limit:
                self.is_away = True
            self.dropped += is_dropped
            if self.is_away or is_dropped:
                caller.shutdown(socket.SHUT_RDWR)
                return
            limit = self.cut_after_bytes
            if limit is not None and passed + len(data) > limit:
                caller.sendall(data[: max(limit - passed, 0)])
                self.cuts += 1
                caller.shutdown(socket.SHUT_RDWR)
                return
            caller.sendall(data)
            passed += len(data)
            self.answered_bytes += len(data)


@contextmanager
def spoiling_proxy(target: int) -> Iterator[SpoilingProxy]:
    """A proxy before the port `target` until the block ends."""
    proxy = SpoilingProxy(target)
    thread = threading.Thread(target=proxy.serve, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.close()
        thread.join(timeout=5)
