"""How is a history written down? Its tracks one by one, so that others may run between them."""

import zlib
from collections.abc import Callable, Iterable
from typing import TypeVar

import msgspec

S = TypeVar("S")
T = TypeVar("T")


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """A whole history: `began_at` and `looked_at` are when it was looked at first and last."""

    format: int
    began_at: float | None
    looked_at: float | None
    tracks: list[msgspec.Raw]


def encode(
    parts: Iterable[bytes], *, number: int, began_at: float | None, looked_at: float | None
) -> bytes:
    """A history of format `number`, whose tracks are encoded already."""
    tracks = [msgspec.Raw(part) for part in parts]
    kept = Kept(format=number, began_at=began_at, looked_at=looked_at, tracks=tracks)
    return msgspec.msgpack.encode(kept)


def decode(
    data: bytes, kind: type[S], load: Callable[[S], T], *, number: int, what: str = "history"
) -> tuple[Kept, list[tuple[S, T]]]:
    """The history of format `number` that is in `data`; its tracks as written down, and loaded.

    Raises:
        ValueError: It is something else.
    """
    try:
        kept = msgspec.msgpack.decode(data, type=Kept)
        decoded = [msgspec.msgpack.decode(part, type=kind) for part in kept.tracks]
        tracks = [(one, load(one)) for one in decoded]
    except (msgspec.MsgspecError, zlib.error) as error:
        raise ValueError(f"no {what}: {error}") from error
    if kept.format != number:
        raise ValueError(f"a {what} of format {kept.format}, not {number}")
    return kept, tracks
