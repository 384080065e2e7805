"""Bytes that no client library would send, and what comes back."""

import json
import re
import socket
import time
from dataclasses import dataclass
from typing import Final

from tests.e2e.attacks.harness import Door
from tests.e2e.serving.raw import BODY, INFER

_STATUS: Final = re.compile(rb"HTTP/1\.1 ([0-9]{3}) ")
QUIET_S: Final = 0.5


@dataclass(frozen=True, slots=True)
class Received:
    """All bytes until the server closed, or said nothing for a while."""

    data: bytes
    closed: bool

    @property
    def statuses(self) -> list[int]:
        """The statuses of all answers: two mean that one request was taken for two."""
        return [int(status) for status in _STATUS.findall(self.data)]


def talk(door: Door, *parts: bytes, quiet_s: float = QUIET_S) -> Received:
    """Send `parts`, then read until the server closes or is quiet."""
    with door.connect() as sock:
        for part in parts:
            try:
                sock.sendall(part)
            except OSError:
                break  # refused before everything was sent
        return listen(sock, quiet_s=quiet_s)


def listen(sock: socket.socket, *, quiet_s: float = QUIET_S, until_s: float = 20.0) -> Received:
    """What arrives until the end of the stream, `quiet_s` of silence, or `until_s`."""
    received = bytearray()
    sock.settimeout(quiet_s)
    until = time.monotonic() + until_s
    while time.monotonic() < until:
        try:
            chunk = sock.recv(65536)
        except TimeoutError:
            return Received(bytes(received), closed=False)
        except OSError:
            break
        if not chunk:
            break
        received += chunk
    return Received(bytes(received), closed=True)


def request(
    *lines: str, method: str = "POST", path: str = INFER, body: bytes = BODY, host: str = "Host: x"
) -> bytes:
    """A request whose headers are exactly `lines` after the host."""
    head = "\r\n".join([f"{method} {path} HTTP/1.1", host, *lines])
    return head.encode("latin-1") + b"\r\n\r\n" + body


def sized(body: bytes = BODY) -> str:
    return f"Content-Length: {len(body)}"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


LAST_CHUNK: Final = b"0\r\n\r\n"


def infer_json(**changes: object) -> bytes:
    """An infer request of the small MLP with other values for its input."""
    item = {"name": "input", "shape": [1, 32], "datatype": "FP32", "data": [0.5] * 32}
    return json.dumps({"inputs": [{**item, **changes}]}).encode()
