"""What does a process that materializes tell whoever started it? Lines of JSON."""

import msgspec

from headrace.core import Code


class MaterializeProgress(msgspec.Struct, frozen=True, kw_only=True, tag="progress"):
    """So many of all entities are written."""

    done: int
    entities: int


class MaterializeFinished(msgspec.Struct, frozen=True, kw_only=True, tag="finished"):
    """It worked: as of `MaterializeReport`; `newest_us` in microseconds since 1970."""

    entities: int
    written: int
    newest_us: int | None


class MaterializeFailed(msgspec.Struct, frozen=True, kw_only=True, tag="failed"):
    """It did not."""

    code: Code
    message: str


ApartMessage = MaterializeProgress | MaterializeFinished | MaterializeFailed
"""A line, as JSON. The last one is no progress."""
