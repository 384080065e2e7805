"""Users who call one after the other at a constant rate, and what each of them was answered.

Requests have ids of their own, unless one `request_id` is given for all.
"""

import json
import re
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

from bench.load.connection import BrokenError, Connection, connect

_TICK_S: Final = 0.002
_ANSWERED_WITHIN_S: Final = 10.0
_VERSION: Final = re.compile(rb'"model_version":\s*"(\d+)"')
_STEPS: Final = (0.6180339887498949, 0.7548776662466927)
"""Multiples of these, modulo 1, are spread more evenly than chance would."""


@dataclass(frozen=True, slots=True)
class Call:
    """One request and its answer; `version` is empty where the answer names none."""

    number: int
    user: str
    chance: float
    score: float
    sent_at: float
    took_s: float
    status: int
    version: str

    @property
    def request_id(self) -> str:
        return f"call-{self.number}"


class Callers:
    """Sends `rate` requests a second in a thread of its own: open loop, users taking turns."""

    def __init__(
        self,
        address: str,
        endpoint: str,
        *,
        rate: float,
        users: int = 100,
        request_id: str = "",
    ) -> None:
        self.calls: list[Call] = []
        self._address = address
        self._path = f"/v2/models/{endpoint}/infer"
        self._rate = rate
        self._users = users
        self._request_id = request_id
        self._poll = select.epoll()
        self._idle: list[Connection] = []
        self._busy: dict[int, tuple[Connection, int]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    @contextmanager
    def flowing(self) -> "Iterator[Callers]":
        """Send while the block runs; in the end each request has its answer, or status 0."""
        self._thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            self._thread.join(_ANSWERED_WITHIN_S * 2)
            assert not self._thread.is_alive()

    @property
    def failed(self) -> list[Call]:
        return [call for call in self.calls if call.status != 200]

    def answered_by(self, version: str) -> list[Call]:
        return [call for call in self.calls if call.version == version]

    def _run(self) -> None:
        start = time.monotonic()
        sent = 0
        while not self._stop.is_set():
            due = int((time.monotonic() - start) * self._rate)
            for _ in range(min(due - sent, 50)):
                self._send(sent)
                sent += 1
            self._collect(_TICK_S)
        until = time.monotonic() + _ANSWERED_WITHIN_S
        while self._busy and time.monotonic() < until:
            self._collect(0.05)
        for connection, number in self._busy.values():
            self._note(connection, number, 0)
        for connection in (*self._idle, *(one for one, _ in self._busy.values())):
            connection.sock.close()
        self._poll.close()

    def _send(self, number: int) -> None:
        if self._idle:
            connection = self._idle.pop()
        else:
            connection = Connection(connect(self._address))
            self._poll.register(connection.sock, select.EPOLLIN)
        self._busy[connection.sock.fileno()] = (connection, number)
        request_id = self._request_id or f"call-{number}"
        request = request_of(self._path, number, self._user(number), request_id)
        try:
            assert connection.send(request, time.monotonic()), "requests fit a socket's buffer"
        except OSError:
            self._drop(connection, number)

    def _collect(self, wait_s: float) -> None:
        for fd, _ in self._poll.poll(wait_s):
            if fd not in self._busy:
                self._close_idle(fd)
                continue
            connection, number = self._busy[fd]
            try:
                status = connection.receive()
            except (BrokenError, OSError):
                self._drop(connection, number)
                continue
            if status:
                self._note(connection, number, status)
                del self._busy[fd]
                self._idle.append(connection)

    def _note(self, connection: Connection, number: int, status: int) -> None:
        found = _VERSION.search(connection._received)
        chance, score = numbers_of(number)
        self.calls.append(
            Call(
                number=number,
                user=self._user(number),
                chance=chance,
                score=score,
                sent_at=connection.started,
                took_s=time.monotonic() - connection.started,
                status=status,
                version=found[1].decode() if found else "",
            )
        )

    def _user(self, number: int) -> str:
        return f"user-{number % self._users}"

    def _drop(self, connection: Connection, number: int) -> None:
        self._note(connection, number, 0)
        del self._busy[connection.sock.fileno()]
        connection.sock.close()

    def _close_idle(self, fd: int) -> None:
        for connection in [one for one in self._idle if one.sock.fileno() == fd]:
            self._idle.remove(connection)
            connection.sock.close()


def numbers_of(number: int) -> tuple[float, float]:
    """The two numbers of a request: what `model_files` calls chance and score."""
    chance, score = (round(number * step % 1.0, 6) for step in _STEPS)
    return chance, score


def request_of(path: str, number: int, user: str, request_id: str) -> bytes:
    """A request of one row."""
    row = {"name": "x", "shape": [1, 2], "datatype": "FP32", "data": list(numbers_of(number))}
    body = json.dumps({"inputs": [row]}).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"x-user-id: {user}\r\nx-request-id: {request_id}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def wait_until(condition: Callable[[], bool], timeout_s: float) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s"
        time.sleep(0.02)
