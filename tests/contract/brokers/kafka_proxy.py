"""Between a client and what stands in for Kafka: says of offsets what only a real broker would.

A broker that knows KIP-447 answers UNSTABLE_OFFSET_COMMIT to who asks for stable offsets while a
transaction that covers them is open. The stand-ins know no such thing, so it is put into their
answers here; that it was asked for is read from the request, as it is on the wire.
"""

import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Final

_OFFSET_FETCH: Final = 9
_GROUPS: Final = 8
"""From this version on an answer has a list of groups."""
_UNSTABLE: Final = 88
_STABLE: Final = b"\x01\x00"
"""The end of a request that asks for stable offsets, and of its tags."""


@dataclass
class Proxy:
    """Passes on what goes to `target`; `unstable` answers are changed, of one partition each.

    `asked`: of each question whether stable offsets were asked for.
    """

    port: int
    target: int
    unstable: int = 0
    asked: list[bool] = field(default_factory=list)
    _versions: dict[tuple[int, int], int] = field(default_factory=dict)

    def request(self, connection: int, frame: bytes) -> bytes:
        key, version, correlation = struct.unpack_from(">hhi", frame)
        if key == _OFFSET_FETCH:
            self.asked.append(frame.endswith(_STABLE))
            self._versions[connection, correlation] = version
        return frame

    def answer(self, connection: int, frame: bytes) -> bytes:
        version = self._versions.pop((connection, struct.unpack_from(">i", frame)[0]), None)
        if version is None or not self.unstable:
            return frame
        self.unstable -= 1
        changed = bytearray(frame)
        # From the end: tags, the error of all, tags of the topic, of the partition; its error.
        error = len(frame) - (8 if version >= _GROUPS else 7)
        struct.pack_into(">h", changed, error, _UNSTABLE)
        # Before that: no metadata, the epoch, the offset.
        struct.pack_into(">q", changed, error - 1 - 4 - 8, -1)
        return bytes(changed)


@contextmanager
def proxied(port: int, target: int) -> Iterator[Proxy]:
    """A proxy that listens on `port` until the end."""
    proxy = Proxy(port, target)
    with socket.create_server(("127.0.0.1", port)) as server:
        threading.Thread(target=_accept, args=(server, proxy), daemon=True).start()
        try:
            yield proxy
        finally:
            server.shutdown(socket.SHUT_RDWR)


def _accept(server: socket.socket, proxy: Proxy) -> None:
    number = 0
    while True:
        try:
            client, _ = server.accept()
        except OSError:
            return
        number += 1
        broker = socket.create_connection(("127.0.0.1", proxy.target))
        for source, sink, change in (
            (client, broker, proxy.request),
            (broker, client, proxy.answer),
        ):
            threading.Thread(target=_pass, args=(source, sink, change, number), daemon=True).start()


def _pass(source: socket.socket, sink: socket.socket, change: object, number: int) -> None:
    assert callable(change)
    with source.makefile("rb") as stream, suppress(OSError):
        while len(head := stream.read(4)) == 4:
            frame = change(number, stream.read(struct.unpack(">i", head)[0]))
            sink.sendall(struct.pack(">i", len(frame)) + frame)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_RDWR)
    source.close()
