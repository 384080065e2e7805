"""HTTP/2 by hand: frames that no client library would send, and what comes back."""

import socket
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.e2e.attacks.harness import Door
from tests.e2e.serving.raw import INFER

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEAD_BYTES: Final = 9
CANCEL: Final = 8
JSON: Final = (("content-type", "application/json"),)


@dataclass(slots=True)
class Caller:
    """One HTTP/2 connection, told frame by frame what to send."""

    sock: socket.socket
    statuses: Counter[int] = field(default_factory=Counter)
    resets: Counter[int] = field(default_factory=Counter)
    grpc_statuses: list[int] = field(default_factory=list)
    gone: bool = False
    """The server said GOAWAY or closed."""
    _encoder: hpack.Encoder = field(default_factory=hpack.Encoder)
    _decoder: hpack.Decoder = field(default_factory=hpack.Decoder)
    _stream: int = 1
    _received: bytearray = field(default_factory=bytearray)

    @classmethod
    def open(cls, door: Door, **settings: int) -> "Caller":
        """Connect and say hello; `settings` by name, such as `INITIAL_WINDOW_SIZE`."""
        sock = door.connect()
        numbers = {getattr(SettingsFrame, name): value for name, value in settings.items()}
        sock.sendall(PREFACE + SettingsFrame(0, settings=numbers).serialize())
        return cls(sock)

    def head(
        self,
        *extra: tuple[str, str],
        method: str = "POST",
        path: str = INFER,
        end_stream: bool = False,
        authority: str = "x",
    ) -> tuple[int, bytes]:
        """The next stream and its HEADERS frame, not sent yet."""
        stream, self._stream = self._stream, self._stream + 2
        pseudo = [(":method", method), (":scheme", "http"), (":path", path)]
        block = self._encoder.encode([*pseudo, (":authority", authority), *extra])
        flags = ["END_HEADERS", *(["END_STREAM"] if end_stream else [])]
        return stream, HeadersFrame(stream, block, flags=flags).serialize()

    def block(self, *extra: tuple[str, str]) -> bytes:
        pseudo = [(":method", "GET"), (":scheme", "http"), (":path", "/v2"), (":authority", "x")]
        return bytes(self._encoder.encode([*pseudo, *extra]))

    def next_stream(self) -> int:
        stream, self._stream = self._stream, self._stream + 2
        return stream

    def send(self, *frames: bytes) -> bool:
        """Send; False once the server has hung up."""
        try:
            self.sock.sendall(b"".join(frames))
        except OSError:
            self.gone = True
        return not self.gone

    def listen(self, *, quiet_s: float = 0.5, until_s: float = 10.0) -> "Caller":
        """Count what comes until the end, or until it is quiet."""
        self.sock.settimeout(quiet_s)
        until = time.monotonic() + until_s
        while time.monotonic() < until:
            try:
                data = self.sock.recv(1 << 16)
            except TimeoutError:
                return self
            except OSError:
                data = b""
            if not data:
                self.gone = True
                return self
            self._received += data
            for frame in self._frames():
                self._count(frame)
        return self

    def close(self) -> None:
        self.sock.close()

    def _frames(self) -> Iterator[Frame]:
        while len(self._received) >= _HEAD_BYTES:
            frame, length = Frame.parse_frame_header(memoryview(self._received)[:_HEAD_BYTES])
            if len(self._received) < _HEAD_BYTES + length:
                return
            body = bytes(self._received[_HEAD_BYTES : _HEAD_BYTES + length])
            del self._received[: _HEAD_BYTES + length]
            frame.parse_body(memoryview(body))
            yield frame

    def _count(self, frame: Frame) -> None:
        if isinstance(frame, HeadersFrame):
            decoded = self._decoder.decode(frame.data)
            headers = {str(name): str(value) for name, value in decoded}
            if ":status" in headers:
                self.statuses[int(headers[":status"])] += 1
            if "grpc-status" in headers:
                self.grpc_statuses.append(int(headers["grpc-status"]))
        elif isinstance(frame, RstStreamFrame):
            self.resets[frame.error_code] += 1
        elif isinstance(frame, GoAwayFrame):
            self.gone = True
        elif isinstance(frame, SettingsFrame) and "ACK" not in frame.flags:
            self.send(SettingsFrame(0, flags=["ACK"]).serialize())


def data(stream: int, content: bytes, *, end_stream: bool = False) -> bytes:
    flags = ["END_STREAM"] if end_stream else []
    return bytes(DataFrame(stream, content, flags=flags).serialize())


def reset(stream: int) -> bytes:
    return bytes(RstStreamFrame(stream, CANCEL).serialize())


def ping() -> bytes:
    return bytes(PingFrame(0, b"12345678").serialize())


def settings(**values: int) -> bytes:
    numbers = {getattr(SettingsFrame, name): value for name, value in values.items()}
    return bytes(SettingsFrame(0, settings=numbers).serialize())


def window(stream: int, increment: int) -> bytes:
    return bytes(WindowUpdateFrame(stream, increment).serialize())


def continuation(stream: int, block: bytes, *, end: bool = False) -> bytes:
    flags = ["END_HEADERS"] if end else []
    return bytes(ContinuationFrame(stream, block, flags=flags).serialize())


def open_head(stream: int, block: bytes) -> bytes:
    """HEADERS whose end is still to come, in CONTINUATION frames."""
    return bytes(HeadersFrame(stream, block).serialize())
