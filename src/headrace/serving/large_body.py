"""A large body of known length, which the kernel writes straight into memory of its own."""

import asyncio
from typing import Final, Protocol

import numpy as np

LARGE_BODY_BYTES: Final = 32 << 10
"""A larger body is read so; for a smaller one, taking turns would cost more than the copy."""
_ALIGNMENT: Final = 16


class Owner(Protocol):
    """The connection whose body is read."""

    def room_for_body(self) -> memoryview | bytearray:
        """Where the next bytes of the body go; never empty."""

    def body_arrived(self, size: int) -> None:
        """So many bytes were written there."""

    def connection_lost(self, exc: Exception | None) -> None:
        """As asyncio's."""

    def eof_received(self) -> bool:
        """As asyncio's."""

    def pause_writing(self) -> None:
        """As asyncio's."""

    def resume_writing(self) -> None:
        """As asyncio's."""


class BodyReader(asyncio.BufferedProtocol):
    """Takes `owner`'s place as its transport's protocol while the body arrives."""

    __slots__ = ("_owner",)

    def __init__(self, owner: Owner) -> None:
        self._owner = owner

    def get_buffer(self, sizehint: int) -> memoryview | bytearray:  # noqa: ARG002  # asyncio's signature
        """Where the next bytes go."""
        return self._owner.room_for_body()

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes arrived there."""
        self._owner.body_arrived(nbytes)

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
