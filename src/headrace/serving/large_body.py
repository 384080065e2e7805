"""Large request bodies of known length, which the kernel writes directly into their buffer."""

import asyncio
from typing import Final, Protocol

import numpy as np

LARGE_BODY_BYTES: Final = 32 << 10
"""Larger bodies are read this way; for smaller ones, switching protocols would cost more than a
copy.
"""
_HEAD_BYTES: Final = 4 << 10
_ALIGNMENT: Final = 16


class BodyConnection(Protocol):
    """Connection whose bodies are read."""

    def room_for_body(self) -> memoryview | None:
        """Return the buffer for the next bytes of a large body; None outside of one."""

    def body_arrived(self, size: int) -> None:
        """Count bytes that were written there."""

    def head_arrived(self, data: bytes) -> None:
        """Process bytes that are not the middle of a large body."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle asyncio's `connection_lost`."""

    def eof_received(self) -> bool:
        """Handle asyncio's `eof_received`."""

    def pause_writing(self) -> None:
        """Handle asyncio's `pause_writing`."""

    def resume_writing(self) -> None:
        """Handle asyncio's `resume_writing`."""


class BodyReader(asyncio.BufferedProtocol):
    """Transport protocol that replaces `owner` while large bodies arrive.

    Between them it reads in small pieces: body bytes that arrive with the head have to be copied.
    """

    __slots__ = ("_head", "_is_body", "_owner")

    def __init__(self, owner: BodyConnection) -> None:
        self._owner = owner
        self._head = memoryview(bytearray(_HEAD_BYTES))
        self._is_body = False

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        """Return the buffer for the next bytes."""
        room = self._owner.room_for_body()
        self._is_body = room is not None
        return self._head if room is None else room

    def buffer_updated(self, nbytes: int) -> None:
        """Process the bytes that arrived in the buffer."""
        if self._is_body:
            self._owner.body_arrived(nbytes)
        else:
            self._owner.head_arrived(bytes(self._head[:nbytes]))

    def connection_lost(self, exc: Exception | None) -> None:
        """Handle the end of the connection."""
        self._owner.connection_lost(exc)

    def eof_received(self) -> bool:
        """Handle the end of the caller's data."""
        return self._owner.eof_received()

    def pause_writing(self) -> None:
        """Forward that the caller reads too slowly."""
        self._owner.pause_writing()

    def resume_writing(self) -> None:
        """Forward that the caller caught up."""
        self._owner.resume_writing()


def new_body(length: int, json_length: bytes | None) -> memoryview:
    """Return uncleared memory for a body of `length` bytes; only received bytes of it are read.

    If tensors follow `json_length` bytes of JSON, it begins at an offset that aligns the tensors:
    the runtimes' code needs that, and a later copy would cost more.
    """
    tensors_at = int(json_length[:18]) if json_length and json_length.isdigit() else 0
    start = -tensors_at % _ALIGNMENT
    return np.empty(length + start, np.uint8).data[start:]
