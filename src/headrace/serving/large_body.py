"""Large request body of known length, which the kernel writes directly into its buffer."""

import asyncio
from typing import Final, Protocol

import numpy as np

LARGE_BODY_BYTES: Final = 32 << 10
"""A larger body is read so; for a smaller one, taking turns would cost more than the copy."""
_HEAD_BYTES: Final = 4 << 10
_ALIGNMENT: Final = 16


class BodyConnection(Protocol):
    """The connection whose bodies are read."""

    def room_for_body(self) -> memoryview | None:
        """Where the next bytes of a large body go; None if none is under way."""

    def body_arrived(self, size: int) -> None:
        """So many bytes were written there."""

    def head_arrived(self, data: bytes) -> None:
        """Bytes that are not the middle of a large body."""

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio's."""

    def eof_received(self) -> bool:
        """As asyncio's."""

    def pause_writing(self) -> None:
        """As asyncio's."""

    def resume_writing(self) -> None:
        """As asyncio's."""


class BodyReader(asyncio.BufferedProtocol):
    """Takes `owner`'s place as its transport's protocol while large bodies come.

    Between them it reads little at once: what comes of a body with its head has to be copied.
    """

    __slots__ = ("_head", "_is_body", "_owner")

    def __init__(self, owner: BodyConnection) -> None:
        self._owner = owner
        self._head = memoryview(bytearray(_HEAD_BYTES))
        self._is_body = False

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        """Where the next bytes go."""
        room = self._owner.room_for_body()
        self._is_body = room is not None
        return self._head if room is None else room

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes arrived there."""
        if self._is_body:
            self._owner.body_arrived(nbytes)
        else:
            self._owner.head_arrived(bytes(self._head[:nbytes]))

    def connection_lost(self, exc: Exception | None) -> None:
        """The caller left."""
        self._owner.connection_lost(exc)

    def eof_received(self) -> bool:
        """The caller will send no more."""
        return self._owner.eof_received()

    def pause_writing(self) -> None:
        """The caller reads too slowly."""
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        """The caller caught up."""
        self._owner.resume_writing()


def new_body(length: int, json_length: bytes | None) -> memoryview:
    """Memory for a body of `length` bytes, not cleared: only what the caller sent is read of it.

    If tensors follow `json_length` bytes of JSON, it begins where they will be aligned: code of the
    runtimes needs that, and a copy later would cost more.
    """
    tensors_at = int(json_length[:18]) if json_length and json_length.isdigit() else 0
    start = -tensors_at % _ALIGNMENT
    return np.empty(length + start, np.uint8).data[start:]
